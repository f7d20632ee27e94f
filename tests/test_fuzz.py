"""Damaged .tflite files: `Interpreter` runs them or raises ValueError, whatever is damaged; the firmware's check agrees."""

import threading
import time

import counting
import flatbuffers
import fuzz_tflite
import numpy as np
import pytest

from tflm_export import checking, records, runner


@pytest.fixture(scope="module")
def sound(small_models):
    """name -> bytes."""
    return {path.stem: path.read_bytes() for path in small_models.glob("*.tflite")}


def test_the_models_have_every_operator_that_export_writes(sound):
    found = {operator.name for model in sound.values() for operator in checking.read_model(model).operators}
    known = {rule[0] for rule in checking._RULES.values()} | set(records.CUSTOM)
    assert found == known


def test_a_thousand_damaged_files_run_or_are_refused(small_models):
    """A small share of `python tests/fuzz_tflite.py --mutants 20000`."""
    ends, checks, bad = fuzz_tflite.fuzz(small_models, 1000, seed=2)
    assert bad == {}
    assert ends["ran"] > 50 and ends["refused by the check"] > 500 and sum(ends.values()) == 1000
    assert checks["ran", False] == 0, "the firmware's check refuses what runs"


def edited(model, edit):
    """The file of a model whose objects `edit(model, subgraph, operators by their name, tensors)` has changed."""
    schema = runner.read_schema(model)
    subgraph = schema.subgraphs[0]
    names = {rule[0]: number for number, rule in checking._RULES.items()}
    names = {number: name for name, number in names.items()}
    operators = {}
    for operator in subgraph.operators:
        code = schema.operatorCodes[operator.opcodeIndex]
        operators[code.customCode.decode() if code.customCode else names[code.builtinCode]] = operator
    edit(schema, subgraph, operators, subgraph.tensors)
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(schema.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator(name, **changes):
    """Changes fields of an operator, or of its options."""

    def edit(schema, subgraph, operators, tensors):
        for field, value in changes.items():
            target = operators[name] if hasattr(operators[name], field) else operators[name].builtinOptions
            setattr(target, field, value)

    return edit


def tensor_of(name, which, index, **changes):
    """Changes fields of a tensor that an operator reads or writes, or of its quantization."""

    def edit(schema, subgraph, operators, tensors):
        tensor = tensors[getattr(operators[name], which)[index]]
        for field, value in changes.items():
            setattr(tensor if hasattr(tensor, field) else tensor.quantization, field, value)

    return edit


def data_of(name, index, change):
    """Changes the bytes of a constant."""

    def edit(schema, subgraph, operators, tensors):
        buffer = schema.buffers[tensors[operators[name].inputs[index]].buffer]
        buffer.data = change(np.array(buffer.data))

    return edit


def record(position, value):
    def edit(schema, subgraph, operators, tensors):
        operators["SHIFT_CONV_2D"].customOptions = np.array(operators["SHIFT_CONV_2D"].customOptions)
        operators["SHIFT_CONV_2D"].customOptions[position] = value

    return edit


def ends(field, value):
    return lambda schema, subgraph, operators, tensors: setattr(subgraph, field, value)


def code(name, **changes):
    def edit(schema, subgraph, operators, tensors):
        for field, value in changes.items():
            setattr(schema.operatorCodes[operators[name].opcodeIndex], field, value)

    return edit


def offline_plan(schema, subgraph, operators, tensors):
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated

    entry = schema_py_generated.MetadataT()
    entry.name, entry.buffer = "OfflineMemoryAllocation", 1
    schema.metadata = [entry]


def appended(field):
    def edit(schema, subgraph, operators, tensors):
        place = schema if field == "subgraphs" else subgraph
        setattr(place, field, [*getattr(place, field), getattr(place, field)[0]])

    return edit


def backwards(schema, subgraph, operators, tensors):
    subgraph.operators = subgraph.operators[::-1]


def zeroed(values):
    values[:4] = 0x88
    return values


NAN, INFINITE = np.array([np.nan], "float32"), np.array([np.inf], "float32")
GRID = {"scale": np.array([0.1], "float32"), "zeroPoint": np.array([0])}
PRODUCTS = [
    pytest.param(operator("CONV_2D", inputs=[]), "must have 3 inputs", id="no-inputs"),
    pytest.param(operator("ADD", inputs=[0]), "must have 2 inputs", id="one-input"),
    pytest.param(operator("ADD", outputs=[-1]), "must be among", id="output-minus-one"),
    pytest.param(operator("ADD", inputs=[-1, -1]), "must be among", id="input-minus-one"),
    pytest.param(operator("ADD", inputs=[5, 99]), "must be among", id="input-beyond"),
    pytest.param(operator("ADD", opcodeIndex=99), "the code of operator", id="code-beyond"),
    pytest.param(operator("CONV_2D", strideW=0), "strides and dilations of 1", id="stride-0"),
    pytest.param(operator("CONV_2D", strideH=-1), "strides and dilations of 1", id="stride-negative"),
    pytest.param(operator("DEPTHWISE_CONV_2D", dilationHFactor=0), "strides and dilations of 1", id="dilation-0"),
    pytest.param(operator("DEPTHWISE_CONV_2D", depthMultiplier=0), "by its multiplier", id="multiplier-0"),
    pytest.param(operator("CONV_2D", padding=2), 'padding "same"', id="padding"),
    pytest.param(operator("CONV_2D", fusedActivationFunction=4), "an activation among", id="activation"),
    pytest.param(operator("MAX_POOL_2D", filterWidth=0), "a kernel", id="filter-0"),
    pytest.param(operator("AVERAGE_POOL_2D", strideW=0), "strides", id="pool-stride-0"),
    pytest.param(operator("MEAN", keepDims=False), "an output of shape", id="dimensions-kept"),
    pytest.param(operator("FULLY_CONNECTED", weightsFormat=1), "plain order", id="weights-format"),
    pytest.param(operator("RESIZE_BILINEAR", alignCorners=True), "aligned corners or", id="corners"),
    pytest.param(operator("SOFTMAX", beta=0.0), "beta 1", id="beta"),
    pytest.param(operator("SOFTMAX", builtinOptions=None, builtinOptionsType=0), "the options of another", id="no-options"),
    pytest.param(ends("inputs", [99]), "its input must be one of", id="graph-input-beyond"),
    pytest.param(ends("outputs", [-1]), "its output must be one of", id="graph-output-minus-one"),
    pytest.param(ends("inputs", [0, 0]), "must have one input", id="two-inputs"),
    pytest.param(ends("operators", []), "neither a constant nor computed", id="no-operators"),
    pytest.param(appended("subgraphs"), "must have one subgraph", id="two-subgraphs"),
    pytest.param(appended("operators"), "writes what has a value", id="computed-twice"),
    pytest.param(backwards, "not computed yet", id="backwards"),
    pytest.param(offline_plan, "it has metadata", id="offline-plan"),
    pytest.param(code("ADD", builtinCode=200, deprecatedBuiltinCode=127), "the operators alone", id="unknown-operator"),
    pytest.param(code("ADD", builtinCode=32, deprecatedBuiltinCode=32, customCode="X"), "the operators alone", id="custom"),
    pytest.param(tensor_of("ADD", "outputs", 0, shape=[1, 1, 5, 6, 4]), "one shape", id="one-rank-more"),
    pytest.param(tensor_of("CONV_2D", "outputs", 0, shape=[1, 5, 6, 4, 1]), "4 dimensions", id="conv-rank"),
    pytest.param(tensor_of("PAD", "outputs", 0, shape=[1, 99, 9, 3]), "an output of shape", id="pad-size"),
    pytest.param(tensor_of("RESHAPE", "outputs", 0, shape=[1, 2, 3, 4, 1, 1, 1]), "dimensions", id="seven-dimensions"),
    pytest.param(tensor_of("RESHAPE", "outputs", 0, shape=[0]), "positive dimensions", id="empty"),
    pytest.param(tensor_of("ADD", "outputs", 0, shape=[1, 2**30, 9, 9]), "fewer than 2", id="too-large"),
    pytest.param(tensor_of("ADD", "outputs", 0, shape=[1, 2**14, 2**14, 4]), "its activations take", id="arena"),
    pytest.param(tensor_of("ADD", "outputs", 0, type=0), "must be of int8", id="float"),
    pytest.param(tensor_of("ADD", "outputs", 0, isVariable=True), "is a variable", id="variable"),
    pytest.param(tensor_of("ADD", "outputs", 0, buffer=999), "the buffer of tensor", id="buffer-beyond"),
    pytest.param(tensor_of("ADD", "outputs", 0, quantization=None), "with one scale", id="no-grid"),
    pytest.param(tensor_of("ADD", "outputs", 0, scale=NAN), "positive and finite", id="nan"),
    pytest.param(tensor_of("ADD", "outputs", 0, scale=INFINITE), "positive and finite", id="infinite"),
    pytest.param(tensor_of("ADD", "outputs", 0, scale=0 * GRID["scale"]), "positive and finite", id="scale-0"),
    pytest.param(tensor_of("ADD", "outputs", 0, zeroPoint=np.array([300])), "zero points of", id="zero-point"),
    pytest.param(tensor_of("ADD", "outputs", 0, zeroPoint=[]), "a scale and a zero point", id="no-zero-point"),
    pytest.param(tensor_of("ADD", "outputs", 0, scale=GRID["scale"] * 1e-9), "scales in proportion", id="add-scale"),
    pytest.param(tensor_of("MUL", "outputs", 0, scale=GRID["scale"] * 1e-30), "scales in proportion", id="mul-scale"),
    pytest.param(tensor_of("SOFTMAX", "inputs", 0, scale=GRID["scale"] * 1e-8), "above 2", id="softmax-scale"),
    pytest.param(tensor_of("HARD_SWISH", "outputs", 0, scale=GRID["scale"] * 1e-5), "not finer", id="h-swish-scale"),
    pytest.param(tensor_of("LOGISTIC", "outputs", 0, scale=GRID["scale"]), "in steps of 1/256", id="sigmoid-scale"),
    pytest.param(tensor_of("LEAKY_RELU", "outputs", 0, scale=GRID["scale"] * 1e-8), "in proportion", id="leaky-scale"),
    pytest.param(tensor_of("CONCATENATION", "inputs", 1, scale=GRID["scale"] * 1.5), "the grid of its", id="joined-grid"),
    pytest.param(tensor_of("CONV_2D", "inputs", 1, **GRID), None, id="one-scale-for-all"),
    pytest.param(tensor_of("CONV_2D", "inputs", 1, quantizedDimension=3), "a scale for each channel", id="channel-dimension"),
    pytest.param(tensor_of("CONV_2D", "inputs", 1, quantizedDimension=-9), "on dimension -9", id="channel-nowhere"),
    pytest.param(data_of("CONV_2D", 1, lambda data: data[:-1]), "must have", id="short-constant"),
    pytest.param(data_of("CONV_2D", 2, lambda data: None), "not computed yet", id="no-constant"),
    pytest.param(data_of("PAD", 1, lambda data: data - 1), "0 or more", id="negative-pads"),
    pytest.param(data_of("MEAN", 1, lambda data: data * 9), "dimensions 1 and 2", id="axes"),
    pytest.param(data_of("RESIZE_BILINEAR", 1, lambda data: data * 0), "an output of its size", id="resize-to-0"),
]
SHIFT = [
    pytest.param(operator("SHIFT_CONV_2D", inputs=[]), "must have 3 inputs", id="no-inputs"),
    pytest.param(operator("SHIFT_CONV_2D", customOptions=None), "option record of 28 bytes", id="no-record"),
    pytest.param(tensor_of("SHIFT_CONV_2D", "outputs", 0, shape=[0]), "positive dimensions", id="output-of-nothing"),
    pytest.param(tensor_of("SHIFT_CONV_2D", "outputs", 0, shape=[15]), "4 dimensions", id="output-flat"),
    pytest.param(tensor_of("SHIFT_CONV_2D", "outputs", 0, shape=[1, 9, 3, 5]), "outputs on dimension 1", id="output-size"),
    pytest.param(tensor_of("SHIFT_FULLY_CONNECTED", "outputs", 0, shape=[3, 1]), "must be of shape", id="batches"),
    pytest.param(tensor_of("SHIFT_DEPTHWISE_CONV_2D", "outputs", 0, shape=[1, 3, 3, 9]), "by its multiplier", id="channels"),
    pytest.param(data_of("SHIFT_CONV_2D", 1, zeroed), "known codes", id="reserved-code"),
    pytest.param(data_of("SHIFT_CONV_2D", 1, lambda data: data[:9]), "must have", id="short-weights"),
    pytest.param(data_of("SHIFT_CONV_2D", 2, lambda data: data * 0), "shifts from 1", id="shift-0"),
    *(
        pytest.param(record(place, value), "a sound record", id=f"record-{place}-{value}")
        for place, value in [
            (0, 0),
            (4, 2),
            (6, 27),
            (8, 2),
            (9, 2),
            (10, 7),
            (11, 0),
            (13, 0),
            (15, 0),
            (17, 1),
            (19, 9),
            (22, 2),
            (24, 5),
        ]
    ),
]


# What harms nothing but the result, or is left to the Prepare of our own operators.
NOT_IN_FIRMWARE = {"computed-twice", "backwards", "no-operators"}


@pytest.mark.parametrize(
    "name, edit, sentence",
    [
        *(pytest.param("products", *case.values, id=f"products-{case.id}") for case in PRODUCTS),
        *(pytest.param("shift", *case.values, id=f"shift-{case.id}") for case in SHIFT),
    ],
)
def test_what_is_wrong_is_said(sound, name, edit, sentence, request):
    model = edited(sound[name], edit)
    in_firmware = fuzz_tflite.c_check()(model)
    if sentence is None:
        runner.Interpreter(model)
        assert in_firmware is None
        return
    with pytest.raises(ValueError, match="tflm_export.Interpreter: `model` must") as raised:
        runner.Interpreter(model)
    assert sentence in str(raised.value)
    case = request.node.callspec.id.removeprefix(f"{name}-")
    assert in_firmware is not None or name == "shift" or case in NOT_IN_FIRMWARE


def test_a_measurement_that_dies_says_why(sound):
    model = edited(sound["products"], tensor_of("SOFTMAX", "inputs", 0, scale=GRID["scale"] * 1e-8))
    with pytest.raises(RuntimeError, match=r"SOFTMAX, must have an input whose scale is above 2\*\*-26"):
        runner.measure_arena(model)


def test_an_edit_of_nothing_is_the_model(sound):
    for model in sound.values():
        image = np.random.default_rng(0).integers(-128, 128, runner.Interpreter(model).input_shape).astype("int8")
        copy = edited(model, lambda *parts: None)
        np.testing.assert_array_equal(runner.Interpreter(copy).run([image]), runner.Interpreter(model).run([image]))


def test_a_file_cut_anywhere_is_refused(sound):
    for model in sound.values():
        for length in {*range(0, 64), *range(64, len(model), 97), len(model) - 1}:
            with pytest.raises(ValueError, match="`model` must be a (sound )?.tflite f"):
                runner.Interpreter(model[:length])


def test_checking_a_file_takes_few_steps_per_byte(sound):
    for model in sound.values():
        assert counting.calls(lambda model=model: checking.read_model(model)) < 4 * len(model)  # some 2


class Hesitant:
    """TFLite Micro's interpreter, giving way to other threads between input and invocation."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def set_input(self, values, index):
        self.inner.set_input(values, index)
        time.sleep(0.001)


@pytest.mark.parametrize("name", ["products", "shift"])
def test_threads_share_an_interpreter(sound, name):
    interpreter = runner.Interpreter(sound[name], keep_tensors=True)
    images = np.random.default_rng(0).integers(-128, 128, (60, *interpreter.input_shape)).astype("int8")
    expected, found = interpreter.run(images), {}
    interpreter._interpreter = Hesitant(interpreter._interpreter)

    def run(number):
        found[number] = interpreter.run(images[number::4])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, rows in found.items():
        np.testing.assert_array_equal(rows, expected[number::4])
    assert len(found) == 4 and len(np.unique(expected, axis=0)) > 20
    assert interpreter.run(images[:0]).shape == (0, *interpreter.output_shape)
