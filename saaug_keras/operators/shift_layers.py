"""Plain layers of signed powers of two."""

import keras
from keras import ops as K

from saaug_keras import ops
from saaug_keras.operators.layer import QuantizedLayer, check_layout
from saaug_keras.operators.shift import Shift, check_shift_options

_SIGN_LOW = 0.5  # |sign| from here on rounds to 1


class ShiftWeights(QuantizedLayer):
    """The options of a shift layer and the rounding of its kernel; `_channel_axes` are those of an output channel."""

    _channel_axes = (-1,)

    def _set_shift_options(self, weight_bits, zero_code, exponent_scope, variant, activation_bits):
        check_shift_options(type(self).__name__, weight_bits, zero_code, exponent_scope, variant, activation_bits)
        self.weight_bits, self.zero_code, self.exponent_scope = weight_bits, zero_code, exponent_scope
        self.variant, self.activation_bits = variant, activation_bits

    @property
    def operator(self):
        """The layer's operator as a value."""
        return Shift(**self._shift_config())

    def _axes(self):
        return self._channel_axes if self.exponent_scope == "channel" else ()

    def round_kernel(self, kernel):
        """A kernel as signed powers of two; the gradient goes straight through."""
        return self.operator.round(kernel, self._channel_axes)

    def _shift_config(self):
        return {
            "weight_bits": self.weight_bits,
            "zero_code": self.zero_code,
            "exponent_scope": self.exponent_scope,
            "variant": self.variant,
            "activation_bits": self.activation_bits,
        }


class PlainShift(ShiftWeights):
    """What the plain layers add: the variant whose weights are `sign` and `shift` in the place of `kernel`."""

    def add_weight(self, *args, **kwargs):
        if kwargs.get("name") == "kernel" and self.variant == "ps":
            draw = kwargs["initializer"]
            spread = keras.initializers.RandomUniform(_SIGN_LOW, 1.0)
            # Keras initializers give the same values at every call: sign and shift are those of one drawn kernel.
            kwargs |= {"name": "sign", "initializer": lambda shape, dtype=None: _sign_of(draw, spread, shape, dtype)}
            self.shift = super().add_weight(
                name="shift",
                shape=kwargs["shape"],
                dtype=kwargs.get("dtype"),
                initializer=lambda shape, dtype=None: ops.log2_magnitude(draw(shape, dtype=dtype)),
            )
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        self.input_range = self._add_range()
        self.built = True

    @property
    def sign(self):
        """Of variant "ps" the weight of the signs, in the place of `kernel`."""
        if self.variant != "ps":
            raise AttributeError(f"{type(self).__name__}: only variant 'ps' has the weight `sign`.")
        return self.kernel

    def quantized_kernel(self):
        """The kernel that is deployed: a tensor of signed powers of two and zeros."""
        if self.variant == "q":
            return self.round_kernel(self.kernel.value)
        return ops.shift_and_sign(
            self.shift.value, self.sign.value, bits=self.weight_bits, zero_code=self.zero_code, channel_axes=self._axes()
        )

    def assign_kernel(self, kernel):
        """Takes the weights with which it deploys `round_kernel(kernel)`, whatever its variant.

        Args:
            kernel: float array of the kernel's shape.
        """
        if self.variant == "q":
            self.kernel.assign(kernel)
        else:
            self.sign.assign(K.sign(self.round_kernel(kernel)))
            self.shift.assign(ops.log2_magnitude(kernel))

    def get_config(self):
        return {**super().get_config(), **self._shift_config()}


def assign_kernel(layer, kernel):
    """Gives a plain layer, ours or Keras's, the weights with which it deploys a float `kernel`."""
    if isinstance(layer, PlainShift):
        layer.assign_kernel(kernel)
    else:
        layer.kernel.assign(kernel)


def kernel_of(layer):
    """The float kernel of a plain layer, ours or Keras's, with which `assign_kernel` deploys what it deploys."""
    return layer.quantized_kernel() if isinstance(layer, PlainShift) and layer.variant == "ps" else layer.kernel


def _sign_of(draw, spread, shape, dtype):
    return K.where(draw(shape, dtype=dtype) < 0, -1.0, 1.0) * spread(shape, dtype=dtype)


