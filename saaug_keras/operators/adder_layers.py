"""Plain layers of the l1 distance."""

import keras

from saaug_keras import _validate, ops
from saaug_keras.operators.adder import INITIALIZER_STD, Adder
from saaug_keras.operators.layer import QuantizedLayer, check_layout


class AdderWeights(QuantizedLayer):
    """The options of an add layer: its gradient's scale, and a kernel on the grid of the inputs."""

    def _set_adder_options(self, gradient_scale, activation_bits):
        self.gradient_scale = _validate.number_in(type(self).__name__, "gradient_scale", gradient_scale, 0, 1e3)
        self._set_activation_bits(activation_bits)

    def on_grid(self, kernel, step):
        """The kernel rounded to multiples of the input's step, straight through; `step` None: no quantization."""
        return kernel if step is None else ops.round_to_step(kernel, step)


class PlainAdder(AdderWeights):
    """What the two plain layers share."""

    @property
    def operator(self):
        """The layer's operator as a value."""
        return Adder(self.activation_bits, self.gradient_scale)

    def build(self, input_shape):
        super().build(input_shape)
        self.gradient_rule = self.operator.gradient_rule()
        self.input_range = self._add_range()
        self.built = True

    def quantized_kernel(self):
        """The kernel that is deployed: a tensor on the grid of `input_range`; unrounded before any training."""
        return self.on_grid(self.kernel.value, self._grid_step())

    def get_config(self):
        options = {"activation_bits": self.activation_bits, "gradient_scale": self.gradient_scale}
        return {**super().get_config(), **options}


def initializer(value):
    """Add kernels are compared with activations, so they start wider than those, not at 1 / fan-in."""
    return keras.initializers.RandomNormal(stddev=INITIALIZER_STD) if value is None else value


@keras.saving.register_keras_serializable(package="saaug_keras")
class AdderConv2D(PlainAdder, keras.layers.Conv2D):
    """2D convolution that sums absolute differences in the place of products.

        y[m, n, t] = - sum over i, j, k of |q(x)[m+i, n+j, k] - f[i, j, k, t]| + b[t]

    with AdderNet's gradients (`ops.adder_conv2d`). The kernel lies on the grid of the quantized inputs, its gradient
    passes straight through that rounding. Padding is with zeros, taps like any other. Every output is at most b and
    large: let a batch norm follow.

    Args:
        filters, kernel_size, **kwargs: as `keras.layers.Conv2D`, channels last, one group. Kernels start normally
            distributed with a standard deviation of 3 unless `kernel_initializer` is given.
        activation_bits: int in [2, 8], the grid of the fake-quantized inputs and of the kernel, or None for none.
        gradient_scale: number in [0, 1000], AdderNet's eta: `operators.gradients.AdaptiveRate` gives the kernel's gradient the
            norm eta * sqrt(numel). Training by `saaug_keras.augment` applies it; elsewhere, apply it before the
            optimizer.
    Shapes:
        inputs (N, H, W, C) -> output (N, H', W', filters), compute dtype.
        kernel (kh, kw, C, filters), variable dtype; input_range (2,) float32.
    Raises:
        ValueError: an option out of its range, channels first, or more than one group.
    Source: AdderNet, Chen et al. 2019, arXiv:1912.13200; quantization with one scale for both: arXiv:2012.10200.
    """

    def __init__(self, filters, kernel_size, *, activation_bits=8, gradient_scale=0.2, kernel_initializer=None, **kwargs):
        super().__init__(filters, kernel_size, kernel_initializer=initializer(kernel_initializer), **kwargs)
        check_layout(self)
        self._set_adder_options(gradient_scale, activation_bits)

    def call(self, inputs, training=None):
        inputs, step = self._quantize(inputs, training)
        kernel = self.on_grid(self.kernel.value, step)
        return self._finish(ops.adder_conv2d(inputs, kernel, self.strides, self.padding, self.dilation_rate))


@keras.saving.register_keras_serializable(package="saaug_keras")
class AdderDepthwiseConv2D(PlainAdder, keras.layers.DepthwiseConv2D):
    """`AdderConv2D` of every channel by itself.

        y[m, n, c*M + q] = - sum over i, j of |q(x)[m+i, n+j, c] - f[i, j, c, q]| + b[c*M + q]

    Args:
        kernel_size, **kwargs: as `keras.layers.DepthwiseConv2D`, channels last. Kernels start normally distributed with
            a standard deviation of 3 unless `depthwise_initializer` is given.
        activation_bits, gradient_scale: as for `AdderConv2D`.
    Shapes:
        inputs (N, H, W, C) -> output (N, H', W', C * depth_multiplier), compute dtype.
        kernel (kh, kw, C, depth_multiplier), variable dtype; input_range (2,) float32.
    Raises:
        ValueError: an option out of its range, or channels first.
    Source: AdderNet, Chen et al. 2019, arXiv:1912.13200.
    """

    def __init__(self, kernel_size, *, activation_bits=8, gradient_scale=0.2, depthwise_initializer=None, **kwargs):
        super().__init__(kernel_size, depthwise_initializer=initializer(depthwise_initializer), **kwargs)
        check_layout(self)
        self._set_adder_options(gradient_scale, activation_bits)

    def call(self, inputs, training=None):
        inputs, step = self._quantize(inputs, training)
        kernel = self.on_grid(self.kernel.value, step)
        return self._finish(ops.adder_depthwise_conv2d(inputs, kernel, self.strides, self.padding, self.dilation_rate))
