"""Reads a .tflite file that may be damaged: what this accepts, TFLite Micro can run.

TFLite Micro follows the offsets of a file wherever they lead, takes the length of a constant from its tensor's shape and
ends the process where a scale is out of proportion. `read_model` finds that first: the flatbuffer (every table, vector and
text inside the file), then the model (tensors, grids, the order of computation), then every operator that export writes:
its inputs, its options, the shape that follows from them. Slot numbers and enumerations are those of the public TensorFlow
Lite schema, version 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from tflm_export import records
from tflm_export.fixed_point import ACCUMULATOR_LIMIT

MOST_ACTIVATION_BYTES = 1 << 28  # of a model, together: no microcontroller comes near
MOST_DIMENSIONS = 6
MOST_JOINED = 10  # inputs of a concatenation, which TFLite Micro has room for
_BYTE_LEVELS = 16  # of saaug_nn.h
_MOST_BYTES = 2**31 - 1  # of a file and of a tensor
_CUSTOM = 32
_ONE = 1 - 2.0**-32  # a gain from here on is rounded to 1 in 31 bits
_TYPES = {2: "int32", 3: "uint8", 9: "int8"}
# What TFLite Micro does not read; others move its memory about.
_METADATA = ("min_runtime_version", "CONVERSION_METADATA")

# The fields of each table, by slot: a struct letter of a scalar, "text", [letter] for a vector of numbers, (table, None) for
# a table, (table, 1) for a vector of tables; None is a field that must be absent, and so is whatever lies behind the last.
_TABLES = {
    "model": ("I", ("operator code", 1), ("subgraph", 1), "text", ("buffer", 1), ["i"], ("metadata", 1), ("signature", 1)),
    "operator code": ("b", "text", "i", "i"),
    "subgraph": (("tensor", 1), ["i"], ["i"], ("operator", 1), "text", "i"),
    "tensor": (["i"], "b", "I", "text", ("quantization", None), "?", None, ["i"], "?"),
    "quantization": (["f"], ["f"], ["f"], ["q"], "B", None, "i"),
    "operator": ("I", ["i"], ["i"], "B", ("options", None), ["B"], "b", ["?"], ["i"]),
    "buffer": (["B"],),
    "metadata": ("text", "I"),
    "signature": (("tensor map", 1), ("tensor map", 1), "text", None, "I"),
    "tensor map": ("text", "I"),
    # options, by their number
    1: ("b", "i", "i", "b", "i", "i"),  # convolution: padding, stride w, h, activation, dilation w, h
    2: ("b", "i", "i", "i", "b", "i", "i"),  # depthwise: padding, stride w, h, multiplier, activation, dilation w, h
    5: ("b", "i", "i", "i", "i", "b"),  # pool: padding, stride w, h, filter w, h, activation
    8: ("b", "b", "?", "?"),  # fully connected: activation, format of weights, keep dimensions, asymmetric inputs
    9: ("f",),  # softmax: beta
    10: ("i", "b"),  # concatenation: axis, activation
    11: ("b", "?"),  # add: activation
    15: (None, None, "?", "?"),  # resize: align corners, half-pixel centres
    17: (["i"],),  # reshape: shape
    21: ("b",),  # multiply: activation
    22: (),  # pad
    27: ("?",),  # mean: keep dimensions
    75: ("f",),  # leaky ReLU: slope
    91: (),  # h-swish
}
_DEFAULTS = {(1, 4): 1, (1, 5): 1, (2, 5): 1, (2, 6): 1}  # of absent numbers that are not 0: dilations


@dataclass(frozen=True, eq=False)
class Tensor:
    """A row of the model's tensors. `data` is a constant's array, else None; `scales` and `zero_points` may be empty."""

    index: int
    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int

    @property
    def bytes(self):
        """Its size, constants and activations alike."""
        return math.prod(self.shape) * np.dtype(self.type).itemsize

    @property
    def scale(self):
        """Of an activation."""
        return self.scales[0]

    @property
    def zero_point(self):
        """Of an activation."""
        return self.zero_points[0]


@dataclass(frozen=True, eq=False)
class Operator:
    """A step of the model. `options` are the fields of its options by slot, or the bytes of a custom operator's record."""

    index: int
    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    options: list | bytes


