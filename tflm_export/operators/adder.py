"""Distances, which our kernels sum."""

from __future__ import annotations

import math

import keras
import numpy as np

from saaug_keras import layers as ours
from tflm_export import records
from tflm_export.fixed_point import ACCUMULATOR_LIMIT, quantize_multiplier
from tflm_export.operators.deployed import Constants, Deployed, Maker
from tflm_export.windows import distances, windows


class Adder(Deployed):
    """Distances on the grid of the input: acc = bias + 256 * sum of |x - weight|."""

    name = "adder"
    tap = "differences"
    terms = "adder"

    def layers(self):
        return ours.AdderConv2D, ours.AdderDepthwiseConv2D

    def read(self, layer, kernel):
        if not layer.operator.distance:
            raise ValueError(
                f"tflm_export: layer '{layer.name}': operator '{layer.operator}' must have `distance` True to be deployed as "
                "'adder', since it was trained with products. Choose another `deployed_as`."
            )
        return {}

    def check_flavour(self, op, flavour):
        if flavour == "builtin":
            raise ValueError(
                f"tflm_export: layer '{op.name}' is an add layer, which no built-in operator of TFLite Micro computes. "
                "Export with flavour='custom'. Received: flavour='builtin'."
            )

    def maker(self):
        return _Maker

    def float_sums(self, op, x):
        # NumPy: what XLA would compile for every shape takes longer to compile than to run once.
        x = np.asarray(keras.ops.convert_to_numpy(x), "float32")
        patches = windows(x, op.kernel_size, op.strides, op.dilation, op.pads, 0)
        sums = -distances(patches, op.weights.kernel, op.kind == "depthwise", "float32")
        return keras.ops.convert_to_tensor(sums.astype("float32"))

    def sums(self, patches, weights, zero_point, depthwise):
        return distances(patches, weights, depthwise, "int16") << records.ADDER_SCALE_LOG2

    def reach(self, rows):
        return np.full(len(rows), (255 << records.ADDER_SCALE_LOG2) * rows.shape[1])

    def pack(self, rows):
        """w + 128 as uint8; rows are padded to 4 with zeros."""
        return records.LAYOUT_OFFSET, np.pad(rows + 128, ((0, 0), (0, -rows.shape[1] % 4))).astype("uint8").ravel()


ADDER = Adder()


class _Maker(Maker):
    """Weights on the grid of the input. The operator's minus sign is in the multiplier."""

    def make(self):
        stored = np.round(self.weights.kernel.astype("float64") / self.input_scale) + self.source.zero_point
        clipped = np.clip(stored, -128, 127)
        self.beyond = np.abs(stored - clipped).reshape(self.count, -1).sum(axis=1)
        self.taps = stored[0].size
        integers = map(self.int32, self.columns())
        return Constants(ADDER, clipped.astype("int32"), None, *integers)

    def channel(self, channel):
        unit = 2**records.ADDER_SCALE_LOG2  # of the accumulator, per step of distance
        limit = ACCUMULATOR_LIMIT - unit * 255 * self.taps
        beyond, bias = unit * float(self.beyond[channel]), self.weights.bias[channel]
        real = -self.weights.gain[channel] * self.input_scale / self.output_scale / unit
        constant = self.constant(channel) if beyond > limit or abs(real) >= 0.5 else None
        if constant is not None:
            real, bias, beyond = 0.0, constant, 0.0
        elif beyond > limit:
            self.fail(
                channel,
                f"{self.taps:,} distances, and weights {self.beyond[channel]:,.0f} steps beyond int8, "
                "exceed an accumulator of 30 bits",
            )
        elif abs(real) >= 0.5:
            ratio = self.limited(channel, abs(real) * unit, 0.499 * unit)
            bias, real = self.rebiased(channel, ratio), real * ratio
        # The least gain that carries the bias. A smaller one is taken for 0: what the distances then add is centred.
        half = unit * 255 * self.taps / 2
        room = limit - max(beyond, half)
        if room < 1:
            self.fail(channel, f"{self.taps:,} distances leave no room for a bias in an accumulator of 30 bits")
        if abs(bias / self.output_scale) / room >= 0.25:
            bias = self.saturated(bias, abs(real) * self.output_scale * 2 * half)
        least = max(abs(bias / self.output_scale) / room * 1.001, 2.0**-30)
        if abs(real) < least:
            real, beyond = math.copysign(least, real), -half
            if least * half > 1:
                self.notes.append(
                    f"layer '{self.op.name}', output channel {channel}: a constant that may be off by "
                    f"{least * half:.2g} steps of the output; its batch norm has almost no gain."
                )
        multiplier, shift = quantize_multiplier(real)
        shift = -shift
        bias = round(bias / self.output_scale / real + beyond)
        reach = abs(bias) + unit * 255 * self.taps
        if not 1 <= shift <= 30 or reach > ACCUMULATOR_LIMIT:
            self.fail(channel, f"its accumulator may reach {reach:,} of 2**30 - 1, its shift is {shift} of 1 to 30")
        return bias, multiplier, shift
