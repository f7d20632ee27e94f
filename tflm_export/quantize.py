"""Scales, zero points and integer constants: a `Graph` of floats becomes a `Network` of integers.

A tensor that a multiplication-free layer reads takes the range which that layer was trained with, so that int8 is the
grid of training. Every other tensor takes the range of representative data. The image is int8 = pixel - 128. A layer
trained with inputs of fewer bits reads a copy of its input on their grid, which a step before it makes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from saaug_keras import _validate
from saaug_keras import ops as saaug_ops
from tflm_export import graph as ir

ACCUMULATOR_LIMIT = 2**30 - 1  # of our kernels: leaves room for rounding
ADDER_SCALE_LOG2 = 8  # an add layer's accumulator holds 2**8 times the sum of distances
NIBBLE_LEVELS = 7  # exponents that a 4-bit code holds beside sign and zero
BYTE_LEVELS = 16
_LEAST_SCALE = 2.0**-100  # of a weight, far below whatever moves an output, far above float32's end
PIXELS = (np.float32(1 / 255), -128)  # scale and zero point of an image in [0, 1]
SAME_GRID = ("resize", "max_pool", "average_pool", "reshape", "pad")  # kinds whose output lies on the input's grid


@dataclass(frozen=True)
class Tensor:
    """An int8 activation: value = scale * (stored - zero_point). `shape` is (H, W, C) or (C,), without the batch."""

    name: str
    shape: tuple[int, ...]
    scale: np.float32
    zero_point: int

    def quantize(self, values):
        """int8 of float values: to nearest, halves to even, saturating."""
        stored = np.round(np.asarray(values, "float32") / self.scale) + self.zero_point
        return np.clip(stored, -128, 127).astype("int8")

    def dequantize(self, stored):
        """float32 of int8 values."""
        return (np.asarray(stored, "int32") - self.zero_point).astype("float32") * self.scale


@dataclass(frozen=True, eq=False)
class Constants:
    """The integers of a weighted op; the accumulator is

        conv, shift:  acc = bias + sum of  weight * (x - input zero point)
        adder:        acc = bias + 256 * sum of |x - weight|

    and the result is clamp(requantize(acc) + output zero point, act_min, act_max).

    Args:
        operator: "conv", "shift" or "adder".
        weights: int32 (O, kernel_h, kernel_w, I). conv: [-127, 127]. shift: 0 or sign * 2**p. adder: w + zero point,
            clipped to [-128, 127], what was clipped being in the bias.
        scales: float32 (O,) of the weights; for adder, None.
        bias, multiplier, shift: int32 (O,). Requantization is SRDHM(acc, multiplier) and a rounding right shift; with
            `power_of_two`, acc * multiplier (1 or -1) and the shift. Of conv the shift may be 0 or negative (to the
            left).
    """

    operator: str
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


@dataclass(frozen=True, eq=False)
class Step:
    """One integer operation: the `graph.Op` it came from, its tensors, its constants, its clamp."""

    op: ir.Op
    inputs: tuple[Tensor, ...]
    output: Tensor
    constants: Constants | None
    act_min: int
    act_max: int


@dataclass(frozen=True, eq=False)
class Network:
    """The integer network: what every back end writes and the reference interpreter runs. `notes` say where it is not
    quite the float network, in words."""

    name: str
    steps: tuple[Step, ...]
    tensors: dict[str, Tensor]
    input: Tensor
    output: Tensor
    flavour: str
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------------
# Fixed-point numbers, as TFLite Micro makes them


def quantize_multiplier(real):
    """A double as (Q31 multiplier, shift): real = multiplier * 2**-31 * 2**shift, multiplier in [2**30, 2**31).

    Halves are rounded away from zero; below 2**-32 both are 0.
    """
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(abs(fraction) * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    return (multiplier if real > 0 else -multiplier), shift


def effective_scale(input_scale, weight_scale, output_scale):
    """float32 scales -> the double that an accumulator is multiplied by."""
    return float(np.float32(input_scale)) * float(np.float32(weight_scale)) / float(np.float32(output_scale))


# ---------------------------------------------------------------------------------------------------------------------
# Ranges of tensors


@dataclass(frozen=True, eq=False)
class Observation:
    """What representative data showed.

    Args:
        ranges: tensor name -> (smallest, largest) value.
        channels: name of a weighted op -> float64 (3, O): smallest, largest and mean value of every output channel
            before the activation.
    """

    ranges: dict[str, tuple[float, float]]
    channels: dict[str, np.ndarray]


def observe(graph: ir.Graph, images, *, batch_size=32) -> Observation:
    """Runs the graph in floating point on float32 (N, H, W, C) images."""
    ranges, low, high, total = {}, {}, {}, {}
    for start in range(0, len(images), batch_size):
        unclamped = {}
        batch = images[start : start + batch_size]
        for name, values in ir.run_float(graph, batch, unclamped).items():
            smallest, largest = float(values.min()), float(values.max())
            if not math.isfinite(smallest + largest):
                raise ValueError(f"tflm_export: tensor '{name}' is not finite on the representative data.")
            known = ranges.get(name, (smallest, largest))
            ranges[name] = (min(smallest, known[0]), max(largest, known[1]))
        for name, values in unclamped.items():
            values = values.reshape(-1, values.shape[-1])
            low[name] = np.minimum(low.get(name, np.inf), values.min(axis=0))
            high[name] = np.maximum(high.get(name, -np.inf), values.max(axis=0))
            total[name] = total.get(name, 0) + values.mean(axis=0, dtype="float64") * (len(batch) / len(images))
    channels = {name: np.stack([low[name], high[name], total[name]]).astype("float64") for name in low}
    return Observation(ranges, channels)


def check_observation(observation: Observation, graph: ir.Graph):
    """Refuses an observation of another network."""
    wanted = {op.name: (3, graph.shapes[op.output][-1]) for op in graph.ops if op.weights is not None}
    found = {name: values.shape for name, values in observation.channels.items()}
    values = [*observation.ranges.values(), *observation.channels.values()]
    if set(observation.ranges) != set(graph.shapes) or found != wanted or not all(np.isfinite(v).all() for v in values):
        raise ValueError(
            "tflm_export: `observation` must be what `tflm_export.observe` gave of this model. Received: one of "
            f"{len(observation.ranges)} tensors and {len(found)} layers; the model has {len(graph.shapes)} and {len(wanted)}."
        )


def choose_tensors(
    graph: ir.Graph, observation: Observation, input_range=None, *, power_of_two=False
) -> dict[str, Tensor]:
    """The grid of every tensor.

    Args:
        observation: what `observe` gave.
        input_range: (low, high) of the image; None for pixels, [0, 1] in steps of 1/255.
        power_of_two: round every scale but the image's up to a power of two.
    """
    group = {name: name for name in graph.shapes}  # tensors that must share a grid -> their first one

    def root(name):
        while group[name] != name:
            name = group[name]
        return name

    for op in graph.ops:
        if op.kind in SAME_GRID:
            group[root(op.output)] = root(op.inputs[0])
    members = {}
    for name in graph.shapes:
        members.setdefault(root(name), []).append(name)
    tensors = {}
    for names in members.values():
        scale, zero_point = _choose_grid(graph, names, observation.ranges, input_range)
        if power_of_two and graph.input not in names:
            scale, zero_point = _power_of_two_grid(float(scale), zero_point)
        for name in names:
            tensors[name] = Tensor(name, graph.shapes[name], np.float32(scale), int(zero_point))
    _coarsen(graph, tensors, lambda name: members[root(name)], power_of_two)
    return tensors


def _coarsen(graph, tensors, group_of, power_of_two):
    """Widens grids that are finer than the operators of TFLite Micro can make or read; only tensors of values that hardly
    vary, beside those that they are computed of, have such."""
    changed = True
    while changed:
        changed = False
        for op in graph.ops:
            name, least = _finest_step(op, tensors)
            if tensors[name].scale >= least:
                continue
            if graph.input in group_of(name):
                raise ValueError(
                    f"tflm_export: layer '{op.name}' cannot read steps as fine as the input's, {tensors[name].scale:.3g}. "
                    "Widen `input_range`."
                )
            scale = math.ldexp(1.0, math.ceil(math.log2(least))) if power_of_two else least
            for member in group_of(name):
                tensors[member] = dataclasses.replace(tensors[member], scale=np.float32(scale))
            changed = True


def _finest_step(op, tensors):
    """(tensor, least scale of it): below, a fixed-point constant of TFLite Micro's or a shifted sum leaves 32 bits."""
    scales = [tensors[name].scale for name in op.inputs]
    clamp = np.float32(6 * 2.0**-29 if op.activation in ("relu", "relu6") else 0)  # 6 is an int32 of steps
    if op.kind == "softmax":
        return op.inputs[0], np.float32(2.0**-25)  # of differences in 26 fraction bits
    if op.kind == "hard_swish":  # a 128th of the input's, and a little to spare
        return op.output, np.float32(scales[0] / np.float32(127))
    if op.kind == "add":
        return op.output, max(clamp, np.float32(float(max(scales)) * 2.0**-18))  # of sums in 20 fraction bits
    if op.kind == "multiply":
        return op.output, max(clamp, np.float32(float(scales[0]) * float(scales[1]) * 2.0**-14))  # products: 16 bits
    if op.kind == "mean":
        return op.output, np.float32(float(scales[0]) * 2.0**-20)
    return op.output, clamp


