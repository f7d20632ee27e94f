"""What an operator is once it is deployed: how a layer is read, its integers, its sums, its packed weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saaug_keras.operators import Operator
from tflm_export import records


def trained_as(layer) -> Operator | None:
    """The operator of one of our layers, None of a stock one."""
    operator = getattr(layer, "operator", None)
    return operator if isinstance(operator, Operator) else None


class Deployed:
    """One kind of arithmetic of weighted layers. Subclasses have no state: there is one value of each.

    Class attributes:
        name: as `saaug_keras.operators.Operator.deployed_as` gives it, and in messages.
        tap: what one tap costs beside an addition, of the counts of `report.count_operations`; None for nothing.
        terms: of our custom operators in `records.CUSTOM` that compute it; None where TFLite Micro's built-in ones do.
        overridable: methods of its layers that a subclass may define anew, since `read` asks for what they give.
    """

    name = ""
    tap: str | None = None
    terms: str | None = None
    overridable: frozenset[str] = frozenset()

    @property
    def kernels(self) -> dict[str, str]:
        """{kind of op: name of our operator that computes it}; empty where the built-in ones do."""
        return {op.kind: name for name, op in records.CUSTOM.items() if op.terms == self.terms}

    def layers(self) -> tuple:
        """The Keras layers that it is read from."""
        raise NotImplementedError

    def read(self, layer, kernel) -> dict:
        """The fields of `graph.Weights` that differ from those of a layer of products of its own kernel.

        Args:
            layer: of `layers()`. kernel: float32 (O, kernel_h, kernel_w, I), as the layer deploys it.
        Raises:
            ValueError: weights that it cannot hold; the message names the layer.
        """
        return {}

    def check_flavour(self, op, flavour):
        """Raises ValueError where the flavour cannot hold a weighted op."""

    def maker(self) -> type[Maker]:
        """What finds its integers."""
        raise NotImplementedError

    def float_sums(self, op, x):
        """The layer's sums without gain and bias in floating point: x (N, H, W, C) -> a tensor (N, H', W', O)."""
        raise NotImplementedError

    def sums(self, patches, weights, zero_point, depthwise):
        """The accumulators without the bias: int64 `windows` of the input -> int64 (N, H', W', O)."""
        raise NotImplementedError

    def folded(self, bias, rows, zero_point):
        """int64 (O,): the bias that our kernels add, for which the input's zero point is nothing special."""
        return bias

    def reach(self, rows):
        """int64 (O,): the most that the sums of our kernels are, of int rows of weights."""
        raise NotImplementedError

    def pack(self, rows):
        """(layout of `records`, uint8 bytes) of int rows of weights."""
        raise NotImplementedError

    def count(self, weights, positions) -> dict:
        """Operations of a layer at so many output positions, by name."""
        taps = positions * weights.size
        return {"additions": taps} | ({self.tap: taps} if self.tap else {})

    def __repr__(self):
        return f"<deployed {self.name}>"


@dataclass(frozen=True, eq=False)
class Constants:
    """The integers of a weighted op; the accumulator is

        conv, shift:  acc = bias + sum of  weight * (x - input zero point)
        adder:        acc = bias + 256 * sum of |x - weight|

    and the result is clamp(requantize(acc) + output zero point, act_min, act_max).

    Args:
        operator: whose integers they are.
        weights: int32 (O, kernel_h, kernel_w, I). conv: [-127, 127]. shift: 0 or sign * 2**p. adder: w + zero point,
            clipped to [-128, 127], what was clipped being in the bias.
        scales: float32 (O,) of the weights; for adder, None.
        bias, multiplier, shift: int32 (O,). Requantization is SRDHM(acc, multiplier) and a rounding right shift; with
            `power_of_two`, acc * multiplier (1 or -1) and the shift. Of conv the shift may be 0 or negative (to the
            left).
    """

    operator: Deployed
    weights: np.ndarray
    scales: np.ndarray | None
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    power_of_two: bool = False

    @property
    def levels(self):
        """Exponents in use, of a shift layer: nibbles hold 7."""
        return int(np.abs(self.weights).max()).bit_length()


class Maker:
    """Finds the integers of one weighted op, channel by channel.

    A channel's contract with the kernels: 1 <= shift <= 30 (conv: shift >= -7) and an accumulator within its limit.

    Args:
        op: a weighted `graph.Op`. source, output: the grids of its tensors, with `scale` and `zero_point`.
        channels: of an `Observation`, of this op. clamp: (low, high) of its activation.
    """

    def __init__(self, op, source, output, channels, clamp):
        self.op, self.weights = op, op.weights
        self.source, self.output, self.channels, self.clamp = source, output, channels, clamp
        self.input_scale, self.output_scale = float(source.scale), float(output.scale)
        self.count = len(self.weights.kernel)
        self.notes = []

    def columns(self):
        """Per channel numbers as arrays, in the order that `channel` gives them."""
        return [np.array(column) for column in zip(*map(self.channel, range(self.count)), strict=True)]

    def fail(self, channel, what):
        raise ValueError(
            f"tflm_export: layer '{self.op.name}', output channel {channel}: {what}. Its input or weights are out of "
            "proportion to its output; check the batch norm before and after it, and the representative data."
        )

    def int32(self, column):
        """A column of integers of the accumulator, as int32."""
        for channel, value in enumerate(column):
            if not -(2**31) <= value < 2**31:
                self.fail(channel, f"a constant of {value:.3g} does not fit 32 bits")
        return column.astype("int32")

    def constant(self, channel):
        """The value of a channel that moves by less than a step of the output on representative data, else None.

        Channels behind a dead input do that, at any gain that a batch norm of zero variance gives.
        """
        low, high = np.clip(self.channels[:2, channel], *self.clamp)
        return (low + high) / 2 if high - low <= 2 * self.output_scale else None

    def limited(self, channel, real, most):
        """A gain beyond what the kernels take is cut to `most`, and noted. Returns the factor that it is wrong by."""
        self.notes.append(
            f"layer '{self.op.name}', output channel {channel}: its gain of {real:.3g} was cut to {most:.3g}. A batch "
            "norm of almost no variance does that."
        )
        return most / real

    def saturated(self, bias, swing):
        """A real bias that does not fit, cut to where it still drives the output to its end for every input.

        Args:
            bias: real. swing: the most that the input moves the channel by, real.
        """
        most = swing + 512 * self.output_scale
        return min(max(bias, -most), most)

    def rebiased(self, channel, ratio):
        """The real bias of a channel whose gain is wrong by the factor `ratio`: its mean stays right."""
        bias = self.weights.bias[channel]
        return bias + (1 - ratio) * (self.channels[2, channel] - bias)
