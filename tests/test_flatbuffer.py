"""The .tflite writer: read back by a schema library, deterministic, aligned; packed weights and option records."""

import pathlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from export_models import small_backbone

import tflm_export
from tflm_export import flatbuffer, operators, records

NAMES = {value: key for key, value in vars(schema.BuiltinOperator).items() if not key.startswith("_")}


@pytest.fixture(scope="module")
def shift_model():
    return small_backbone("mobilenetv2-tiny", "shift", blocks=3)


def read(data):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))


def test_builtin_model_reads_back_as_what_was_written(shift_model):
    network = tflm_export.compile_network(*shift_model)
    data = flatbuffer.write(network)
    model = read(data)
    graph = model.subgraphs[0]
    assert (model.version, len(model.subgraphs), data[4:8]) == (3, 1, b"TFL3")
    assert model.buffers[0].data is None
    codes = [NAMES[model.operatorCodes[op.opcodeIndex].builtinCode] for op in graph.operators]
    assert codes == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "ADD",
        "CONV_2D",
        "MEAN",
        "FULLY_CONNECTED",
    ]
    for step, op in zip(network.steps, graph.operators, strict=True):
        output = graph.tensors[op.outputs[0]]
        assert output.name.decode() == step.output.name and output.type == schema.TensorType.INT8
        assert tuple(output.shape) == (1, *step.output.shape)
        assert output.quantization.scale[0] == step.output.scale
        assert output.quantization.zeroPoint[0] == step.output.zero_point
        if step.constants is None:
            continue
        weights, bias = (graph.tensors[i] for i in op.inputs[1:])
        expected = step.constants.weights.astype("int8")
        if step.op.kind == "depthwise":
            expected = expected.transpose(3, 1, 2, 0)
            assert weights.quantization.quantizedDimension == 3
        np.testing.assert_array_equal(model.buffers[weights.buffer].data.view("int8"), expected.ravel())
        np.testing.assert_array_equal(model.buffers[bias.buffer].data.view("int32"), step.constants.bias)
        np.testing.assert_array_equal(weights.quantization.scale, step.constants.scales)
    stem = graph.operators[0].builtinOptions
    assert (stem.strideH, stem.strideW, stem.padding) == (2, 2, schema.Padding.SAME)
    assert stem.fusedActivationFunction == schema.ActivationFunctionType.RELU6
    assert (stem.dilationHFactor, stem.dilationWFactor) == (1, 1)


def test_same_network_gives_the_same_bytes_aligned_to_16(shift_model):
    for flavour in ("builtin", "custom"):
        network = tflm_export.compile_network(*shift_model, flavour=flavour)
        data = flatbuffer.write(network)
        assert data == flatbuffer.write(tflm_export.compile_network(*shift_model, flavour=flavour))
        whole = schema.Model.GetRootAsModel(data, 0)
        position = np.frombuffer(data, "uint8")
        for index in range(1, whole.BuffersLength()):
            content = whole.Buffers(index).DataAsNumpy()
            assert (content.ctypes.data - position.ctypes.data) % 16 == 0
        operators = whole.Subgraphs(0)
        for index in range(operators.OperatorsLength()):
            if flavour == "custom" and operators.Operators(index).CustomOptionsLength():
                options = operators.Operators(index).CustomOptionsAsNumpy()
                assert (options.ctypes.data - position.ctypes.data) % 16 == 0


