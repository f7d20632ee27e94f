"""Writes a `Network` as a .tflite flatbuffer for TFLite Micro: built-in operators, or our packed custom ones.

A slot-level writer on the plain `flatbuffers` runtime: no generated schema, byte-for-byte deterministic. Constants are
aligned to 16 bytes. Slot numbers and enumerations are those of the public TensorFlow Lite schema, version 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import flatbuffers
import numpy as np

from tflm_export import graph as ir
from tflm_export import records
from tflm_export.quantize import Network, Step
from tflm_export.records import OptionRecord

# ---- our custom operators -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CustomLayer:
    """One of our layers as the kernels take it: name, options, packed weights, int32 params (O, 3); empty if it has none."""

    name: str
    record: OptionRecord
    weights: np.ndarray
    params: np.ndarray


def is_ours(step: Step) -> bool:
    """Whether our kernels compute a step of a network of flavour "custom"."""
    if step.constants is None:
        return step.op.kind == "channel_shift"
    return bool(step.constants.operator.kernels)


def custom_layer(step: Step) -> CustomLayer:
    """Packs a step that our kernels compute."""
    op, constants, source = step.op, step.constants, step.inputs[0]
    depth_multiplier, requant = 1, records.REQUANT_Q31
    if constants is None:
        name, layout = "CHANNEL_SHIFT", records.LAYOUT_NONE
        packed, params = np.zeros(0, "uint8"), np.zeros((0, 3), "int32")
    else:
        operator, weights = constants.operator, constants.weights
        name, rows = operator.kernels[op.kind], weights.reshape(len(weights), -1)
        bias = operator.folded(constants.bias.astype("int64"), rows, source.zero_point)
        layout, packed = operator.pack(rows)
        params = exact(np.stack([bias, constants.multiplier, constants.shift], axis=1), "int32", op.name)
        if op.kind == "depthwise":
            depth_multiplier = len(weights) // source.shape[-1]
        if constants.power_of_two:
            requant = records.REQUANT_POWER_OF_TWO
    for key, value, most in (
        ("kernel_size", max(op.kernel_size), 255),
        ("strides", max(op.strides), 255),
        ("dilation_rate", max(op.dilation), 255),
        ("depth_multiplier", depth_multiplier, 65535),
    ):
        if value > most:
            raise ValueError(
                f"tflm_export: layer '{op.name}': `{key}` must be at most {most} for our kernels. Received: {key}={value}."
            )
    record = OptionRecord(
        magic=records.MAGIC,
        version=records.VERSION,
        length=records.RECORD_BYTES,
        op=records.CUSTOM[name].number,
        layout=layout,
        requant=requant,
        kernel_h=op.kernel_size[0],
        kernel_w=op.kernel_size[1],
        stride_h=op.strides[0],
        stride_w=op.strides[1],
        dilation_h=op.dilation[0],
        dilation_w=op.dilation[1],
        reserved=0,
        pad_top=op.pads[0],
        pad_left=op.pads[1],
        depth_multiplier=depth_multiplier,
        input_zero_point=source.zero_point,
        output_zero_point=step.output.zero_point,
        act_min=step.act_min,
        act_max=step.act_max,
    )
    return CustomLayer(name, record, packed, params)


def exact(values, kind, owner) -> np.ndarray:
    """Numbers as an array of a type that holds every one of them: no constant is written otherwise.

    Args:
        values: integers, or the floats of scales.
        kind: of NumPy: "int8", "uint8", "int32", "int64" or "float32".
        owner: the layer or tensor, for the error.
    Raises:
        ValueError: a number outside the type; of scales, one that is not finite or not above 0.
    """
    values = np.asarray(values)
    if kind == "float32":
        with np.errstate(over="ignore"):
            values = values.astype("float32")
        sound = np.isfinite(values) & (values > 0)
    else:
        limits = np.iinfo(kind)
        sound = (values >= limits.min) & (values <= limits.max)
    if not np.all(sound):
        wrong = np.asarray(values)[~np.asarray(sound)].ravel()[0]
        raise ValueError(
            f"tflm_export: layer '{owner}': a constant of {wrong:,} must be {kind}"
            f"{', finite and above 0' if kind == 'float32' else ''}. Its input or weights are out of proportion to its "
            "output; check the batch norm before and after it, and the representative data."
        )
    return values.astype(kind)


# ---- the schema -----------------------------------------------------------------------------------------------------

FLOAT32, INT32, UINT8, INT8 = 0, 2, 3, 9
_TYPES = {"int32": INT32, "uint8": UINT8, "int8": INT8}
_CUSTOM = 32
_BUILTIN = {  # name -> (builtin code, version, options type)
    "ADD": (0, 2, 11),
    "AVERAGE_POOL_2D": (1, 2, 5),
    "CONCATENATION": (2, 2, 10),
    "CONV_2D": (3, 3, 1),
    "DEPTHWISE_CONV_2D": (4, 3, 2),
    "FULLY_CONNECTED": (9, 4, 8),
    "LEAKY_RELU": (98, 2, 75),
    "LOGISTIC": (14, 2, 0),
    "MAX_POOL_2D": (17, 2, 5),
    "MUL": (18, 2, 21),
    "RESHAPE": (22, 1, 17),
    "RESIZE_BILINEAR": (23, 3, 15),
    "SOFTMAX": (25, 2, 9),
    "PAD": (34, 2, 22),
    "MEAN": (40, 2, 27),
    "HARD_SWISH": (117, 1, 91),
}
_FUSED = {None: 0, "relu": 1, "relu6": 3, "hard_sigmoid": 0}
_SAME, _VALID = 0, 1


@dataclass(frozen=True, eq=False)
class _TensorRow:
    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray | None = None
    scales: np.ndarray | None = None
    zero_points: tuple[int, ...] = ()
    axis: int = 0


@dataclass(frozen=True, eq=False)
class _OpRow:
    name: str  # built-in or custom
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: tuple = ()  # (slot, type, value) of the built-in's options table
    custom: bytes | None = None


def write(network: Network) -> bytes:
    """The model as bytes. Activations keep the names of `network.tensors`; constants have none, which saves flash.

    Raises:
        ValueError: padding that no built-in operator expresses; names the layer.
    """
    rows, ops = [], []
    for tensor in network.tensors.values():
        rows.append(
            _TensorRow(
                tensor.name,
                (1, *tensor.shape),
                "int8",
                None,
                exact([tensor.scale], "float32", tensor.name),
                exact([tensor.zero_point], "int8", tensor.name),
            )
        )
    for step in network.steps:
        _write_step(step, network.flavour, rows, ops)
    return _Writer().model(network, rows, ops)


def operator_names(network: Network) -> list[str]:
    """The operators that `write` uses, built-in and custom, sorted."""
    return sorted({operator_name(step, network.flavour) for step in network.steps})


def operator_name(step: Step, flavour: str) -> str:
    """The operator, built-in or custom, that a step is in a model of a flavour."""
    ops = []
    _write_step(step, flavour, [], ops)
    return ops[0].name


def _write_step(step, flavour, rows, ops):
    op = step.op
    if is_ours(step) and flavour == "custom":
        layer = custom_layer(step)
        constants = [(f"{op.name}/weights", layer.weights), (f"{op.name}/params", layer.params)]
        constants = [_TensorRow(name, data.shape, data.dtype.name, data) for name, data in constants if data.size]
        rows.extend(constants)
        inputs = (step.inputs[0].name, *(row.name for row in constants))
        ops.append(_OpRow(layer.name, inputs, (op.output,), (), layer.record.pack()))
        return
    inputs = [tensor.name for tensor in step.inputs]

    def constant(suffix, data, **rest):
        data = np.ascontiguousarray(data)
        if "scales" in rest and rest["scales"] is not None:
            rest["scales"] = exact(rest["scales"], "float32", op.name)
        row = _TensorRow(f"{op.name}/{suffix}", data.shape, data.dtype.name, data, **rest)
        rows.append(row)
        return row.name

    name, options = None, ()
    fused = _FUSED[op.activation]
    if step.constants is not None:
        name, options = _weighted_options(step, fused)
        constants = step.constants
        weights = exact(constants.weights, "int8", op.name)
        if op.kind == "depthwise":
            weights = weights.transpose(3, 1, 2, 0)
        elif op.kind == "dense":
            weights = weights.reshape(len(weights), -1)
        axis = 3 if op.kind == "depthwise" else 0
        channels = len(constants.bias)
        inputs.append(constant("weights", weights, scales=constants.scales, zero_points=(0,) * channels, axis=axis))
        # Readers check the bias's scale where weights have one scale alone; elsewhere it is dead flash.
        scales = constants.scales * step.inputs[0].scale if channels == 1 else None
        inputs.append(constant("bias", exact(constants.bias, "int32", op.name), scales=scales, zero_points=(0,)))
    elif op.kind in ("add", "multiply"):
        name, options = ("ADD" if op.kind == "add" else "MUL"), ((0, "i8", fused),)
    elif op.kind == "mean":
        name, options = "MEAN", ((0, "bool", len(step.output.shape) == 3),)
        inputs.append(constant("axes", np.array([1, 2], "int32")))
    elif op.kind == "resize":
        name, options = "RESIZE_BILINEAR", ((3, "bool", True),)
        inputs.append(constant("size", np.array(step.output.shape[:2], "int32")))
    elif op.kind in ("max_pool", "average_pool"):
        name = "MAX_POOL_2D" if op.kind == "max_pool" else "AVERAGE_POOL_2D"
        (kernel_h, kernel_w), (stride_h, stride_w) = op.kernel_size, op.strides
        options = (
            (0, "i8", _builtin_padding(step)),
            (1, "i32", stride_w),
            (2, "i32", stride_h),
            (3, "i32", kernel_w),
            (4, "i32", kernel_h),
            (5, "i8", 0),
        )
    elif op.kind == "pad":
        top, left, bottom, right = op.pads
        name = "PAD"
        inputs.append(constant("pads", np.array([[0, 0], [top, bottom], [left, right], [0, 0]], "int32")))
    elif op.kind == "reshape":
        shape = np.array((1, *step.output.shape), "int32")
        name, options = "RESHAPE", ((0, "vector", shape),)
        inputs.append(constant("shape", shape))
    elif op.kind == "hard_swish":
        name = "HARD_SWISH"
    elif op.kind == "sigmoid":
        name = "LOGISTIC"
    elif op.kind == "leaky_relu":
        name, options = "LEAKY_RELU", ((0, "f32", op.slope),)
    elif op.kind == "concatenate":
        name, options = "CONCATENATION", ((0, "i32", 1 + op.axis),)
    else:
        assert op.kind == "softmax", op.kind
        name, options = "SOFTMAX", ((0, "f32", 1.0),)
    ops.append(_OpRow(name, tuple(inputs), (op.output,), options))


def _weighted_options(step, fused):
    op = step.op
    if op.kind == "dense":
        return "FULLY_CONNECTED", ((0, "i8", fused),)
    (stride_h, stride_w), (dilation_h, dilation_w) = op.strides, op.dilation
    head = ((0, "i8", _builtin_padding(step)), (1, "i32", stride_w), (2, "i32", stride_h))
    if op.kind == "conv":
        return "CONV_2D", (*head, (3, "i8", fused), (4, "i32", dilation_w), (5, "i32", dilation_h))
    multiplier = len(step.constants.bias) // step.inputs[0].shape[-1]
    return "DEPTHWISE_CONV_2D", (
        *head,
        (3, "i32", multiplier),
        (4, "i8", fused),
        (5, "i32", dilation_w),
        (6, "i32", dilation_h),
    )


def _builtin_padding(step):
    same = ir.padding_is_same(step.op, step.inputs[0].shape)
    assert same is not None, step.op.name  # `quantize` has put a pad step before such an op
    return _SAME if same else _VALID


class _Writer:
    """Bottom up, as flatbuffers are written: every child before its parent."""

    def __init__(self):
        self.builder = flatbuffers.Builder(1 << 16)

    def vector(self, array):
        """A vector of numbers, aligned to 16 bytes if it is of bytes."""
        array = np.ascontiguousarray(array)
        if array.dtype.itemsize == 1:
            return self.aligned_bytes(array.tobytes())
        return self.builder.CreateNumpyVector(array.ravel())

    def aligned_bytes(self, data):
        builder = self.builder
        builder.StartVector(1, len(data), 16)
        builder.head = builder.Head() - len(data)
        builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
        return builder.EndVector()

    def vector_of_offsets(self, offsets):
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def table(self, slots, fields):
        """A table from (slot, kind, value); offsets are made by the caller. Zeros, the defaults, are left out."""
        builder = self.builder
        builder.StartObject(slots)
        for slot, kind, value in fields:
            if value is None:
                continue
            if kind == "offset":
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
            elif kind == "u32":
                builder.PrependUint32Slot(slot, value, 0)
            elif kind == "i32":
                builder.PrependInt32Slot(slot, value, 0)
            elif kind == "i8":
                builder.PrependInt8Slot(slot, value, 0)
            elif kind == "u8":
                builder.PrependUint8Slot(slot, value, 0)
            elif kind == "bool":
                builder.PrependBoolSlot(slot, value, False)
            else:
                assert kind == "f32", kind
                builder.PrependFloat32Slot(slot, value, 0.0)
        return builder.EndObject()

    def model(self, network, rows, ops):
        builder = self.builder
        codes = sorted({op.name for op in ops})
        description = builder.CreateString("saaug_keras")
        buffers = [self.table(3, ())]  # buffer 0 is empty, for everything that is computed
        numbers = {}
        for row in rows:
            if row.data is not None:
                numbers[row.name] = len(buffers)
                buffers.append(self.table(3, [(0, "offset", self.aligned_bytes(_little_endian(row.data)))]))
        index = {row.name: number for number, row in enumerate(rows)}
        tensors = self.vector_of_offsets([self.tensor(row, numbers.get(row.name, 0)) for row in rows])
        operators = self.vector_of_offsets([self.operator(op, index, codes) for op in ops])
        subgraph_inputs = self.vector(np.array([index[network.input.name]], "int32"))
        subgraph_outputs = self.vector(np.array([index[network.output.name]], "int32"))
        subgraph_name = builder.CreateString("main")
        subgraph = self.table(
            5,
            [
                (0, "offset", tensors),
                (1, "offset", subgraph_inputs),
                (2, "offset", subgraph_outputs),
                (3, "offset", operators),
                (4, "offset", subgraph_name),
            ],
        )
        operator_codes = self.vector_of_offsets([self.operator_code(name) for name in codes])
        subgraphs = self.vector_of_offsets([subgraph])
        buffer_vector = self.vector_of_offsets(buffers)
        model = self.table(
            5,
            [
                (0, "u32", 3),
                (1, "offset", operator_codes),
                (2, "offset", subgraphs),
                (3, "offset", description),
                (4, "offset", buffer_vector),
            ],
        )
        builder.Finish(model, file_identifier=b"TFL3")
        return bytes(builder.Output())

    def tensor(self, row, buffer):
        name = None if row.data is not None else self.builder.CreateString(row.name)
        shape = self.vector(np.array(row.shape, "int32"))
        quantization = None
        if row.scales is not None:
            scales = self.vector(np.asarray(row.scales, "float32"))
            zero_points = self.vector(np.array(row.zero_points, "int64"))
            quantization = self.table(7, [(2, "offset", scales), (3, "offset", zero_points), (6, "i32", row.axis)])
        return self.table(
            6,
            [
                (0, "offset", shape),
                (1, "i8", _TYPES[row.type]),
                (2, "u32", buffer),
                (3, "offset", name),
                (4, "offset", quantization),
            ],
        )

    def operator_code(self, name):
        if name not in _BUILTIN:
            custom = self.builder.CreateString(name)
            return self.table(4, [(0, "i8", _CUSTOM), (1, "offset", custom), (2, "i32", 1), (3, "i32", _CUSTOM)])
        code, version, _ = _BUILTIN[name]
        return self.table(4, [(0, "i8", min(code, 127)), (2, "i32", version), (3, "i32", code)])

    def operator(self, op, index, codes):
        inputs = self.vector(np.array([index[name] for name in op.inputs], "int32"))
        outputs = self.vector(np.array([index[name] for name in op.outputs], "int32"))
        fields = [(0, "u32", codes.index(op.name)), (1, "offset", inputs), (2, "offset", outputs)]
        if op.custom is not None:
            fields.append((5, "offset", self.aligned_bytes(op.custom)))
        elif _BUILTIN[op.name][2]:
            made = [
                (slot, "offset", self.vector(value)) if kind == "vector" else (slot, kind, value)
                for slot, kind, value in op.options
            ]
            options = self.table(max((slot for slot, _, _ in made), default=0) + 1, made)
            fields += [(3, "u8", _BUILTIN[op.name][2]), (4, "offset", options)]
        return self.table(7, fields)


def _little_endian(array):
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