def _power_of_two_grid(scale, zero_point):
    """The grid of a power of two that covers a grid's range, or all but a twentieth of it."""
    exponent = math.ceil(math.log2(scale) - 0.07)
    rounded = math.ldexp(1.0, exponent)
    low = (-128 - zero_point) * scale
    return np.float32(rounded), max(-128, min(127, round(-128 - low / rounded)))


def _choose_grid(graph, names, ranges, input_range):
    if graph.input in names:
        return PIXELS if input_range is None else saaug_ops.nudged_range(*input_range, 8)[2:]
    for op in graph.ops:
        if op.kind == "softmax" and op.output in names:
            return np.float32(1 / 256), -128
    for op in graph.ops:  # the first reader decides; others of the same tensor saw the same values
        if op.weights is not None and op.inputs[0] in names and op.weights.input_range is not None:
            return _grid_of_reader(op.weights)
    for op in graph.ops:
        if op.activation == "hard_sigmoid" and op.output in names:
            return np.float32(1 / 255), -128
    low = min(ranges[name][0] for name in names)
    high = max(ranges[name][1] for name in names)
    readers = {op.kind for op in graph.ops if set(op.inputs) & set(names)}
    if readers == {"hard_swish"}:
        low = max(low, -3.0)  # below, h-swish is 0: the steps are better spent on the rest
    return saaug_ops.nudged_range(low, high, 8)[2:]