def test_custom_model_holds_names_options_packed_weights_and_params(shift_model):
    network = tflm_export.compile_network(*shift_model, flavour="custom")
    model = read(flatbuffer.write(network))
    graph = model.subgraphs[0]
    names = []
    for step, op in zip(network.steps, graph.operators, strict=True):
        code = model.operatorCodes[op.opcodeIndex]
        names.append(code.customCode.decode() if code.customCode else NAMES[code.builtinCode])
        if step.constants is None:
            continue
        record = records.OptionRecord.unpack(bytes(op.customOptions))
        assert (record.magic, record.version, record.length) == (0x47414153, 1, 28)
        assert (record.kernel_h, record.kernel_w) == step.op.kernel_size
        assert (record.pad_top, record.pad_left) == step.op.pads[:2]
        assert (record.input_zero_point, record.output_zero_point) == (step.inputs[0].zero_point, step.output.zero_point)
        assert (record.act_min, record.act_max) == (step.act_min, step.act_max)
        weights, params = (graph.tensors[i] for i in op.inputs[1:])
        assert (weights.type, params.type) == (schema.TensorType.UINT8, schema.TensorType.INT32)
        rows = step.constants.weights.reshape(len(step.constants.weights), -1)
        unpacked = unpack_nibbles(model.buffers[weights.buffer].data, rows.shape)
        np.testing.assert_array_equal(unpacked, rows)
        table = model.buffers[params.buffer].data.view("int32").reshape(-1, 3)
        np.testing.assert_array_equal(table[:, 0], step.constants.bias - step.inputs[0].zero_point * rows.sum(axis=1))
        np.testing.assert_array_equal(table[:, 1:], np.stack([step.constants.multiplier, step.constants.shift], 1))
    assert set(names) == {"SHIFT_CONV_2D", "SHIFT_DEPTHWISE_CONV_2D", "SHIFT_FULLY_CONNECTED", "ADD", "MEAN"}


def unpack_nibbles(data, shape):
    """One code at a time, as the header of the kernels describes them."""
    row_bytes = -(-shape[1] // 4) * 2
    out = np.zeros(shape, int)
    for o in range(shape[0]):
        for i in range(-(-shape[1] // 4) * 4):
            code = (int(data[o * row_bytes + i // 2]) >> 4 * (i % 2)) & 15
            value = 0 if code & 7 == 0 else 2 ** ((code & 7) - 1) * (-1 if code & 8 else 1)
            assert code != 8
            if i < shape[1]:
                out[o, i] = value
            else:
                assert code == 0
    return out


@pytest.mark.parametrize(
    "row, packed",
    [
        pytest.param([1, -64, 0, 2, -1], [0x01 | 0xF0, 0x00 | 0x20, 0x09, 0x00], id="low-nibble-first-padded-to-four"),
        pytest.param([0, 0], [0, 0], id="zeros"),
        pytest.param([64, 32, 16, 8], [0x67, 0x45], id="exponents"),
    ],
)
def test_nibbles(row, packed):
    layout, found = operators.SHIFT.pack(np.array([row]))
    assert layout == records.LAYOUT_NIBBLE and found.tolist() == packed


def test_bytes_hold_sixteen_exponents():
    layout, codes = operators.SHIFT.pack(np.array([[1, -(2**15), 0, 2**14, -2]]))
    assert layout == records.LAYOUT_BYTE and codes.view("int8").tolist() == [1, -16, 0, 15, -2, 0, 0, 0]


def test_offsets_are_unsigned_with_zero_padding():
    layout, codes = operators.ADDER.pack(np.array([[-128, 127, 0]]))
    assert layout == records.LAYOUT_OFFSET and codes.tolist() == [0, 255, 128, 0]


def test_the_generated_c_headers_are_up_to_date():
    operators_of = pathlib.Path(tflm_export.KERNELS) / "include" / "saaug_op_list.h"
    assert operators_of.read_text() == records.operator_header()
    header = pathlib.Path(tflm_export.KERNELS) / "src" / "saaug_option_record.h"
    assert header.read_text() == records.option_header()


def test_option_record_round_trip_and_bytes():
    record = records.OptionRecord(
        magic=records.MAGIC,
        version=1,
        length=28,
        op=2,
        layout=1,
        requant=1,
        kernel_h=3,
        kernel_w=5,
        stride_h=2,
        stride_w=1,
        dilation_h=1,
        dilation_w=2,
        reserved=0,
        pad_top=1,
        pad_left=258,
        depth_multiplier=3,
        input_zero_point=-128,
        output_zero_point=127,
        act_min=-5,
        act_max=9,
    )
    data = record.pack()
    assert len(data) == records.RECORD_BYTES == 28
    assert data[:8] == b"SAAG\x01\x00\x1c\x00" and data[18:24] == bytes([1, 0, 2, 1, 3, 0])
    assert data[24:] == bytes([0x80, 0x7F, 0xFB, 0x09])
    assert records.OptionRecord.unpack(data) == record
