"""Signs of the inputs' terms, one bit each, which our shift kernels sum."""

from __future__ import annotations

import math

import numpy as np

from saaug_keras import layers as ours
from tflm_export import records
from tflm_export.operators import shift


class Binary(shift.Shift):
    """Weights of one size, 64: acc = bias + sum of sign * ((x - input zero point) << 6). A channel's scale is part of its
    gain; 64 leaves room for one of up to 32."""

    name = "binary"
    tap = None

    def layers(self):
        return ours.RoundedConv2D, ours.RoundedDepthwiseConv2D, ours.RoundedDense

    def read(self, layer, kernel):
        rows = np.abs(kernel.reshape(len(kernel), -1).astype("float64"))
        gain = rows.max(axis=1)
        if (rows != gain[:, np.newaxis]).any():
            raise ValueError(
                f"tflm_export: layer '{layer.name}' ({type(layer).__name__}) must have weights of one size in every output "
                f"channel. Received: weights of operator '{layer.operator}' from {rows.min():.3g} to {rows.max():.3g}."
            )
        return {"kernel": np.where(kernel < 0, np.float32(-1), np.float32(1)), "gain": gain, "levels": 1}

    def maker(self):
        return _Maker

    def pack(self, rows):
        """A bit each, rows padded to bytes; nibbles where a channel is exported as a constant, without its weights."""
        if (np.abs(rows) != 1 << records.BIT_SCALE_LOG2).any():
            return super().pack(rows)
        return records.LAYOUT_BIT, np.packbits(rows < 0, axis=1, bitorder="little").ravel()


class _Maker(shift.Maker):
    """Every exponent is that of a bit."""

    def channel(self, channel):
        gain, bias = float(self.weights.gain[channel]), self.weights.bias[channel]
        if abs(gain) < shift.LEAST_SCALE:
            return self.constant_channel(channel, bias)
        signs = self.weights.kernel[channel].astype("int64") * int(np.sign(gain))
        powers = np.full(signs.shape, records.BIT_SCALE_LOG2)
        return self.fit(channel, signs, powers, np.float32(math.ldexp(abs(gain), -records.BIT_SCALE_LOG2)), bias)