def _codes(weights):
    """(scale, code of 0, largest code) of a layer's input quantizer; codes count from 0."""
    bits = weights.input_bits
    scale, zero_point = saaug_ops.nudged_range(*weights.input_range, bits)[2:]
    return scale, zero_point + 2 ** (bits - 1), 2**bits - 1


def _grid_of_reader(weights):
    """The int8 grid (scale, zero point) of what a layer reads: a code is an odd number of steps, with 8 bits one.

    A value that is first rounded to int8 and then to the few codes then comes out as if it were rounded once.
    """
    scale, code, top = _codes(weights)
    steps = 255 // top
    steps -= 1 - steps % 2
    return np.float32(scale / steps), code * steps - 128


# ---------------------------------------------------------------------------------------------------------------------
# Constants of weighted ops


def quantize(graph: ir.Graph, tensors, observation: Observation, *, flavour="builtin") -> Network:
    """Makes the integer network.

    Args:
        graph, tensors, observation: what `graph.lower`, `choose_tensors` and `observe` gave.
        flavour: "builtin" or "custom".
    Raises:
        ValueError: a layer that the flavour cannot hold, or an accumulator that would overflow; names the layer.
    """
    steps, notes, tensors = [], [], dict(tensors)
    for op in graph.ops:
        inputs, output = tuple(tensors[name] for name in op.inputs), tensors[op.output]
        constants = None
        if op.weights is not None and op.weights.input_bits < 8:
            op, narrowing = _narrow(op, inputs[0])
            steps.extend(narrowing)
            inputs = (narrowing[-1].output,)
            tensors.update({step.output.name: step.output for step in narrowing})
        if op.weights is not None and not _takes_pads(op, inputs[0].shape, flavour):
            op, padding = _split_pads(op, inputs[0])
            steps.append(padding)
            inputs = (padding.output,)
            tensors[padding.output.name] = padding.output
        if op.weights is not None:
            check_flavour(op, flavour)
            channels = observation.channels[op.name]
            maker = _MAKERS[op.weights.operator](op, inputs[0], output, channels)
            constants = maker.make()
            notes.extend(maker.notes)
        low, high = ir.CLAMPS[op.activation]
        act_min = -128 if low == -math.inf else max(-128, _clamp_point(low, output))
        act_max = 127 if high == math.inf else min(127, _clamp_point(high, output))
        steps.append(Step(op, inputs, output, constants, act_min, act_max))
    ends = tensors[graph.input], tensors[graph.output]
    if any(op.weights is not None and op.weights.input_bits < 8 for op in graph.ops):
        # In the order of computation: TFLite Micro's planner then finds the smaller arena.
        tensors = {tensor.name: tensor for tensor in (ends[0], *(step.output for step in steps))}
    return Network(graph.name, tuple(steps), tensors, *ends, flavour, tuple(notes))