@keras.saving.register_keras_serializable(package="saaug_keras")
class ShiftConv2D(PlainShift, keras.layers.Conv2D):
    """2D convolution whose kernel is rounded to signed powers of two.

        y = conv2d(q(x), sign(k) * 2**p) + b,    p = clip(round(log2|k|), lowest, top)

    `top` is the largest exponent of the output channel and lowest = top - (2**(weight_bits - 1) - 2). The gradient
    passes straight through the rounding to the float kernel `k`, which is never rounded in place; q is the fake
    quantization of the inputs to the range that training saw, `input_range`.

    Args:
        filters, kernel_size, **kwargs: as `keras.layers.Conv2D`, channels last, one group.
        weight_bits: int in [3, 8], bits of a weight: a sign and the code of the exponent. Export packs up to 5 bits
            always; beyond, it refuses a layer in which the exponents of one output channel span more than 16.
        zero_code: whether one code means zero, for |k| < 2**(lowest - 1); without it `lowest` is one lower.
        exponent_scope: "channel" or "layer", what shares the largest exponent.
        variant: "q" rounds `kernel` (DeepShift-Q). "ps" (DeepShift-PS) learns exponents and signs themselves, the
            weights `shift` and `sign` in the place of `kernel`, rounded straight through; `kernel_regularizer` and
            `kernel_constraint` then act on `sign`.
        activation_bits: int in [2, 8], the grid of the fake-quantized inputs, or None for none.
    Shapes:
        inputs (N, H, W, C) -> output (N, H', W', filters), compute dtype.
        kernel (kh, kw, C, filters), variable dtype; input_range (2,) float32.
    Raises:
        ValueError: an option out of its range, channels first, or more than one group.
    Source: DeepShift, Elhoushi et al. 2019, arXiv:1905.13298; the zero code and the exponent per channel are ours.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        weight_bits=4,
        zero_code=True,
        exponent_scope="channel",
        variant="q",
        activation_bits=8,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, **kwargs)
        check_layout(self)
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)

    def call(self, inputs, training=None):
        return self._convolve(ops.conv2d, inputs, training)


@keras.saving.register_keras_serializable(package="saaug_keras")
class ShiftDepthwiseConv2D(PlainShift, keras.layers.DepthwiseConv2D):
    """Depthwise 2D convolution whose kernel is rounded to signed powers of two; see `ShiftConv2D`.

        y[c*M + m] = conv2d(q(x)[c], sign(k[c, m]) * 2**p[c, m]) + b[c*M + m]

    Args:
        kernel_size, **kwargs: as `keras.layers.DepthwiseConv2D`, channels last.
        weight_bits, zero_code, exponent_scope, variant, activation_bits: as for `ShiftConv2D`; an output channel is one
            pair of channel and multiplier.
    Shapes:
        inputs (N, H, W, C) -> output (N, H', W', C * depth_multiplier), compute dtype.
        kernel (kh, kw, C, depth_multiplier), variable dtype; input_range (2,) float32.
    Raises:
        ValueError: an option out of its range, or channels first.
    Source: DeepShift, Elhoushi et al. 2019, arXiv:1905.13298.
    """

    _channel_axes = (-2, -1)

    def __init__(
        self, kernel_size, *, weight_bits=4, zero_code=True, exponent_scope="channel", variant="q", activation_bits=8, **kwargs
    ):
        super().__init__(kernel_size, **kwargs)
        check_layout(self)
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)

    def call(self, inputs, training=None):
        return self._convolve(ops.depthwise_conv2d, inputs, training)


@keras.saving.register_keras_serializable(package="saaug_keras")
class ShiftDense(PlainShift, keras.layers.Dense):
    """Fully connected layer whose kernel is rounded to signed powers of two; see `ShiftConv2D`.

        y = q(x) @ (sign(k) * 2**p) + b

    Args:
        units, **kwargs: as `keras.layers.Dense`.
        weight_bits, zero_code, exponent_scope, variant, activation_bits: as for `ShiftConv2D`.
    Shapes:
        inputs (..., C) -> output (..., units), compute dtype.
        kernel (C, units), variable dtype; input_range (2,) float32.
    Raises:
        ValueError: an option out of its range.
    Source: DeepShift, Elhoushi et al. 2019, arXiv:1905.13298.
    """

    def __init__(
        self, units, *, weight_bits=4, zero_code=True, exponent_scope="channel", variant="q", activation_bits=8, **kwargs
    ):
        super().__init__(units, **kwargs)
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)

    def call(self, inputs, training=None):
        inputs, _ = self._quantize(inputs, training)
        return self._finish(K.matmul(inputs, K.cast(self.quantized_kernel(), inputs.dtype)))