@dataclass(frozen=True, eq=False)
class Model:
    """A file that is sound: what `Interpreter` has to know of it."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    input: Tensor
    output: Tensor
    custom: bool


def read_model(data: bytes) -> Model:
    """The model in the bytes of a .tflite file, checked.

    Raises:
        ValueError: it is damaged, or has an operator or a use of one that `tflm_export.export` does not write; says which.
    """
    root = _File(data).root()
    version, codes, subgraphs, _, buffers, _, metadata, _ = root
    if version != 3:
        _fail(f"its version must be 3, it is {version}")
    for entry in metadata or ():
        if entry[0] not in _METADATA:
            _fail(f"it has metadata {entry[0]!r}; known are {' and '.join(_METADATA)}")
    if len(subgraphs or ()) != 1:
        _fail(f"it must have one subgraph, it has {len(subgraphs or ())}")
    rows, inputs, outputs, steps, _, _ = subgraphs[0]
    names = [_operator_name(index, code) for index, code in enumerate(codes or ())]
    tensors = tuple(_tensor(index, row, buffers or ()) for index, row in enumerate(rows or ()))
    activations = sum(tensor.bytes for tensor in tensors if tensor.data is None)
    if activations > MOST_ACTIVATION_BYTES:
        _fail(f"its activations take {activations:,} bytes, more than {MOST_ACTIVATION_BYTES:,}")
    ends = []
    for what, found in (("input", inputs), ("output", outputs)):
        if found is None or len(found) != 1:
            _fail(f"it must have one {what}, it has {0 if found is None else len(found)}")
        if not 0 <= found[0] < len(tensors):
            _fail(f"its {what} must be one of its {len(tensors)} tensors, it is number {found[0]}")
        ends.append(tensors[found[0]])
        _check_activation(ends[-1], f"its {what}")
    if len(ends[0].shape) != 4 or ends[0].shape[0] != 1:
        _fail(f"its input must be an image (1, H, W, C), its shape is {ends[0].shape}")
    if len(ends[1].shape) < 2 or ends[1].shape[0] != 1:
        _fail(f"its output must be of shape (1, ...), it is {ends[1].shape}")
    operators, known = [], {ends[0].index} | {tensor.index for tensor in tensors if tensor.data is not None}
    for index, row in enumerate(steps or ()):
        operators.append(_operator(index, row, names, tensors, known))
        known.add(operators[-1].output.index)
    missing = set(range(len(tensors))) - known
    if missing:
        _fail(f"tensor {min(missing)} is neither a constant nor computed")
    if not any(operator.output is ends[1] for operator in operators):
        _fail("no operator computes its output")
    return Model(tensors, tuple(operators), *ends, any(not isinstance(op.options, list) for op in operators))


def _fail(what):
    raise ValueError(f"tflm_export.Interpreter: `model` must be a sound .tflite file: {what}.")


# ---------------------------------------------------------------------------------------------------------------------
# The flatbuffer


class _File:
    """A walk over the file: a table becomes a list of its fields' values, by slot; absent offsets become None."""

    def __init__(self, data):
        self.data = data
        if not 12 <= len(data) <= _MOST_BYTES or data[4:8] != b"TFL3":
            raise ValueError(
                "tflm_export.Interpreter: `model` must be a .tflite flatbuffer: 12 bytes to 2**31 - 1, bytes 4..8 are TFL3. "
                f"Received: {len(data):,} bytes."
            )
        self.seen = set()

    def root(self):
        return self.table("model", self.follow(0, "the root"))

    def number(self, letter, place, what):
        size = struct.calcsize(letter)
        if place < 0 or place + size > len(self.data) or place % size:
            _fail(f"{what} lies outside of the file, which has {len(self.data):,} bytes, or is not aligned")
        return struct.unpack_from("<" + letter, self.data, place)[0]

    def follow(self, place, what):
        offset = self.number("I", place, what)
        if offset == 0 or place + offset > len(self.data) - 4:
            _fail(f"{what} lies outside of the file, which has {len(self.data):,} bytes")
        return place + offset

    def vector(self, place, size, what):
        """(place of the first element, how many there are) of a vector that an offset at `place` leads to."""
        start = self.follow(place, what)
        count, start = self.number("I", start, what), start + 4
        if start + count * size > len(self.data) or (count and start % size):
            _fail(f"{what} lies outside of the file, which has {len(self.data):,} bytes, or is not aligned")
        return start, count

    def table(self, kind, place):
        what = f"a table ({kind if isinstance(kind, str) else 'options'})"
        if place in self.seen:
            _fail(f"{what} is used twice")
        self.seen.add(place)
        fields = place - self.number("i", place, what)
        length, size = self.number("H", fields, what), self.number("H", fields + 2, what)
        if length < 4 or length % 2 or fields + length > len(self.data) or size < 4 or place + size > len(self.data):
            _fail(f"{what} lies outside of the file, which has {len(self.data):,} bytes")
        offsets = struct.unpack_from(f"<{length // 2 - 2}H", self.data, fields + 4)
        schema = _TABLES[kind]
        if any(offsets[len(schema) :]):
            _fail(f"{what} has a field that is not known")
        offsets = offsets[: len(schema)] + (0,) * (len(schema) - len(offsets))
        values = []
        for slot, offset in enumerate(offsets):
            width = struct.calcsize(schema[slot]) if schema[slot] in ("b", "B", "?", "i", "I", "f") else 4
            if offset and (schema[slot] is None or offset < 4 or offset + width > size):
                _fail(f"field {slot} of {what} must be {'absent' if schema[slot] is None else 'inside of it'}")
            place_of_field = place + offset if offset else None
            if kind == "operator" and slot == 4:  # whose kind is in the field before
                values.append(self.options(values[3], place_of_field))
            elif not offset and (kind, slot) in _DEFAULTS:
                values.append(_DEFAULTS[kind, slot])
            else:
                values.append(self.field(schema[slot], place_of_field, f"field {slot} of {what}"))
        return values

    def options(self, kind, place):
        if kind != 0 and (kind not in _TABLES or place is None):
            _fail(f"an operator has options of a kind that is not known, number {kind}, or none of its kind")
        if kind == 0:
            return None if place is None else _fail("an operator has options of no kind")
        return self.table(kind, self.follow(place, "an operator's options"))

    def field(self, schema, place, what):
        if place is None:
            return None if schema is None or schema == "text" or not isinstance(schema, str) else 0
        if schema == "text":
            start, count = self.vector(place, 1, what)
            if start + count >= len(self.data) or self.data[start + count] != 0:
                _fail(f"{what} must be text that ends with a zero")
            try:
                return self.data[start : start + count].decode()
            except UnicodeDecodeError:
                _fail(f"{what} must be text in UTF-8")
        if isinstance(schema, str):
            return self.number(schema, place, what)
        if isinstance(schema, list):
            dtype = np.dtype(schema[0]).newbyteorder("<")
            start, count = self.vector(place, dtype.itemsize, what)
            return np.frombuffer(self.data, dtype, count, start)
        kind, many = schema
        if not many:
            return self.table(kind, self.follow(place, what))
        start, count = self.vector(place, 4, what)
        return [self.table(kind, self.follow(start + 4 * index, what)) for index in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# The model


def _operator_name(index, code):
    """The name of an operator code: of ours, or of those in _RULES."""
    number = max(code[0], code[3])
    if number == _CUSTOM and code[0] == _CUSTOM and code[1] in records.CUSTOM:
        return code[1]
    if number not in _RULES or code[1]:
        raise ValueError(
            "tflm_export.Interpreter: `model` must have the operators alone that tflm_export.export writes: "
            f"{', '.join([*records.CUSTOM, *(rule[0] for rule in _RULES.values())])}. Received: operator code {index} is "
            f"{code[1]!r}, number {number}."
        )
    return _RULES[number][0]


def _tensor(index, row, buffers):
    shape, kind, buffer, name, quantization, variable, _, _, _ = row
    if kind not in _TYPES:
        _fail(f"tensor {index} must be of int8, uint8 or int32, its type is number {kind}")
    shape = () if shape is None else tuple(shape.tolist())
    dtype = np.dtype(_TYPES[kind]).newbyteorder("<")
    if not 1 <= len(shape) <= MOST_DIMENSIONS or min(shape) < 1 or math.prod(shape) * dtype.itemsize > _MOST_BYTES:
        _fail(
            f"tensor {index} must have 1 to {MOST_DIMENSIONS} positive dimensions and fewer than 2**31 bytes, its shape "
            f"is {shape}"
        )
    if variable:
        _fail(f"tensor {index} is a variable")
    if buffer >= len(buffers):
        _fail(f"the buffer of tensor {index} must be one of {len(buffers)}, it is number {buffer}")
    data = buffers[buffer][0]
    if data is not None and not len(data):
        data = None
    if data is not None:
        if len(data) != math.prod(shape) * dtype.itemsize:
            _fail(
                f"the constant tensor {index} of shape {shape} must have {math.prod(shape) * dtype.itemsize:,} bytes, it has "
                f"{len(data):,}"
            )
        data = data.view(dtype).reshape(shape)
    scales, zero_points, axis = (), (), 0
    if quantization is not None:
        scales, zero_points = (() if value is None else tuple(value.tolist()) for value in quantization[2:4])
        axis = quantization[6]
        if quantization[4]:
            _fail(f"tensor {index} is quantized in a way that is not known")
    if len(scales) != len(zero_points) or len(scales) not in (0, 1, shape[axis] if 0 <= axis < len(shape) else -1):
        _fail(
            f"tensor {index} of shape {shape} must have a scale and a zero point, or one for each of its channels; it has "
            f"{len(scales)} and {len(zero_points)} on dimension {axis}"
        )
    if not all(2.0**-120 < scale < 2.0**120 for scale in scales):
        _fail(f"the scales of tensor {index} must be positive and finite")
    if any(not -128 <= zero_point <= 127 for zero_point in zero_points):
        _fail(f"the zero points of tensor {index} must lie in [-128, 127]")
    return Tensor(index, name or f"tensor {index}", shape, _TYPES[kind], data, scales, zero_points, axis)


def _check_activation(tensor, what):
    if tensor.data is not None or tensor.type != "int8" or len(tensor.scales) != 1:
        kind = "a constant" if tensor.data is not None else f"{tensor.type} with {len(tensor.scales)} scales"
        _fail(f"{what} must be a tensor of int8 that is computed, with one scale; tensor {tensor.index} is {kind}")


def _operator(index, row, names, tensors, known):
    code, inputs, outputs, kind, options, record, record_format, _, intermediates = row
    if code >= len(names):
        _fail(f"the code of operator {index} must be one of {len(names)}, it is number {code}")
    name = names[code]
    what = f"operator {index}, {name},"
    custom = name in records.CUSTOM
    inputs, outputs = (() if value is None else tuple(value.tolist()) for value in (inputs, outputs))
    count = (1 if records.CUSTOM[name].terms == "moves" else 3) if custom else _RULES_BY_NAME[name][1]
    counts = range(2, MOST_JOINED + 1) if count is None else (count,)
    if len(inputs) not in counts or len(outputs) != 1:
        wanted = f"{counts[0]} to {counts[-1]}" if count is None else count
        _fail(f"{what} must have {wanted} inputs and 1 output, it has {len(inputs)} and {len(outputs)}")
    if any(not 0 <= number < len(tensors) for number in (*inputs, *outputs)):
        _fail(f"the tensors of {what} must be among {len(tensors)}, they are numbers {inputs} and {outputs}")
    if not known.issuperset(inputs) or outputs[0] in known:
        _fail(f"{what} reads what is not computed yet, or writes what has a value already: tensors {inputs} and {outputs}")
    if intermediates is not None and len(intermediates):
        _fail(f"{what} must have no intermediate tensors")
    if record_format != 0 or kind != (0 if custom else _RULES_BY_NAME[name][2]) or (not custom and record is not None):
        _fail(f"{what} has the options of another")
    record = b"" if record is None else record.tobytes()
    operator = Operator(index, name, tuple(tensors[i] for i in inputs), tensors[outputs[0]], record if custom else options)
    _check_activation(operator.output, f"the output of {what}")
    (_check_custom if custom else _RULES_BY_NAME[name][3])(_Step(operator))
    return operator


# ---------------------------------------------------------------------------------------------------------------------
# The operators


class _Step:
    """An operator under check, and what several rules ask of it."""

    def __init__(self, operator):
        self.options, self.inputs, self.output = operator.options, operator.inputs, operator.output
        self.what = f"operator {operator.index}, {operator.name},"
        _check_activation(self.inputs[0], f"the input of {self.what}")

    @property
    def input(self):
        return self.inputs[0]

    def require(self, sound, must):
        if not sound:
            _fail(f"{self.what} must have {must}; its tensors are {self.shapes()}, its options {self.options}")

    def shapes(self):
        return ", ".join(str(tensor.shape) for tensor in (*self.inputs, self.output))

    def constant(self, index, kind):
        tensor = self.inputs[index]
        self.require(tensor.data is not None and tensor.type == kind, f"a constant of {kind} as input {index}")
        return tensor

    def rank(self, rank):
        self.require(len(self.input.shape) == len(self.output.shape) == rank, f"{rank} dimensions")

    def same_grid(self):
        one, other = self.input, self.output
        same = (one.scale, one.zero_point) == (other.scale, other.zero_point)
        self.require(same, "an output on the grid of its input: scale and zero point")

    def activation(self, number, known=(0, 1, 3)):
        self.require(number in known, f"an activation among numbers {known}")
        # TFLite Micro makes an int32 of the clamp at 6.
        self.require(number == 0 or 6 / self.output.scale < 2**30, "an output scale that its activation fits")

    def gain(self, real, most=2.0**30):
        """What an accumulator is multiplied by: TFLite Micro ends the process beyond."""
        self.require(real < most, f"scales in proportion, of a gain below {most:g}: it is {real:g}")

    def weights(self, channels, axis):
        """The int8 weights and int32 bias of one of the built-in operators."""
        weights, bias = self.constant(1, "int8"), self.constant(2, "int32")
        self.require(bias.shape == (channels,), f"a bias for each of {channels} channels")
        sound = len(weights.scales) in (1, channels) and not any(weights.zero_points)
        self.require(sound and (len(weights.scales) == 1 or weights.axis == axis), "a scale for each channel, zero points 0")
        for scale in (min(weights.scales), max(weights.scales)):
            self.gain(self.input.scale * scale / self.output.scale)

    def window(self, padding, kernel, strides, dilation=(1, 1)):
        self.require(min(*kernel, *strides, *dilation) > 0, "a kernel, strides and dilations of 1 or more")
        self.require(max(*kernel, *strides, *dilation) < 2**16, "a kernel, strides and dilations below 65,536")
        self.require(padding in (0, 1), 'padding "same" or "valid"')
        size = []
        for axis in (0, 1):
            reach = 0 if padding == 0 else (kernel[axis] - 1) * dilation[axis]
            size.append(-(-(self.input.shape[1 + axis] - reach) // strides[axis]))
        sound = min(size) > 0 and self.output.shape[1:3] == tuple(size) and self.output.shape[0] == self.input.shape[0]
        self.require(sound, f"an output of {size[0]} x {size[1]}")


def _check_convolution(step):
    padding, stride_w, stride_h, activation, dilation_w, dilation_h = step.options
    step.rank(4)
    weights = step.constant(1, "int8")
    channels = step.output.shape[3]
    step.require(
        len(weights.shape) == 4 and weights.shape[::3] == (channels, step.input.shape[3]),
        "weights (output channels, height, width, input channels)",
    )
    step.weights(channels, 0)
    step.activation(activation)
    step.window(padding, weights.shape[1:3], (stride_h, stride_w), (dilation_h, dilation_w))


def _check_depthwise(step):
    padding, stride_w, stride_h, multiplier, activation, dilation_w, dilation_h = step.options
    step.rank(4)
    weights = step.constant(1, "int8")
    channels = step.output.shape[3]
    step.require(len(weights.shape) == 4 and weights.shape[::3] == (1, channels), "weights (1, height, width, channels)")
    step.require(channels == step.input.shape[3] * multiplier, "output channels by its multiplier")
    step.weights(channels, 3)
    step.activation(activation)
    step.window(padding, weights.shape[1:3], (stride_h, stride_w), (dilation_h, dilation_w))


def _check_dense(step):
    activation, weights_format, _, _ = step.options
    weights, channels = step.constant(1, "int8"), step.output.shape[-1]
    rows = math.prod(step.output.shape[:-1])
    step.require(weights_format == 0, "weights in their plain order")
    step.require(len(weights.shape) == 2 and weights.shape[0] == channels, "weights (output channels, inputs)")
    step.require(
        math.prod(step.input.shape) == rows * weights.shape[1] and rows == step.input.shape[0],
        f"inputs for {rows} rows of {weights.shape[1]}",
    )
    step.weights(channels, 0)
    step.activation(activation)


def _check_pool(step):
    padding, stride_w, stride_h, filter_w, filter_h, activation = step.options
    step.rank(4)
    step.same_grid()
    step.require(step.input.shape[3] == step.output.shape[3], "the channels of its input")
    step.activation(activation)
    step.window(padding, (filter_h, filter_w), (stride_h, stride_w))


def _check_add(step):
    other = step.inputs[1]
    _check_activation(other, f"the second input of {step.what}")
    step.require(step.input.shape == other.shape == step.output.shape, "tensors of one shape")
    step.activation(step.options[0])
    widest = 2 * max(step.input.scale, other.scale)
    for real in (step.input.scale / widest, other.scale / widest, widest / (2**20 * step.output.scale)):
        step.require(real < _ONE, "scales in proportion: an output not 2**19 times finer")


def _check_multiply(step):
    other = step.inputs[1]
    _check_activation(other, f"the second input of {step.what}")
    shape = step.output.shape
    gate = (shape[0], 1, 1, shape[-1]) if len(shape) == 4 else shape
    step.require(step.input.shape == shape and other.shape in (shape, gate), "tensors of one shape, or the second (1, 1, C)")
    step.activation(step.options[0])
    step.gain(step.input.scale * other.scale / step.output.scale)


def _check_mean(step):
    axes = step.constant(1, "int32").data
    step.require(len(step.input.shape) == 4 and axes.ndim == 1 and sorted(axes.tolist()) == [1, 2], "dimensions 1 and 2")
    batch, _, _, channels = step.input.shape
    shape = (batch, 1, 1, channels) if step.options[0] else (batch, channels)
    step.require(step.output.shape == shape, f"an output of shape {shape}")
    step.gain(step.input.scale / step.output.scale)


def _check_resize(step):
    _, _, corners, centres = step.options
    size = step.constant(1, "int32")
    step.rank(4)
    step.same_grid()
    step.require(size.shape == (2,) and step.output.shape[1:3] == tuple(size.data.tolist()), "an output of its size")
    step.require(step.input.shape[::3] == step.output.shape[::3], "the batches and channels of its input")
    step.require(not (corners and centres), "aligned corners or half-pixel centres")
    step.require(max(*step.input.shape[1:3], *step.output.shape[1:3]) < 2**15, "sizes below 32,768")


def _check_pad(step):
    pads = step.constant(1, "int32")
    step.rank(4)
    step.same_grid()
    step.require(pads.shape == (4, 2) and pads.data.min() >= 0, "two numbers of 0 or more for each dimension")
    shape = tuple(size + before + after for size, (before, after) in zip(step.input.shape, pads.data.tolist(), strict=True))
    step.require(step.output.shape == shape, f"an output of shape {shape}")


def _check_reshape(step):
    shape = step.constant(1, "int32")
    step.same_grid()
    step.require(shape.shape == (len(step.output.shape),), "a size for each dimension")
    sizes = shape.data.tolist()
    fits = [size in (-1, wanted) for size, wanted in zip(sizes, step.output.shape, strict=True)]
    step.require(all(fits) and sizes.count(-1) <= 1, "an output of its shape")
    step.require(math.prod(step.input.shape) == math.prod(step.output.shape), "as many values as its input")


def _check_softmax(step):
    (beta,) = step.options
    step.require(beta == 1.0, "beta 1")
    step.require(step.input.shape == step.output.shape, "an output of its input's shape")
    step.require(step.output.zero_point == -128 and step.output.scale == 1 / 256, "an output in steps of 1/256 from -128")
    step.require(step.input.scale > 2.0**-26, "an input whose scale is above 2**-26, finer than which TFLite Micro cannot read")


def _check_concatenation(step):
    axis, activation = step.options
    rank = len(step.output.shape)
    step.require(activation == 0 and 1 <= axis < rank, "an axis behind the batch, and no activation")
    for index, part in enumerate(step.inputs):
        _check_activation(part, f"input {index} of {step.what}")
        grids = {(tensor.scale, tensor.zero_point) for tensor in (part, step.output)}
        step.require(len(grids) == 1, "inputs on the grid of its output")
        sizes = zip(part.shape, step.output.shape, strict=False)
        same = len(part.shape) == rank and all(a == b for at, (a, b) in enumerate(sizes) if at != axis)
        step.require(same, "inputs of its output's sizes, but on its axis")
    joined = sum(part.shape[axis] for part in step.inputs)
    step.require(joined == step.output.shape[axis], f"an output of {joined} on dimension {axis}")


def _check_leaky_relu(step):
    (slope,) = step.options
    step.require(step.input.shape == step.output.shape, "an output of its input's shape")
    step.require(2.0**-10 <= slope <= 2.0**10, "a slope from 1/1024 to 1024")
    step.gain(max(1.0, slope) * step.input.scale / step.output.scale, 2.0**21)


def _check_sigmoid(step):
    step.require(step.input.shape == step.output.shape, "an output of its input's shape")
    step.require(step.output.zero_point == -128 and step.output.scale == 1 / 256, "an output in steps of 1/256 from -128")
    step.require(2.0**-26 < step.input.scale < 2.0**20, "an input whose scale is above 2**-26 and below 2**20")


def _check_hard_swish(step):
    step.require(step.input.shape == step.output.shape, "an output of its input's shape")
    fine = float(np.float32(step.input.scale) * np.float32(1 / 128) / np.float32(step.output.scale))
    step.require(fine < _ONE, "an output not finer than a 128th of its input")
    step.require(step.input.scale >= 2.0**-22, "an input whose scale is 2**-22 or more: TFLite Micro reads no finer one")
    step.gain(step.input.scale / 128 / (3 / 32768), 2.0**15)


_RULES = {  # number of a built-in operator -> name, inputs, number of its options, check
    0: ("ADD", 2, 11, _check_add),
    1: ("AVERAGE_POOL_2D", 1, 5, _check_pool),
    2: ("CONCATENATION", None, 10, _check_concatenation),
    3: ("CONV_2D", 3, 1, _check_convolution),
    4: ("DEPTHWISE_CONV_2D", 3, 2, _check_depthwise),
    9: ("FULLY_CONNECTED", 3, 8, _check_dense),
    14: ("LOGISTIC", 1, 0, _check_sigmoid),
    17: ("MAX_POOL_2D", 1, 5, _check_pool),
    18: ("MUL", 2, 21, _check_multiply),
    22: ("RESHAPE", 2, 17, _check_reshape),
    23: ("RESIZE_BILINEAR", 2, 15, _check_resize),
    25: ("SOFTMAX", 1, 9, _check_softmax),
    34: ("PAD", 2, 22, _check_pad),
    40: ("MEAN", 2, 27, _check_mean),
    98: ("LEAKY_RELU", 1, 75, _check_leaky_relu),
    117: ("HARD_SWISH", 1, 91, _check_hard_swish),
}
_RULES_BY_NAME = {rule[0]: rule for rule in _RULES.values()}


def _check_custom(step):
    """As saaug_parse_options(), saaug_check() and saaug_check_constants() of the kernels."""
    name = step.what.split(", ")[1].rstrip(",")
    record = step.options
    if len(record) != records.RECORD_BYTES:
        _fail(f"{step.what} must have an option record of {records.RECORD_BYTES} bytes, it has {len(record)}")
    options = records.OptionRecord.unpack(record)
    own = records.CUSTOM[name]
    adder, depthwise, dense = own.terms == "adder", own.kind == "depthwise", own.kind == "dense"
    head = (options.magic, options.version, options.length, options.op, options.reserved)
    wanted = (records.MAGIC, records.VERSION, records.RECORD_BYTES, own.number, 0)
    layouts = {
        "shift": (records.LAYOUT_NIBBLE, records.LAYOUT_BYTE, records.LAYOUT_BIT),
        "adder": (records.LAYOUT_OFFSET,),
        "moves": (records.LAYOUT_NONE,),
    }[own.terms]
    kernel, strides = (options.kernel_h, options.kernel_w), (options.stride_h, options.stride_w)
    dilation, pads = (options.dilation_h, options.dilation_w), (options.pad_top, options.pad_left)
    sound = head == wanted and options.layout in layouts
    sound = sound and options.requant in (records.REQUANT_Q31, records.REQUANT_POWER_OF_TWO)
    sound = sound and min(*kernel, *strides, *dilation, options.depth_multiplier) > 0
    sound = sound and all(pads[i] <= (kernel[i] - 1) * dilation[i] for i in (0, 1)) and options.act_min <= options.act_max
    sound = sound and (depthwise or options.depth_multiplier == 1)
    sound = sound and not (dense and max(*kernel, *strides, *dilation) > 1)
    points = (options.input_zero_point, options.output_zero_point)
    if not sound or points != (step.input.zero_point, step.output.zero_point):
        _fail(f"{step.what} must have a sound record of its own options and of its tensors' zero points, it has {options}")
    sizes = []
    for tensor in (step.input, step.output):
        step.require(len(tensor.shape) in ((2, 3, 4) if dense else (4,)), "activations of 4 dimensions")
        flat = (tensor.shape[0], 1, 1, math.prod(tensor.shape[1:])) if dense else tensor.shape
        step.require(max(flat) <= 65535, "sizes of at most 65,535")
        sizes.append(flat)
    (batches, *size, channels), (out_batches, *out_size, out_channels) = sizes
    step.require(batches == out_batches, "the batches of its input")
    for axis in (0, 1):
        least = max((size[axis] + pads[axis] - (kernel[axis] - 1) * dilation[axis] - 1) // strides[axis] + 1, 1)
        most = (size[axis] + pads[axis] - 1) // strides[axis] + 1
        step.require(least <= out_size[axis] <= most, f"from {least} to {most} outputs on dimension {1 + axis}")
    step.require(not depthwise or out_channels == channels * options.depth_multiplier, "output channels by its multiplier")
    if own.terms == "moves":
        step.same_grid()
        plain = (options.requant, options.depth_multiplier, options.act_min, options.act_max)
        step.require(plain == (records.REQUANT_Q31, 1, -128, 127), "nothing else than moves in its options")
        return
    taps = math.prod(kernel) * (1 if depthwise else channels)
    row_bytes = -(-taps // 4) * (2 if options.layout == records.LAYOUT_NIBBLE else 4)
    row_bytes = -(-taps // 8) if options.layout == records.LAYOUT_BIT else row_bytes
    weights, params = step.constant(1, "uint8").data.ravel(), step.constant(2, "int32").data.ravel()
    step.require(taps <= 2**22 and weights.size >= row_bytes * out_channels, f"{row_bytes * out_channels:,} bytes of weights")
    step.require(params.size >= 3 * out_channels, f"3 params for each of {out_channels} channels")
    rows = weights[: row_bytes * out_channels].reshape(out_channels, row_bytes)
    sums = _sum_of_rows(rows, taps, options.layout)
    step.require(sums is not None, "weights of known codes, and zeros behind each row")
    bias, multiplier, shift = params[: 3 * out_channels].reshape(out_channels, 3).T.astype("int64")
    reach = (255 << records.ADDER_SCALE_LOG2) * taps if adder else 128 * sums
    step.require((np.abs(bias) + reach <= ACCUMULATOR_LIMIT).all(), "accumulators below 2**30")
    step.require(((shift >= 1) & (shift <= 30)).all(), "shifts from 1 to 30")
    known = np.abs(multiplier) == 1 if options.requant == records.REQUANT_POWER_OF_TWO else multiplier > -(2**31)
    step.require(known.all(), "multipliers in their range")


def _sum_of_rows(rows, taps, layout):
    """The sum of every row's weight magnitudes, or None for a reserved code or nonzero padding."""
    if layout == records.LAYOUT_NIBBLE:
        codes = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)
        sound, sums = (codes != 8).all(), (np.array([0, 1, 2, 4, 8, 16, 32, 64] * 2)[codes]).sum(axis=1)
    elif layout == records.LAYOUT_BIT:
        codes = np.unpackbits(rows, axis=1, bitorder="little")
        sound, sums = True, np.full(len(rows), taps << records.BIT_SCALE_LOG2)
    elif layout == records.LAYOUT_BYTE:
        codes = np.abs(rows.view("int8").astype("int64"))
        sound, sums = (codes <= _BYTE_LEVELS).all(), (1 << codes >> 1).sum(axis=1)
    else:
        codes, sound, sums = rows, True, np.zeros(len(rows), "int64")
    return sums if sound and not codes[:, taps:].any() else None