def _narrow(op, source):
    """The op that reads a tensor of few codes, and the steps that make it of an int8 tensor.

    They multiply by 1, and saturate as int8 does: to codes of which the largest is 127, and back to a grid on which the
    least is -128.
    """
    scale, code, top = _codes(op.weights)
    steps = []
    if len(source.shape) == 1:
        image = dataclasses.replace(source, name=f"{op.name}/image", shape=(1, 1, *source.shape))
        steps.append(Step(ir.Op("reshape", image.name, (source.name,), image.name), (source,), image, None, -128, 127))
        source = image
    codes = Tensor(f"{op.name}/codes", source.shape, np.float32(scale), code + 127 - top)
    narrow = Tensor(f"{op.name}/narrow", source.shape, *_grid_of_reader(op.weights))
    steps += [_copy(source, codes), _copy(codes, narrow)]
    return dataclasses.replace(op, inputs=(narrow.name,)), steps


def _copy(source, output):
    """A depthwise step that brings a tensor to another grid."""
    channels, fine = source.shape[-1], 64  # a weight of 1 in steps of 1/64, which keep what the multiplier rounds off
    multiplier, shift = quantize_multiplier(effective_scale(source.scale, 1 / fine, output.scale))
    full = lambda value: np.full(channels, value, "int32")  # noqa: E731
    weights = full(fine).reshape(channels, 1, 1, 1)
    scales = np.full(channels, 1 / fine, "float32")
    constants = Constants("conv", weights, scales, full(0), full(multiplier), full(-shift))
    op = ir.Op("depthwise", output.name, (source.name,), output.name)
    return Step(op, (source,), output, constants, -128, 127)


def _takes_pads(op, input_shape, flavour):
    """Whether a weighted op makes its zeros itself.

    The built-in operators know "same" and "valid"; ours any zeros that a window with a tap on the image still reaches.
    """
    if op.kind == "dense" or ir.padding_is_same(op, input_shape) is not None:
        return True
    if flavour == "builtin" or op.weights.operator == "conv":
        return False
    reach = [(size - 1) * step for size, step in zip(op.kernel_size, op.dilation, strict=True)]
    return all(zeros <= reach[side % 2] for side, zeros in enumerate(op.pads))


