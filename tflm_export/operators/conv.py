"""Products with int8 weights, of TFLite Micro's own operators; and what all sums of products share."""

from __future__ import annotations

import keras
import numpy as np

from saaug_keras import layers as ours
from saaug_keras import ops as saaug_ops
from tflm_export.fixed_point import effective_scale, quantize_multiplier
from tflm_export.operators.deployed import Constants, Deployed, Maker, trained_as


class Products(Deployed):
    """Sums of products: acc = bias + sum of weight * (x - input zero point)."""

    def float_sums(self, op, x):
        K, kernel = keras.ops, op.weights.kernel
        if any(op.pads):
            x = K.pad(x, ((0, 0), (op.pads[0], op.pads[2]), (op.pads[1], op.pads[3]), (0, 0)))
        run = saaug_ops.conv2d
        if op.kind == "depthwise":
            run, inputs = saaug_ops.depthwise_conv2d, x.shape[-1]
            kernel = kernel.reshape(inputs, len(kernel) // inputs, *op.kernel_size).transpose(2, 3, 0, 1)
        else:
            kernel = kernel.transpose(1, 2, 3, 0)
        return run(x, K.convert_to_tensor(kernel), strides=op.strides, padding="valid", dilation_rate=op.dilation)

    def sums(self, patches, weights, zero_point, depthwise):
        # float64 products of int8 values and their sums are exact below 2**53, and BLAS is fast.
        patches = patches - zero_point
        if not depthwise:
            left = np.ascontiguousarray(patches, "float64").reshape(*patches.shape[:3], -1)
            return np.rint(left @ weights.reshape(len(weights), -1).T.astype("float64")).astype("int64")
        channels = patches.shape[-1]
        kernel = weights[..., 0].reshape(channels, -1, *weights.shape[1:3])  # C, multiplier, kernel_h, kernel_w
        out = np.einsum("nyxijc,cmij->nyxcm", patches, kernel, optimize=False)
        return out.reshape(*patches.shape[:3], -1)


class Conv(Products):
    """Products with int8 weights per output channel, which TFLite Micro's own operators compute."""

    name = "conv"
    tap = "multiplications"

    def layers(self):
        plain = keras.layers
        return (
            ours.RoundedConv2D,
            ours.RoundedDepthwiseConv2D,
            ours.RoundedDense,
            plain.Conv2D,
            plain.DepthwiseConv2D,
            plain.Dense,
        )

    def read(self, layer, kernel):
        """An operator's weights are what was trained, so int8 must hold them, where it rounds a plain convolution's."""
        if trained_as(layer) is None:
            return {}
        channels = kernel.reshape(len(kernel), -1).astype("float64")
        steps = 127 * channels / np.maximum(np.abs(channels).max(axis=1, keepdims=True), 1e-30)
        if (off := np.abs(steps - np.round(steps)).max(initial=0)) > 1e-3:
            raise ValueError(
                f"tflm_export: layer '{layer.name}' ({type(layer).__name__}) must have weights that are multiples of 127ths "
                "of each output channel's largest, which int8 products hold exactly. Received: weights of operator "
                f"'{layer.operator}' that are {off:.2g} of such a step off."
            )
        return {}

    def maker(self):
        return _Maker


CONV = Conv()


class _Maker(Maker):
    """Products: symmetric int8 weights per channel."""

    def make(self):
        weights, scales, bias, multiplier, shift = self.columns()
        integers = map(self.int32, (bias, multiplier, shift))
        return Constants(CONV, weights.astype("int32"), scales.astype("float32"), *integers)

    def channel(self, channel):
        kernel = self.weights.kernel[channel].astype("float64") * self.weights.gain[channel]
        real_bias = self.weights.bias[channel]
        limit = 2**31 - 1 - 256 * 127 * kernel.size  # the zero point may be folded into the bias
        if limit < 2**30:
            self.fail(channel, f"{kernel.size:,} products of int8 do not fit an int32 accumulator")
        # A kernel smaller than this moves the output by less than a thousandth of its step.
        smallest = self.output_scale / self.input_scale * 2.0**-24
        scale = np.float32(max(np.abs(kernel).max(), smallest) / 127)
        real = effective_scale(self.source.scale, scale, self.output.scale)
        if real > 127:
            constant = self.constant(channel)
            if constant is None:
                ratio = self.limited(channel, real, 127)
                kernel, real_bias, scale = kernel * ratio, self.rebiased(channel, ratio), np.float32(scale * ratio)
            else:
                kernel, real_bias, scale = np.zeros_like(kernel), constant, np.float32(smallest)
        if abs(real_bias) > min(limit * self.input_scale * float(scale), 2**29 * self.output_scale):
            real_bias = self.saturated(real_bias, 255 * self.input_scale * float(scale) * 127 * kernel.size)
        while abs(real_bias) / (self.input_scale * float(scale)) > limit:
            scale = np.float32(scale * 2)  # the bias must fit beside the products
        real = effective_scale(self.source.scale, scale, self.output.scale)
        if real > 128 or abs(real_bias) >= 2**29 * self.output_scale:
            self.fail(channel, f"its bias of {real_bias / self.output_scale:.3g} output steps does not fit")
        stored = np.clip(np.round(kernel / float(scale)), -127, 127)
        bias = round(real_bias / (self.input_scale * float(scale)))
        multiplier, shift = quantize_multiplier(real)
        return stored, scale, bias, multiplier, -shift
