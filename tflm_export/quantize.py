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

from saaug_keras import ops as saaug_ops
from saaug_keras.operators.channelshift import kernel_of
from tflm_export import graph as ir
from tflm_export.fixed_point import effective_scale, quantize_multiplier
from tflm_export.operators import CONV, Constants

PIXELS = (np.float32(1 / 255), -128)  # scale and zero point of an image in [0, 1]
FIXED_OUTPUT = ("sigmoid", "softmax")  # kinds whose output is in steps of 1/256 from 0
# Kinds whose output lies on the input's grid.
SAME_GRID = ("average_pool", "channel_shift", "max_pool", "pad", "reshape", "resize")


# The finest steps that TFLite Micro's h-swish reads: below 2**-22.4, a shift leaves 15 bits.
HARD_SWISH_STEP = np.float32(2.0**-22)


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


def choose_tensors(graph: ir.Graph, observation: Observation, input_range=None, *, power_of_two=False) -> dict[str, Tensor]:
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
    # What is read to be joined and for nothing else lies on the grid of the whole; the rest is brought there.
    bound = {root(name) for name in _bound_tensors(graph)}
    for op in graph.ops:
        for name in op.inputs if op.kind == "concatenate" else ():
            if graph.consumers(name) == [op] and root(name) not in bound:
                group[root(name)] = root(op.output)
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


def _bound_tensors(graph):
    """Names of tensors whose grid is not free: the image, probabilities, and what a layer of ours was trained to read."""
    for op in graph.ops:
        if op.kind in FIXED_OUTPUT or op.activation == "hard_sigmoid":
            yield op.output
        if op.weights is not None and op.weights.input_range is not None:
            yield op.inputs[0]
    yield graph.input


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
    if op.kind in FIXED_OUTPUT:
        return op.inputs[0], np.float32(2.0**-25)  # of differences in 26 fraction bits, or values in 27
    if op.kind == "hard_swish" and scales[0] < HARD_SWISH_STEP:
        return op.inputs[0], HARD_SWISH_STEP
    if op.kind == "hard_swish":  # a 128th of the input's, and a little to spare
        return op.output, np.float32(scales[0] / np.float32(127))
    if op.kind == "add":
        return op.output, max(clamp, np.float32(float(max(scales)) * 2.0**-18))  # of sums in 20 fraction bits
    if op.kind == "multiply":
        return op.output, max(clamp, np.float32(float(scales[0]) * float(scales[1]) * 2.0**-14))  # products: 16 bits
    if op.kind == "concatenate":
        return op.output, np.float32(float(max(scales)) * 2.0**-12)
    if op.kind in ("mean", "leaky_relu"):
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
        if op.kind in FIXED_OUTPUT and op.output in names:
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
        if op.kind == "concatenate":
            op, bringing = _join(op, inputs, output)
            steps.extend(bringing)
            tensors.update({step.output.name: step.output for step in bringing})
            inputs = tuple(tensors[name] for name in op.inputs)
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
            operator = op.weights.operator
            operator.check_flavour(op, flavour)
            clamp = ir.CLAMPS[op.activation]
            maker = operator.maker()(op, inputs[0], output, observation.channels[op.name], clamp)
            constants = maker.make()
            notes.extend(maker.notes)
        elif op.kind == "channel_shift" and flavour == "builtin":
            op = dataclasses.replace(op, kind="depthwise")
            constants = _picking(kernel_of(*op.kernel_size, output.shape[-1]), inputs[0], output)
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
        steps.append(_reshaped(source, image))
        source = image
    codes = Tensor(f"{op.name}/codes", source.shape, np.float32(scale), code + 127 - top)
    narrow = Tensor(f"{op.name}/narrow", source.shape, *_grid_of_reader(op.weights))
    steps += [_copy(source, codes), _copy(codes, narrow)]
    return dataclasses.replace(op, inputs=(narrow.name,)), steps


def _join(op, inputs, output):
    """The concatenation of tensors that lie on its output's grid, and the steps that bring those that do not there."""
    steps, names = [], []
    for index, source in enumerate(inputs):
        if (source.scale, source.zero_point) == (output.scale, output.zero_point):
            names.append(source.name)
            continue
        part = dataclasses.replace(output, name=f"{op.name}/part{index}", shape=source.shape)
        if len(source.shape) == 1:  # a vector as an image of one pixel, and back
            pixel, moved = (
                dataclasses.replace(tensor, name=f"{tensor.name}/{end}", shape=(1, 1, *source.shape))
                for tensor, end in ((dataclasses.replace(source, name=part.name), "from"), (part, "to"))
            )
            steps += [_reshaped(source, pixel), _copy(pixel, moved), _reshaped(moved, part)]
        else:
            steps.append(_copy(source, part))
        names.append(part.name)
    return dataclasses.replace(op, inputs=tuple(names)), steps


def _reshaped(source, output):
    return Step(ir.Op("reshape", output.name, (source.name,), output.name), (source,), output, None, -128, 127)


def _copy(source, output):
    """A depthwise step that brings a tensor to another grid."""
    constants = _picking(np.ones((1, 1, source.shape[-1], 1)), source, output)
    op = ir.Op("depthwise", output.name, (source.name,), output.name)
    return Step(op, (source,), output, constants, -128, 127)


def _picking(kernel, source, output):
    """The constants of a depthwise step with a kernel (kernel_h, kernel_w, C, 1) of zeros and ones."""
    channels, fine = source.shape[-1], 64  # a weight of 1 in steps of 1/64, which keep what the multiplier rounds off
    multiplier, shift = quantize_multiplier(effective_scale(source.scale, 1 / fine, output.scale))
    full = lambda value: np.full(channels, value, "int32")  # noqa: E731
    weights = (fine * kernel).astype("int32").transpose(2, 0, 1, 3)
    scales = np.full(channels, 1 / fine, "float32")
    return Constants(CONV, weights, scales, full(0), full(multiplier), full(-shift))


def _takes_pads(op, input_shape, flavour):
    """Whether a weighted op makes its zeros itself.

    The built-in operators know "same" and "valid"; ours any zeros that a window with a tap on the image still reaches.
    """
    if op.kind == "dense" or ir.padding_is_same(op, input_shape) is not None:
        return True
    if flavour == "builtin" or not op.weights.operator.kernels:
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
