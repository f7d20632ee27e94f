"""Layers whose weights are signed powers of two."""

import keras
import numpy as np
from keras import ops as K

from saaug_keras import _validate, ops
from saaug_keras.layers._common import QuantizedInput, check_channels_last


class ShiftWeights(QuantizedInput):
    """The options of a shift layer and the rounding of its kernel; `_channel_axes` are those of an output channel."""

    def _set_shift_options(self, weight_bits, zero_code, exponent_scope, variant, activation_bits):
        owner = type(self).__name__
        self.weight_bits = _validate.int_in(owner, "weight_bits", weight_bits, 3, 8, " bits")
        self.zero_code = bool(zero_code)
        self.exponent_scope = _validate.one_of(owner, "exponent_scope", exponent_scope, ("channel", "layer"))
        self.variant = _validate.one_of(owner, "variant", variant, ("ps", "q"))
        self._set_activation_bits(activation_bits)

    def _axes(self):
        return self._channel_axes if self.exponent_scope == "channel" else ()

    def _add_shift(self, shape):
        """The exponents of variant "ps", spread over the range around the usual size of a weight."""
        fan_in = max(1, int(np.prod(shape[:-1])) if self._channel_axes == (-1,) else int(np.prod(shape[:2])))
        top = float(np.round(np.log2(np.sqrt(6.0 / fan_in))))
        return self.add_weight(
            name="shift", shape=shape, trainable=True,
            initializer=keras.initializers.RandomUniform(top - 2.5, top, seed=getattr(self, "_shift_seed", None)),
        )  # fmt: skip

    def round_kernel(self, kernel):
        """A kernel as signed powers of two; the gradient goes straight through."""
        return ops.round_to_power_of_two(
            kernel, bits=self.weight_bits, zero_code=self.zero_code, channel_axes=self._axes()
        )

    def combine(self, sign, shift):
        """The kernel of variant "ps": sign * 2**shift, both rounded straight through."""
        shift = K.cast(shift, "float32")
        exponent = K.round(K.stop_gradient(shift))
        axes = [axis for axis in range(len(shift.shape)) if axis - len(shift.shape) not in self._axes()]
        top = K.max(exponent, axis=axes, keepdims=True)
        levels = 2 ** (self.weight_bits - 1) - (2 if self.zero_code else 1)
        exponent = ops.straight_through(K.clip(exponent, top - levels, top), shift)
        magnitude = K.exp(exponent * float(np.log(2)))
        magnitude = ops.straight_through(ops.power_of_two(K.round(exponent)), magnitude)
        if self.zero_code:
            rounded = K.round(K.clip(K.stop_gradient(sign), -1.0, 1.0))
        else:
            rounded = K.where(sign < 0, -1.0, 1.0)
        sign = ops.straight_through(K.cast(rounded, "float32"), K.cast(sign, "float32"))
        return sign * magnitude

    def quantized_kernel(self):
        """The kernel that is deployed: a tensor of signed powers of two and zeros."""
        if self.variant == "ps":
            return self.combine(self.kernel, self.shift)
        return self.round_kernel(K.convert_to_tensor(self.kernel))

    def _shift_config(self):
        return {
            "weight_bits": self.weight_bits,
            "zero_code": self.zero_code,
            "exponent_scope": self.exponent_scope,
            "variant": self.variant,
            "activation_bits": self.activation_bits,
        }


_ARGS = """
    Args:
        {first}, **kwargs: as `keras.layers.{like}` (channels last, one group).
        weight_bits: int in [3, 8], bits of a weight: a sign and the code of the exponent.
        zero_code: whether one code means zero.
        exponent_scope: "channel" or "layer": what shares the largest exponent.
        variant: "q" rounds `kernel` (DeepShift-Q); "ps" learns the exponents `shift` beside the signs, which are
            `kernel` rounded to -1, 0 and 1 (DeepShift-PS).
        activation_bits: int in [2, 8], the grid of the fake-quantized inputs, or None for none.
    Raises:
        ValueError: an option out of its range, channels first, or more than one group.
    Source: DeepShift, Elhoushi et al. 2019, arXiv:1905.13298.
"""


