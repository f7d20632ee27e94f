"""Products with signed powers of two, which our kernels shift."""

from __future__ import annotations

import math

import numpy as np

from saaug_keras import layers as ours
from tflm_export import records
from tflm_export.fixed_point import ACCUMULATOR_LIMIT, effective_scale, quantize_multiplier
from tflm_export.operators import deployed
from tflm_export.operators.conv import Products

NIBBLE_LEVELS = 7  # exponents that a 4-bit code holds beside sign and zero
BYTE_LEVELS = 16
LEAST_SCALE = 2.0**-100  # of a weight, far below whatever moves an output, far above float32's end


class Shift(Products):
    """Products with signed powers of two: acc = bias + sum of sign * ((x - input zero point) << exponent)."""

    name = "shift"
    tap = "shifts"
    terms = "shift"
    overridable = frozenset({"quantized_kernel", "round_kernel"})  # what they give is refused unless powers of two

    def layers(self):
        return ours.ShiftConv2D, ours.ShiftDepthwiseConv2D, ours.ShiftDense

    def read(self, layer, kernel):
        return {"levels": layer.operator.levels}

    def check_flavour(self, op, flavour):
        if flavour == "builtin" and op.weights.levels > NIBBLE_LEVELS:
            raise ValueError(
                f"tflm_export: layer '{op.name}' has shift weights of {op.weights.levels} exponents; int8 holds "
                f"{NIBBLE_LEVELS} (4 bits with a zero code). Export with flavour='custom'. Received: flavour='builtin'."
            )

    def maker(self):
        return Maker

    def folded(self, bias, rows, zero_point):
        return bias - zero_point * rows.sum(axis=1, dtype="int64")

    def reach(self, rows):
        return 128 * np.abs(rows.astype("int64")).sum(axis=1)

    def pack(self, rows):
        """Nibbles hold exponents 0 to 6, two codes a byte, low nibble first; bytes 0 to 15. Rows are padded to 4 codes."""
        sign, exponent = _codes(np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))))
        if exponent.max(initial=0) > NIBBLE_LEVELS:
            return records.LAYOUT_BYTE, np.where(sign == 1, -exponent, exponent).astype("int8").view("uint8").ravel()
        codes = np.where(exponent > 0, sign * 8 + exponent, 0).astype("uint8")
        return records.LAYOUT_NIBBLE, (codes[:, 0::2] | codes[:, 1::2] << 4).ravel()

    def count(self, weights, positions):
        used = positions * int(np.count_nonzero(weights))
        return {"additions": used} | ({self.tap: used} if self.tap else {})


def _codes(rows):
    """int rows of 0 and sign * 2**p -> (sign bit, p + 1 or 0)."""
    magnitude = np.abs(rows)
    exponent = np.where(magnitude > 0, np.log2(np.maximum(magnitude, 1)).astype("int64") + 1, 0)
    assert ((magnitude == 0) | (magnitude == 1 << np.maximum(exponent - 1, 0))).all(), "not powers of two"
    return (rows < 0).astype("int64"), exponent


class Maker(deployed.Maker):
    """Signed powers of two, exactly. A negative gain flips signs; a channel's least exponent is 0 where that fits.

    Each output channel counts its exponents from its own least one, and a code holds 16 of them (7 in half a byte, for
    layers that can have no more): a channel whose exponents lie further apart is refused, whatever the layer's bits.
    """

    def make(self):
        fraction, self.exponents = np.frexp(self.weights.kernel.astype("float64"))
        if not np.isin(np.abs(fraction), (0.0, 0.5)).all():
            raise ValueError(f"tflm_export: layer '{self.op.name}': its deployed kernel must be signed powers of two.")
        self.most = (BYTE_LEVELS if self.weights.levels > NIBBLE_LEVELS else NIBBLE_LEVELS) - 1
        weights, scales, bias, multiplier, shift = self.columns()
        integers = map(self.int32, (bias, multiplier, shift))
        return deployed.Constants(self.weights.operator, weights.astype("int32"), scales.astype("float32"), *integers)

    def channel(self, channel):
        gain = self.weights.gain[channel]
        signs = np.sign(self.weights.kernel[channel]).astype("int64") * int(np.sign(gain))
        used = signs != 0
        if not used.any():
            return self.constant_channel(channel, self.weights.bias[channel])
        exponents = self.exponents[channel] - 1
        least = int(exponents[used].min())
        powers = np.where(used, exponents - least, 0)
        if powers.max() > self.most:
            raise ValueError(
                f"tflm_export: layer '{self.op.name}', output channel {channel}: its weights must span at most "
                f"{self.most + 1} exponents, so many have a code. Received: 2**{least} to 2**{exponents[used].max()}. "
                "Train with weight_bits <= 5, which always fit."
            )
        if abs(gain) * 2.0**least < LEAST_SCALE:  # dead: a channel of zeros without the zero code is one of 2**-125
            return self.constant_channel(channel, self.weights.bias[channel])
        return self.fit(channel, signs, powers, np.float32(math.ldexp(abs(gain), least)), self.weights.bias[channel])

    def constant_channel(self, channel, value):
        zeros = np.zeros(self.weights.kernel[channel].shape, "int64")
        scale = np.float32(2.0**-10 * self.output_scale / self.input_scale)
        return self.fit(channel, zeros, zeros, scale, value)

    def fit(self, channel, signs, powers, scale, real_bias):
        """Doubles or halves the scale until shift and accumulator fit.

        Too fine a scale is doubled: exponents drop by one, the least are lost. Too coarse a one is halved.
        """
        lost, doubled = 0.0, False
        while True:
            used = signs != 0
            real = effective_scale(self.source.scale, scale, self.output.scale)
            multiplier, shift = quantize_multiplier(real)
            shift = -shift
            bias = real_bias / (self.input_scale * float(scale))
            stored = signs * np.left_shift(1, powers)
            cut = self.saturated(real_bias, 255 * real * self.output_scale * int(np.abs(stored).sum()))
            reach = abs(round(bias) - self.source.zero_point * int(stored.sum())) + 128 * int(np.abs(stored).sum())
            if shift < 1 and (doubled or used.any() and int(powers.max()) == self.most):
                constant = self.constant(channel)
                if constant is not None:
                    return self.constant_channel(channel, constant)
                if doubled:  # the bias asks for a coarser scale, the gain for a finer one
                    self.fail(channel, f"its bias of {real_bias / self.output_scale:.3g} output steps does not fit")
                ratio = self.limited(channel, real, 0.499)
                real_bias, scale = self.rebiased(channel, ratio), np.float32(scale * ratio)
            elif shift < 1:
                powers, scale = np.where(used, powers + 1, 0), np.float32(scale / 2)
            elif reach > ACCUMULATOR_LIMIT and abs(cut) < abs(real_bias):
                real_bias = cut
            elif shift > 30 or reach > ACCUMULATOR_LIMIT:
                lost += 128 * real * int((used & (powers == 0)).sum())
                if lost > 0.25:
                    self.fail(channel, f"its accumulator may reach {reach:,}, more than 2**30 - 1")
                signs, scale, doubled = np.where(powers == 0, 0, signs), np.float32(scale * 2), True
                powers = np.where(signs != 0, powers - 1, 0)
            else:
                return stored, scale, round(bias), multiplier, shift
