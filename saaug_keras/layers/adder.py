"""Layers that measure the l1 distance in the place of multiplying."""

import keras
from keras import ops as K

from saaug_keras import _validate, ops
from saaug_keras.layers._common import QuantizedInput, check_channels_last

INITIALIZER_STD = 0.5


class AdderWeights(QuantizedInput):
    """The options of an add layer: its gradient's scale, and a kernel on the grid of the inputs."""

    def _set_adder_options(self, gradient_scale, activation_bits):
        self.gradient_scale = _validate.number_in(type(self).__name__, "gradient_scale", gradient_scale, 0, 1e3)
        self._set_activation_bits(activation_bits)

    def on_grid(self, kernel, step):
        """The kernel rounded to multiples of the input's step, straight through; the step of no quantization is None."""
        return kernel if step is None else ops.round_to_step(kernel, step)

    def quantized_kernel(self):
        """The kernel that is deployed: a tensor on the grid of `input_range`."""
        kernel = K.convert_to_tensor(self.kernel)
        if self.activation_bits is None:
            return kernel
        low, high = self.input_range.value[0], self.input_range.value[1]
        return self.on_grid(kernel, ops.quantization_scale(low, high, self.activation_bits))


def initializer(value):
    """Add kernels are compared with activations, so they start at activations' size, not at 1 / fan-in."""
    return keras.initializers.RandomNormal(stddev=INITIALIZER_STD) if value is None else value


@keras.saving.register_keras_serializable(package="saaug_keras")
class AdderConv2D(AdderWeights, keras.layers.Conv2D):
    """2D convolution that sums absolute differences in the place of products.

        y[m, n, t] = - sum over i, j, k of |q(x)[m+i, n+j, k] - f[i, j, k, t]| + b[t]

    with AdderNet's gradients (`ops.adder_conv2d`). The kernel lies on the grid of the quantized inputs, its gradient
    passes straight through that rounding. Every output is at most b and large: let a batch norm follow.

    Args:
        filters, kernel_size, **kwargs: as `keras.layers.Conv2D` (channels last, one group).
        activation_bits: int in [2, 8], the grid of the fake-quantized inputs and of the kernel, or None for none.
        gradient_scale: AdderNet's eta, the size of the kernel's gradient: `ops.scale_adder_gradients` makes it
            eta * sqrt(numel). Training by `saaug_keras.augment` applies it; elsewhere apply it before the optimizer.
    Shapes:
        inputs (N, H, W, C) -> (N, H', W', filters); kernel (kh, kw, C, filters).
    Raises:
        ValueError: an option out of its range, channels first, or more than one group.
    Source: AdderNet, Chen et al. 2019, arXiv:1912.13200.
    """

    def __init__(self, filters, kernel_size, *, activation_bits=8, gradient_scale=0.2, **kwargs):
        kwargs["kernel_initializer"] = initializer(kwargs.get("kernel_initializer"))
        super().__init__(filters, kernel_size, **kwargs)
        check_channels_last(self, kwargs.get("data_format"))
        _validate.int_in("AdderConv2D", "groups", self.groups, 1, 1)
        self._set_adder_options(gradient_scale, activation_bits)

    def build(self, input_shape):
        super().build(input_shape)
        self.kernel.adder_learning_rate = self.gradient_scale
        self.input_range = self._add_range()

    def call(self, inputs, training=None):
        inputs, step = self._quantize(inputs, training)
        kernel = self.on_grid(K.convert_to_tensor(self.kernel), step)
        out = ops.adder_conv2d(inputs, kernel, self.strides, self.padding, self.dilation_rate)
        out = out + K.cast(self.bias, out.dtype) if self.use_bias else out
        return self.activation(out)

    def get_config(self):
        return {
            **super().get_config(), "activation_bits": self.activation_bits, "gradient_scale": self.gradient_scale,
        }  # fmt: skip


@keras.saving.register_keras_serializable(package="saaug_keras")
class AdderDepthwiseConv2D(AdderWeights, keras.layers.DepthwiseConv2D):
    """`AdderConv2D` of every channel by itself.

        y[m, n, c*M + q] = - sum over i, j of |q(x)[m+i, n+j, c] - f[i, j, c, q]| + b[c*M + q]

    Args:
        kernel_size, **kwargs: as `keras.layers.DepthwiseConv2D` (channels last).
        activation_bits, gradient_scale: as for `AdderConv2D`.
    Shapes:
        inputs (N, H, W, C) -> (N, H', W', C * depth_multiplier); kernel (kh, kw, C, depth_multiplier).
    Source: AdderNet, Chen et al. 2019, arXiv:1912.13200.
    """

    def __init__(self, kernel_size, *, activation_bits=8, gradient_scale=0.2, **kwargs):
        kwargs["depthwise_initializer"] = initializer(kwargs.get("depthwise_initializer"))
        super().__init__(kernel_size, **kwargs)
        check_channels_last(self, kwargs.get("data_format"))
        self._set_adder_options(gradient_scale, activation_bits)

    def build(self, input_shape):
        super().build(input_shape)
        self.kernel.adder_learning_rate = self.gradient_scale
        self.input_range = self._add_range()

    def call(self, inputs, training=None):
        inputs, step = self._quantize(inputs, training)
        kernel = self.on_grid(K.convert_to_tensor(self.kernel), step)
        out = ops.adder_depthwise_conv2d(inputs, kernel, self.strides, self.padding, self.dilation_rate)
        out = out + K.cast(self.bias, out.dtype) if self.use_bias else out
        return self.activation(out)

    def get_config(self):
        return {
            **super().get_config(), "activation_bits": self.activation_bits, "gradient_scale": self.gradient_scale,
        }  # fmt: skip