@keras.saving.register_keras_serializable(package="saaug_keras")
class ShiftConv2D(ShiftWeights, keras.layers.Conv2D):
    __doc__ = (
        """2D convolution whose kernel is rounded to signed powers of two.

        y = conv2d(q(x), sign(k) * 2**p) + b,    p = clip(round(log2|k|), lowest, top)

    with `top` the largest exponent of the output channel and 2**(weight_bits - 1) - 1 levels below and with it. The
    gradient passes straight through the rounding to the float kernel `k`, which is never rounded in place. q is the
    fake quantization of the inputs to the range that training saw (`input_range`).
"""
        + _ARGS.format(first="filters, kernel_size", like="Conv2D")
        + """    Shapes:
        inputs (N, H, W, C) -> (N, H', W', filters); kernel (kh, kw, C, filters).
    """
    )
    _channel_axes = (-1,)

    def __init__(
        self, filters, kernel_size, *, weight_bits=4, zero_code=True, exponent_scope="channel", variant="q",
        activation_bits=8, **kwargs,
    ):  # fmt: skip
        super().__init__(filters, kernel_size, **kwargs)
        check_channels_last(self, kwargs.get("data_format"))
        _validate.int_in("ShiftConv2D", "groups", self.groups, 1, 1)
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)

    def build(self, input_shape):
        super().build(input_shape)
        self.input_range = self._add_range()
        self.shift = self._add_shift(self.kernel.shape) if self.variant == "ps" else None

    def call(self, inputs, training=None):
        inputs, _ = self._quantize(inputs, training)
        out = ops.conv2d(
            inputs, K.cast(self.quantized_kernel(), inputs.dtype), strides=self.strides, padding=self.padding,
            dilation_rate=self.dilation_rate,
        )  # fmt: skip
        out = out + K.cast(self.bias, out.dtype) if self.use_bias else out
        return self.activation(out)

    def get_config(self):
        return {**super().get_config(), **self._shift_config()}


@keras.saving.register_keras_serializable(package="saaug_keras")
class ShiftDepthwiseConv2D(ShiftWeights, keras.layers.DepthwiseConv2D):
    __doc__ = (
        """Depthwise 2D convolution whose kernel is rounded to signed powers of two; see `ShiftConv2D`.

        y[c*M + q] = conv2d(q(x)[c], sign(k) * 2**p)[c, q] + b
"""
        + _ARGS.format(first="kernel_size", like="DepthwiseConv2D")
        + """    Shapes:
        inputs (N, H, W, C) -> (N, H', W', C * depth_multiplier); kernel (kh, kw, C, depth_multiplier).
    """
    )
    _channel_axes = (-2, -1)

    def __init__(
        self, kernel_size, *, weight_bits=4, zero_code=True, exponent_scope="channel", variant="q", activation_bits=8,
        **kwargs,
    ):  # fmt: skip
        super().__init__(kernel_size, **kwargs)
        check_channels_last(self, kwargs.get("data_format"))
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)

    def build(self, input_shape):
        super().build(input_shape)
        self.input_range = self._add_range()
        self.shift = self._add_shift(self.kernel.shape) if self.variant == "ps" else None

    def call(self, inputs, training=None):
        inputs, _ = self._quantize(inputs, training)
        out = ops.depthwise_conv2d(
            inputs, K.cast(self.quantized_kernel(), inputs.dtype), strides=self.strides, padding=self.padding,
            dilation_rate=self.dilation_rate,
        )  # fmt: skip
        out = out + K.cast(self.bias, out.dtype) if self.use_bias else out
        return self.activation(out)

    def get_config(self):
        return {**super().get_config(), **self._shift_config()}


@keras.saving.register_keras_serializable(package="saaug_keras")
class ShiftDense(ShiftWeights, keras.layers.Dense):
    __doc__ = (
        """Fully connected layer whose kernel is rounded to signed powers of two; see `ShiftConv2D`.

        y = q(x) @ (sign(k) * 2**p) + b
"""
        + _ARGS.format(first="units", like="Dense")
        + """    Shapes:
        inputs (..., C) -> (..., units); kernel (C, units).
    """
    )
    _channel_axes = (-1,)

    def __init__(
        self, units, *, weight_bits=4, zero_code=True, exponent_scope="channel", variant="q", activation_bits=8,
        **kwargs,
    ):  # fmt: skip
        super().__init__(units, **kwargs)
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)

    def build(self, input_shape):
        super().build(input_shape)
        self.input_range = self._add_range()
        self.shift = self._add_shift(self.kernel.shape) if self.variant == "ps" else None

    def call(self, inputs, training=None):
        inputs, _ = self._quantize(inputs, training)
        out = K.matmul(inputs, K.cast(self.quantized_kernel(), inputs.dtype))
        out = out + K.cast(self.bias, out.dtype) if self.use_bias else out
        return self.activation(out) if self.activation is not None else out

    def get_config(self):
        return {**super().get_config(), **self._shift_config()}