def _split_pads(op, source):
    """The op without its zeros, and the step that makes them."""
    height, width, channels = source.shape
    top, left, bottom, right = op.pads
    shape = (height + top + bottom, width + left + right, channels)
    padded = Tensor(f"{op.name}/padded", shape, source.scale, source.zero_point)
    pad = ir.Op("pad", padded.name, (source.name,), padded.name, pads=op.pads)
    op = dataclasses.replace(op, inputs=(padded.name,), pads=(0, 0, 0, 0))
    return op, Step(pad, (source,), padded, None, -128, 127)


def _clamp_point(value, tensor):
    # float32 division, halves away from zero: what TFLite Micro does for its fused activations
    quotient = np.float32(value) / tensor.scale
    return tensor.zero_point + math.floor(float(quotient) + 0.5)


def check_flavour(op: ir.Op, flavour):
    """The builtin flavour holds products of int8 weights alone."""
    _validate.one_of("tflm_export.quantize", "operator", op.weights.operator, _MAKERS)
    if flavour == "custom":
        return
    if op.weights.operator == "adder":
        raise ValueError(
            f"tflm_export: layer '{op.name}' is an add layer, which no built-in operator of TFLite Micro computes. "
            "Export with flavour='custom'. Received: flavour='builtin'."
        )
    if op.weights.operator == "shift" and op.weights.levels > NIBBLE_LEVELS:
        raise ValueError(
            f"tflm_export: layer '{op.name}' has shift weights of {op.weights.levels} exponents; int8 holds "
            f"{NIBBLE_LEVELS} (4 bits with a zero code). Export with flavour='custom'. Received: flavour='builtin'."
        )


class _Maker:
    """Finds the integers of one weighted op, channel by channel.

    A channel's contract with the kernels: 1 <= shift <= 30 (conv: shift >= -7) and an accumulator within its limit.
    """

    def __init__(self, op, source, output, channels):
        self.op, self.weights = op, op.weights
        self.source, self.output, self.channels = source, output, channels
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
        low, high = np.clip(self.channels[:2, channel], *ir.CLAMPS[self.op.activation])
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


class _Conv(_Maker):
    """Products: symmetric int8 weights per channel."""

    def make(self):
        weights, scales, bias, multiplier, shift = self.columns()
        integers = map(self.int32, (bias, multiplier, shift))
        return Constants("conv", weights.astype("int32"), scales.astype("float32"), *integers)

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


class _Shift(_Maker):
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
        return Constants("shift", weights.astype("int32"), scales.astype("float32"), *integers)

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
        if abs(gain) * 2.0**least < _LEAST_SCALE:  # dead: a channel of zeros without the zero code is one of 2**-125
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


class _Adder(_Maker):
    """Weights on the grid of the input. The operator's minus sign is in the multiplier."""

    def make(self):
        stored = np.round(self.weights.kernel.astype("float64") / self.input_scale) + self.source.zero_point
        clipped = np.clip(stored, -128, 127)
        self.beyond = np.abs(stored - clipped).reshape(self.count, -1).sum(axis=1)
        self.taps = stored[0].size
        integers = map(self.int32, self.columns())
        return Constants("adder", clipped.astype("int32"), None, *integers)

    def channel(self, channel):
        unit = 2**ADDER_SCALE_LOG2  # of the accumulator, per step of distance
        limit = ACCUMULATOR_LIMIT - unit * 255 * self.taps
        beyond, bias = unit * float(self.beyond[channel]), self.weights.bias[channel]
        real = -self.weights.gain[channel] * self.input_scale / self.output_scale / unit
        constant = self.constant(channel) if beyond > limit or abs(real) >= 0.5 else None
        if constant is not None:
            real, bias, beyond = 0.0, constant, 0.0
        elif beyond > limit:
            self.fail(channel, f"{self.taps:,} distances, and weights {self.beyond[channel]:,.0f} steps beyond int8, "
                      "exceed an accumulator of 30 bits")  # fmt: skip
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


_MAKERS = {"conv": _Conv, "shift": _Shift, "adder": _Adder}
