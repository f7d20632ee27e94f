"""`tflm_export.export`: files, report, refusals. And lowering: what is folded, what is refused."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from export_models import compile_and_compare, images_like, layer_by_layer, settle, small_backbone

import saaug_keras
import tflm_export
from saaug_keras import backbones
from saaug_keras import layers as ours
from saaug_keras import ops as saaug_ops
from tflm_export import flatbuffer, graph, operators, quantize, records, reference, runner
from tflm_export.report import count_operations

L = keras.layers


@pytest.fixture(scope="module")
def shift_model():
    return small_backbone("mobilenetv2-tiny", "shift", blocks=3, count=16)


def test_export_writes_model_and_report(shift_model, tmp_path):
    model, images = shift_model
    labels = model.predict(images, verbose=0).argmax(axis=-1)
    labels[0] = (labels[0] + 1) % 7  # so that accuracy is not agreement
    out = tmp_path / "new" / "out"
    report = tflm_export.export(model, images, out, evaluation_data=(images, labels), name="net")
    assert sorted(path.name for path in out.iterdir()) == ["net.tflite", "report.json"]
    written = json.loads((out / "report.json").read_text())
    assert written == json.loads(json.dumps(report.as_dict()))
    data = (out / "net.tflite").read_bytes()
    assert report.model_bytes == len(data)
    arena = runner.measure_arena(data)
    assert (report.activation_bytes, report.arena_tail_host_bytes) == (arena.head, arena.tail)
    # Stem to classifier, batch norm folded: 27*16, 9*16, 16*8, 8*48, 9*48, 48*8, 8*48, 9*48, 48*8, 8*448, 448*7 and
    # biases. The stem's strides of 2 make the image 10 x 9, the second block 5 x 5.
    weights = 27 * 16 + 9 * 16 + 16 * 8 + 2 * (8 * 48 + 9 * 48 + 48 * 8) + 8 * 448 + 448 * 7
    biases = 16 + 16 + 8 + 2 * (48 + 48 + 8) + 448 + 7
    assert report.parameters == weights + biases
    assert report.weight_bytes == weights
    assert report.constant_bytes == weights + 4 * biases
    assert report.images == 16 and report.agreement >= 15 / 16
    assert report.float_accuracy == 15 / 16
    assert "flash" in str(report) and f"{len(data):,}" in str(report)


def test_arena_head_covers_the_two_largest_tensors_alive_together(shift_model):
    """The head is TFLite Micro's plan of activations: at least the largest sum of an op's inputs and output."""
    model, images = shift_model
    network = tflm_export.compile_network(model, images)
    needed = max(
        sum(int(np.prod(t.shape)) for t in {t.name: t for t in (*step.inputs, step.output)}.values()) for step in network.steps
    )
    head = runner.measure_arena(flatbuffer.write(network)).head
    assert needed <= head <= 2 * needed + 1024


def test_custom_flavour_halves_the_weights(shift_model, tmp_path):
    model, images = shift_model
    sizes = {
        flavour: tflm_export.export(model, images, tmp_path / flavour, flavour=flavour) for flavour in ("builtin", "custom")
    }
    rows = [27, 9, 16, 8, 9, 48, 8, 9, 48, 8, 448]
    outputs = [16, 16, 8, 48, 48, 8, 48, 48, 8, 448, 7]
    packed = sum(-(-row // 4) * 2 * count for row, count in zip(rows, outputs, strict=True))
    assert sizes["custom"].weight_bytes == packed
    assert sizes["builtin"].weight_bytes == sum(a * b for a, b in zip(rows, outputs, strict=True))
    assert sizes["custom"].model_bytes < sizes["builtin"].model_bytes


def test_operations_are_counted(shift_model):
    image = keras.Input((4, 5, 2))
    x = ours.ShiftConv2D(3, 1, use_bias=False)(image)
    x = ours.AdderConv2D(4, (2, 3), padding="valid")(x)
    y = L.Conv2D(4, 1)(x)
    model = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling2D()(L.Add()([x, y]))))
    model.layers[1].kernel.assign(np.full((1, 1, 2, 3), 0.5))
    images = images_like((4, 5, 2), 4)
    model(images, training=True)
    network = tflm_export.compile_network(model, images, flavour="custom")
    shift, adder, conv = 4 * 5 * 2 * 3, 3 * 3 * (2 * 3 * 3) * 4, 3 * 3 * 4 * 4
    assert count_operations(network) == {
        "multiplications": conv + 4 * 2,
        "shifts": shift,
        "additions": shift + adder + conv + 36 + 36 + 4 * 2,
        "differences": adder,
        # of an addition's two inputs, the coarser one is halved, which is a shift
        "requantizations": 60 + 36 + 36 + 2 * 36 + 4 + 2,
    }


def test_add_layer_is_refused_for_builtin(tmp_path):
    image = keras.Input((5, 4, 2))
    model = keras.Model(image, ours.AdderConv2D(3, 1, name="first_add")(image))
    with pytest.raises(ValueError, match="layer 'first_add' is an add layer.*flavour='custom'"):
        tflm_export.export(model, images_like((5, 4, 2), 2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options, levels", [({"weight_bits": 5}, 15), ({"zero_code": False}, 8)])
def test_shift_weights_beyond_int8_are_refused_for_builtin(options, levels, tmp_path):
    image = keras.Input((5, 4, 2))
    model = keras.Model(image, ours.ShiftConv2D(3, 1, name="wide", **options)(image))
    with pytest.raises(ValueError, match=f"layer 'wide' has shift weights of {levels} exponents; int8 holds 7"):
        tflm_export.export(model, images_like((5, 4, 2), 2), tmp_path / "out")
    network, _ = compile_and_compare(model, images_like((5, 4, 2), 2), flavour="custom")
    layout = flatbuffer.custom_layer(network.steps[0]).record.layout
    assert layout in (records.LAYOUT_NIBBLE, records.LAYOUT_BYTE)


def wide_shift_model(least_exponent):
    """Two weights, 1 and 2**least_exponent, of a 5-bit layer."""
    image = keras.Input((5, 4, 2))
    model = keras.Model(image, ours.ShiftConv2D(1, 1, weight_bits=5, use_bias=False, name="wide")(image))
    model.get_layer("wide").kernel.assign(np.array([1.0, -(2.0**least_exponent)]).reshape(1, 1, 2, 1))
    return model


@pytest.mark.parametrize("least, layout", [(-6, records.LAYOUT_NIBBLE), (-7, records.LAYOUT_BYTE), (-14, records.LAYOUT_BYTE)])
def test_layout_follows_the_exponents_in_use(least, layout):
    images = images_like((5, 4, 2), 4)
    network, _ = compile_and_compare(wide_shift_model(least), images, flavour="custom")
    assert flatbuffer.custom_layer(network.steps[0]).record.layout == layout
    assert sorted(np.abs(network.steps[0].constants.weights).ravel()) == [1, 2**-least]


@pytest.mark.parametrize(
    "build, message",
    [
        pytest.param(
            lambda x: L.Conv2DTranspose(2, 3, name="up")(x), r"layer 'up' \(Conv2DTranspose\) is of a kind", id="unknown-kind"
        ),
        pytest.param(lambda x: L.PReLU(name="learned")(x), r"layer 'learned' \(PReLU\) is of a kind", id="prelu"),
        pytest.param(
            lambda x: L.LeakyReLU(1e-5, name="flat")(x), "layer 'flat' .* slope from 1/1024 to 1024. Received: neg", id="leaky"
        ),
        pytest.param(
            lambda x: L.ReLU(6.0, 0.1, name="both")(x),
            "layer 'both' .*Received: max_value=6.0, negative_slope=0.1",
            id="leaky-relu6",
        ),
        pytest.param(
            lambda x: L.Concatenate(name="eleven")([x] * 11), "layer 'eleven' .* at most 10 inputs.* two steps", id="joined"
        ),
        pytest.param(lambda x: L.Conv2D(4, 1, groups=2, name="g")(x), "layer 'g' .* must have one group", id="groups"),
        pytest.param(
            lambda x: L.Conv2D(4, 1, activation="gelu", name="act")(x),
            "layer 'act' .*Received: activation='gelu'",
            id="activation",
        ),
        pytest.param(lambda x: L.ReLU(max_value=3.0, name="clip")(x), "layer 'clip' .* ReLU6 or leaky", id="relu3"),
        pytest.param(lambda x: L.BatchNormalization(axis=1, name="bn")(x), "layer 'bn' .* last axis", id="axis"),
        pytest.param(lambda x: L.Add(name="three")([x, x, x]), "layer 'three' .* two tensors", id="add-of-three"),
        pytest.param(
            lambda x: L.Resizing(9, 9, interpolation="nearest", name="near")(x), "layer 'near' .* bilinear", id="nearest"
        ),
        pytest.param(
            lambda x: ours.ShiftConv2D(2, 1, activation_bits=4, name="narrow")(x),
            "layer 'narrow' .* must have seen inputs in training",
            id="activation-bits",
        ),
        pytest.param(
            lambda x: ours.HybridConv2D(4, 1, target_filters=2, target_channels=4, name="aug")(x),
            r"layer 'aug' .* export_target\(\)",
            id="hybrid",
        ),
        pytest.param(lambda x: x * 0.0, r"\(Multiply\) must add, .* by a finite number. Received: 0.0 as", id="times-nothing"),
        pytest.param(lambda x: 2.0 / x, "must add, subtract, multiply by or divide by", id="reciprocal"),
        pytest.param(lambda x: x**2.0, r"\(Power\) is of a kind that export does not know", id="power"),
    ],
)
def test_layer_that_export_does_not_know_is_named(build, message, tmp_path):
    image = keras.Input((8, 6, 4))
    model = keras.Model(image, build(image))
    with pytest.raises(ValueError, match=message):
        tflm_export.export(model, images_like((8, 6, 4), 2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Distances(L.Conv2D):
    """The l1 distance in the place of products, as a user may write it."""

    def convolution_op(self, inputs, kernel):
        return -saaug_ops.adder_conv2d(inputs, kernel, padding="valid")


def relu6(x):
    return 2 * keras.ops.relu6(x)


def own(parent, **methods):
    """A subclass that overrides methods and attributes of a layer class."""
    return type("Own", (parent,), methods)


def same(self, inputs, *args, **kwargs):
    return inputs


def shadowed(layer):
    layer.call = lambda inputs: inputs
    return layer


def quantized(layer):
    keras.Sequential([keras.Input((8, 6, 4)), layer])
    layer.quantize("int8")
    return layer


OWN_WAYS = {
    "convolution_op": (lambda: Distances(2, 1, name="own"), "its own convolution_op"),
    "call": (lambda: own(L.DepthwiseConv2D, call=same)(1, name="own"), "its own call"),
    "mixin": (lambda: type("Own", (type("Mixin", (), {"call": same}), L.Dense), {})(2, name="own"), "its own call"),
    "dunder": (lambda: own(L.ReLU, __call__=lambda self, x: L.ReLU.__call__(self, x))(name="own"), "its own __call__"),
    "instance": (lambda: shadowed(L.BatchNormalization(name="own")), "its own call"),
    "shift": (lambda: own(ours.ShiftConv2D, _quantize=lambda s, x, t: (x, None))(2, 1, name="own"), "its own _quantize"),
    "add": (lambda: own(ours.AdderConv2D, on_grid=lambda s, k, step: k)(2, 1, name="own"), "its own on_grid"),
    "dropped": (lambda: own(L.Dropout, call=same)(0.5, name="own"), "its own call"),
    "a-name-that-is-dropped": (lambda: type("Dropout", (L.Layer,), {"call": same})(name="own"), "of a kind that export"),
    "a-name-that-is-known": (lambda: type("Add", (L.Layer,), {"call": same})(name="own"), "of a kind that export"),
    "activation": (lambda: L.Conv2D(2, 1, activation=relu6, name="own"), "Keras's own relu, .*activation='relu6'"),
    "activation-layer": (lambda: L.Activation(relu6, name="own"), "Keras's own relu, .*activation='relu6'"),
    "pooling": (lambda: L.GlobalAveragePooling2D(data_format="channels_first", name="own"), "must be channels-last"),
    "antialias": (lambda: L.Resizing(4, 3, antialias=True, name="own"), "must resize bilinearly"),
    "quantized-by-keras": (lambda: quantized(L.Dense(2, name="own")), "must not be quantized by Keras"),
    "nested-model": (lambda: own_model(), "must compute what its layers compute"),
}


def test_a_shift_layer_may_round_in_its_own_way_to_powers_of_two_alone():
    image = keras.Input((8, 6, 4))
    halves = own(ours.ShiftConv2D, quantized_kernel=lambda s: keras.ops.sign(s.kernel.value) / 2)(2, 1, name="own")
    model = keras.Model(image, halves(image))
    data = np.random.default_rng(3).random((4, 8, 6, 4), "float32")
    model(data, training=True)
    network = tflm_export.compile_network(model, data)
    assert (np.abs(network.steps[0].constants.weights) == 1).all()  # times a scale of 1/2
    as_they_are = own(ours.ShiftConv2D, quantized_kernel=lambda s: s.kernel.value)(2, 1, name="own")
    model = keras.Model(image, as_they_are(image))
    model(data, training=True)
    with pytest.raises(ValueError, match="layer 'own': its deployed kernel must be signed powers of two"):
        tflm_export.compile_network(model, data)


def own_model():
    image = keras.Input((8, 6, 4))
    return own(keras.Model, call=same)(image, L.ReLU()(image), name="own")


@pytest.mark.parametrize("case", OWN_WAYS)
def test_what_computes_in_its_own_way_is_refused_by_name(case):
    build, message = OWN_WAYS[case]
    image = keras.Input((8, 6, 4))
    with pytest.raises(ValueError, match=f"layer 'own' .*{message}"):
        graph.lower(keras.Model(image, build()(image)))


def test_a_model_with_a_call_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"layer 'own' \(Own\) must compute what its layers compute"):
        graph.lower(own_model())


def test_subclasses_that_compute_as_their_parents_do_are_exported():
    def build(self, input_shape):
        self.built_for = input_shape
        L.Conv2D.build(self, input_shape)

    def initialise(self, filters, **options):
        L.Conv2D.__init__(self, filters, (2, 1), **options)

    image = keras.Input((8, 6, 4))
    convolution = own(L.Conv2D, __init__=initialise, build=build, get_config=dict, helper=same, __doc__="Ours.")
    training = own(keras.Model, train_step=same)
    found = training(image, own(L.ReLU)()(convolution(3, activation="relu6", name="mine")(image)))
    assert graph.lower(found).ops[0].name == "mine"


@pytest.mark.parametrize("ladder", ["float", "reference", "report"])
def test_an_unknown_kind_is_refused_with_those_known(ladder):
    """At every place that decides by them, so that a new one cannot be taken for an old one."""
    model = plain_model()
    images = images_like((6, 5, 2), 2)
    network = tflm_export.compile_network(model, images, flavour="custom")
    op, step = graph.lower(model).ops[0], network.steps[0]
    other = dataclasses.replace(step, op=dataclasses.replace(step.op, kind="cosine"), constants=None)
    other = dataclasses.replace(network, steps=(other,))
    run = {
        "float": lambda: graph._float_op(dataclasses.replace(op, kind="cosine", weights=None), [images], (1,)),
        "reference": lambda: reference.run(other, network.input.quantize(images)),
        "report": lambda: count_operations(other),
    }
    with pytest.raises(ValueError, match="must be one of 'a.*Received: .*='cosine'|must be one of 'channel_shift'"):
        run[ladder]()


def test_an_arithmetic_that_export_does_not_have_is_refused_with_those_there_are():
    @dataclasses.dataclass(frozen=True)
    class Xnor(saaug_keras.operators.Operator):
        family = "xnor"
        deployed_as = "xnor"

    image = keras.Input((4, 4, 2))
    model = keras.Model(image, ours.RoundedConv2D(2, 1, operator="conv", name="odd")(image))
    model.get_layer("odd").operator = Xnor()
    with pytest.raises(ValueError, match="layer 'odd': `deployed_as` .* must be one of 'conv', .*deployed_as='xnor'"):
        graph.lower(model)


@pytest.mark.parametrize("bits, fits", [(5, True), (6, True), (6, False), (8, False)])
def test_a_channel_whose_exponents_no_code_holds_is_refused(bits, fits):
    """Per channel, whatever the bits; other channels may lie elsewhere."""
    span = 15 if fits else 16
    image = keras.Input((5, 4, 2))
    model = keras.Model(image, ours.ShiftConv2D(2, 1, weight_bits=bits, use_bias=False, name="wide")(image))
    least = max(span, 14) if bits > 5 else 14
    kernel = np.array([[1.0, -(2.0**-least)], [2.0**-9, 2.0**-9]]).T.reshape(1, 1, 2, 2)
    model.get_layer("wide").kernel.assign(kernel)
    images = images_like((5, 4, 2), 4)
    if not fits:
        with pytest.raises(
            ValueError,
            match=r"layer 'wide', output channel 0: its weights must span at most 16 exponents"
            r".*2\*\*-16 to 2\*\*0\. Train with weight_bits <= 5",
        ):
            tflm_export.compile_network(model, images, flavour="custom")
        return
    network, _ = compile_and_compare(model, images, flavour="custom")
    assert flatbuffer.custom_layer(network.steps[0]).record.layout == records.LAYOUT_BYTE


@pytest.mark.parametrize("flavour", ["builtin", "custom"])
def test_inputs_of_few_bits_are_exact_whoever_else_reads_them(flavour):
    """Padding, a vector, a tensor below 0 that another layer reads with more bits, one that goes beyond the range."""
    keras.utils.set_random_seed(2)
    image = keras.Input((7, 6, 3))
    x = L.Conv2D(6, 1)(image)
    wide = ours.ShiftConv2D(6, 1, name="wide")(x)
    x = L.Add()([wide, ours.ShiftConv2D(6, 3, padding="same", activation_bits=3, name="narrow")(x)])
    x = L.GlobalAveragePooling2D()(L.ReLU()(x))
    model = keras.Model(image, ours.ShiftDense(4, activation_bits=5, name="vector")(x))
    images = images_like((7, 6, 3), 6)
    settle(model, images)
    for name, (low, high) in {"wide": (-2.0, 2.0), "narrow": (-0.3, 0.7)}.items():
        model.get_layer(name).input_range.assign([low, high])
    network, tensors = compile_and_compare(model, images, flavour=flavour)
    for step, difference in layer_by_layer(model, network, tensors):
        if step.constants is not None and step.constants.operator is operators.SHIFT:
            codes = np.unique(tensors[step.inputs[0].name])
            assert len(codes) <= {"wide": 256, "narrow": 8, "vector": 32}[step.op.name]
            assert difference.max() <= 1.001, step.op.name
    if flavour == "custom":
        with pytest.raises(ValueError, match="layer 'narrow' must have `activation_bits` 8 or None for requantization"):
            tflm_export.compile_network(model, images, flavour="custom", requantization="power-of-two")


def test_a_channel_of_zeros_without_the_zero_code_is_a_constant():
    image = keras.Input((5, 4, 2))
    model = keras.Model(image, ours.ShiftConv2D(2, 1, zero_code=False, name="dead")(image))
    model.get_layer("dead").kernel.assign(np.array([[0.0, 0.0], [0.5, -1.0]]).T.reshape(1, 1, 2, 2))
    model.get_layer("dead").bias.assign([0.25, 0.0])
    images = images_like((5, 4, 2), 4)
    network, tensors = compile_and_compare(model, images, flavour="custom")
    found = network.output.dequantize(tensors[network.output.name])
    np.testing.assert_allclose(found, model(images[:2]), atol=float(network.output.scale))


def plain_model(shape=(6, 5, 2)):
    image = keras.Input(shape)
    return keras.Model(image, L.Dense(3)(L.Flatten()(L.Conv2D(2, 1)(image))), name="plain")


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param({"flavour": "fast"}, "`flavour` must be one of 'builtin', 'custom'", id="flavour"),
        pytest.param({"target": "arm"}, "`target` must be one of 'c', 'tflite', 'tflm'", id="target"),
        pytest.param({"requantization": "float"}, "`requantization` must be one of", id="requantization"),
        pytest.param({"requantization": "power-of-two"}, "needs our kernels, flavour='custom'", id="builtin-by-shifts"),
        pytest.param({"representative_data": np.zeros((2, 5, 6, 2), "float32")}, r"images \(N, 6, 5, 2\)", id="shape"),
        pytest.param({"representative_data": np.zeros((0, 6, 5, 2), "float32")}, "at least one", id="none"),
        pytest.param({"representative_data": np.full((2, 6, 5, 2), 7.0)}, r"must lie in \[0, 1\]", id="range"),
        pytest.param({"representative_data": np.full((2, 6, 5, 2), np.nan)}, r"must lie in \[0, 1\]", id="nan"),
        pytest.param({"evaluation_data": (np.zeros((3, 6, 5, 2)), np.zeros(2))}, "`evaluation_data` must", id="labels"),
        pytest.param({"input_range": (1.0, 0.0)}, "low < high", id="input-range"),
        pytest.param({"name": "a/b"}, "`name` must be letters", id="name"),
        pytest.param(
            {"flash_bytes": 999}, r"does not fit: on core 'm4' it takes .* of flash \(model .* `flash_bytes` is 999", id="flash"
        ),
        pytest.param({"sram_bytes": 10}, r"does not fit: .* of RAM \(activations .* at layer .* `sram_bytes` is 10", id="sram"),
        pytest.param({"sram_bytes": 0}, "`sram_bytes` must be an int", id="sram-zero"),
    ],
)
def test_wrong_argument_is_named_and_nothing_is_written(change, message, tmp_path):
    arguments = {"representative_data": images_like((6, 5, 2), 3)} | change
    with pytest.raises(ValueError, match=message):
        tflm_export.export(plain_model(), arguments.pop("representative_data"), tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`model` must be a built functional or sequential .* Received: model=str"):
        tflm_export.export("model.keras", images_like((6, 5, 2), 2), tmp_path / "out")
    image = keras.Input((6, 5, 2))
    two = keras.Model(image, [L.Conv2D(1, 1)(image), L.Conv2D(1, 1)(image)])
    with pytest.raises(ValueError, match=r"one input and one output. Received: 1 inputs \(.*\); 2 outputs \("):
        tflm_export.export(two, images_like((6, 5, 2), 2), tmp_path / "out")


def test_folder_that_cannot_be_written_is_refused_before_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`out_dir` must be a folder that can be written"):
        tflm_export.export(plain_model(), images_like((6, 5, 2), 2), tmp_path / "file")


def test_sequential_nested_and_shared_layers_lower_to_the_same_function():
    shared = L.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    block = [L.DepthwiseConv2D(3, name="dw"), L.BatchNormalization(name="bn"), L.ReLU(6.0)]
    block = keras.Sequential(block, name="block")
    image = keras.Input((9, 8, 4))
    x = shared(shared(image))
    x = keras.Model(image, x, name="inner")(image)
    model = keras.Model(image, L.Dense(3, name="dense")(L.Flatten()(block(x))))
    images = images_like((9, 8, 4), 6)
    settle(model, images)
    lowered = graph.lower(model)
    assert [op.name for op in lowered.ops] == ["shared", "shared_2", "dw", "dense"]
    np.testing.assert_allclose(graph.run_float(lowered, images)[lowered.output], model.predict(images, verbose=0), atol=1e-5)
    compile_and_compare(model, images)


def test_uint8_images_batches_and_datasets_are_the_same_representative_data():
    import tensorflow as tf

    model = plain_model()
    images = images_like((6, 5, 2), 6)
    pixels = np.round(images * 255).astype("uint8")
    forms = [
        images,
        pixels,
        [images[:4], images[4:]],
        [(pixels[:2], None), (pixels[2:], None)],
        tf.data.Dataset.from_tensor_slices((images, np.zeros(6))).batch(4),
    ]
    models = {flatbuffer.write(tflm_export.compile_network(model, form)) for form in forms}
    assert len(models) == 1


def test_other_input_range_makes_its_own_grid():
    model = plain_model()
    images = images_like((6, 5, 2), 6) * 4 - 2
    network = tflm_export.compile_network(model, images, input_range=(-2.0, 2.0))
    assert abs(float(network.input.scale) - 4 / 255) < 1e-6
    expected = reference.run(network, network.input.quantize(images))[network.output.name]
    difference = network.output.dequantize(expected) - model.predict(images, verbose=0)
    assert np.abs(difference).max() < 4 * network.output.scale


# ---- constants at their limits


def weighted(operator, kernel, gain, bias, *, levels=7, input_range=None):
    kernel = np.asarray(kernel, "float32")
    channels = len(kernel)
    full = lambda value: np.broadcast_to(np.asarray(value, "float64"), (channels,)).copy()  # noqa: E731
    operator = next(each for each in operators.ALL if each.name == operator)
    weights = graph.Weights(operator, kernel, full(gain), full(bias), levels, input_range)
    return graph.Op("conv", "layer", ("input",), "layer", weights=weights)


def constants_of(op, *, input_scale=0.02, output_scale=0.05, channels=None):
    count = len(op.weights.kernel)
    source = quantize.Tensor("input", (3, 3, op.weights.kernel.shape[3]), np.float32(input_scale), -3)
    output = quantize.Tensor("layer", (3, 3, count), np.float32(output_scale), 4)
    channels = np.tile([[-1.0], [1.0], [0.0]], (1, count)) if channels is None else channels
    clamp = graph.CLAMPS[op.activation]
    maker = op.weights.operator.maker()(op, source, output, channels, clamp)
    return maker.make(), maker.notes


def test_negative_gain_flips_the_signs_of_a_shift_channel():
    kernel = np.array([0.5, -0.25, 0.0, 2.0]).reshape(1, 1, 1, 4)
    plus, _ = constants_of(weighted("shift", kernel, 0.3, 0.1))
    minus, _ = constants_of(weighted("shift", kernel, -0.3, 0.1))
    assert plus.weights.ravel().tolist() == [2, -1, 0, 8]
    assert minus.weights.ravel().tolist() == [-2, 1, 0, -8]
    assert plus.scales[0] == minus.scales[0] == np.float32(0.25 * 0.3)
    assert plus.bias == minus.bias == round(0.1 / (0.02 * float(np.float32(0.075))) - 0)


def test_gain_of_zero_gives_a_constant():
    shift, _ = constants_of(weighted("shift", np.ones((1, 1, 1, 4)), 0.0, 1.7))
    assert not shift.weights.any()
    scaled = reference.requantize(shift.bias, shift.multiplier, shift.shift)
    assert scaled == round(1.7 / 0.05)
    adder, notes = constants_of(weighted("adder", np.ones((1, 1, 1, 40)), 0.0, 1.7))
    for distance in (0, 255 * 40):
        acc = adder.bias + 256 * distance
        assert abs(reference.requantize(acc, adder.multiplier, adder.shift) - 34) <= 1
    assert notes == []


def test_add_weights_carry_zero_point_clip_and_sign():
    # on the input's grid of 0.02: -3 + (100, -200, 5) = (97, -203 clipped to -128, 2)
    kernel = np.array([2.0, -4.0, 0.1]).reshape(1, 1, 1, 3)
    constants, _ = constants_of(weighted("adder", kernel, 0.5, 0.0))
    assert constants.weights.ravel().tolist() == [97, -128, 2]
    assert constants.multiplier[0] < 0
    assert constants.bias[0] == 256 * 75
    flipped, _ = constants_of(weighted("adder", kernel, -0.5, 0.0))
    assert flipped.multiplier[0] == -constants.multiplier[0]


def test_gain_beyond_the_kernels_is_cut_and_noted_unless_the_channel_is_constant():
    for operator, kernel in (("adder", [[1.0]]), ("shift", [[64.0, 1.0]]), ("conv", [[1.0]])):
        op = weighted(operator, np.reshape(kernel, (1, 1, 1, -1)), 1e6, 0.0)
        _, notes = constants_of(op, channels=np.array([[-9.0], [9.0], [0.5]]))
        assert len(notes) == 1 and "output channel 0: its gain" in notes[0], operator
        constants, notes = constants_of(op, channels=np.array([[0.49], [0.52], [0.5]]))
        assert notes == [], operator
        middle = reference.requantize(constants.bias, constants.multiplier, constants.shift)
        assert abs(middle - 0.505 / 0.05) <= 1, operator


def test_shift_is_at_least_one_by_raising_exponents():
    constants, notes = constants_of(weighted("shift", np.array([1.0, 2.0]).reshape(1, 1, 1, 2), 9.0, 0.0))
    assert constants.shift[0] == 1 and notes == []
    # 9 * 0.02 / 0.05 = 3.6 steps per unit: three halvings to 0.45
    assert constants.weights.ravel().tolist() == [8, 16]


def test_accumulator_that_would_overflow_is_refused_with_numbers():
    many = np.full((1, 9, 9, 1500), 1.0)
    with pytest.raises(ValueError, match=r"layer 'layer', output channel 0: 121,500 products of int8 do not fit"):
        constants_of(weighted("conv", many, 1.0, 0.0))
    weights = np.where(np.arange(300_000) % 2, 64.0, 1.0).reshape(1, 1, 1, -1)  # 150,000 * 65 * 128 > 2**30 - 1
    with pytest.raises(ValueError, match=r"layer 'layer', output channel 0: its accumulator may reach 1,2\d\d,\d+,\d+"):
        constants_of(weighted("shift", weights, 1.0, 0.0))
    with pytest.raises(ValueError, match=r"layer 'layer', output channel 0: 20,000 distances"):
        constants_of(weighted("adder", np.zeros((1, 1, 1, 20_000)), 1.0, 0.0))


def small_shift_model(operator="shift"):
    keras.utils.set_random_seed(0)
    spec = backbones.spec("mobilenetv2-tiny", input_shape=(16, 16, 3), num_classes=5, operator=operator)
    spec = dataclasses.replace(spec, blocks=spec.blocks[:3], head=())
    images = images_like((16, 16, 3), 32)
    return settle(backbones.build(spec), images), images


@pytest.mark.parametrize("operator", ["shift", "adder"])
def test_power_of_two_requantization_comes_close_to_the_float_network(operator):
    """Gains are off by up to 2**0.5, yet shifts and biases chosen on data keep every channel's mean and most of its
    variance."""
    model, images = small_shift_model(operator)
    network = tflm_export.compile_network(model, images, flavour="custom", requantization="power-of-two")
    wanted = {}
    graph.run_float(graph.lower(model), images, wanted)
    tensors = reference.run(network, network.input.quantize(images))
    for step in network.steps:
        if step.constants is None or step.constants.operator is operators.CONV:
            continue
        assert step.constants.power_of_two and set(np.abs(step.constants.multiplier)) == {1}
        assert step.constants.shift.min() >= 1 and np.log2(float(step.output.scale)) % 1 == 0
        sums = reference.accumulate(step, tensors[step.inputs[0].name]) + step.constants.bias
        found = (sums * step.constants.multiplier / 2.0**step.constants.shift).reshape(-1, len(step.constants.bias))
        channels = wanted[step.op.name].reshape(-1, len(step.constants.bias)) / float(step.output.scale)
        np.testing.assert_allclose(found.mean(axis=0), channels.mean(axis=0), atol=0.51)
        spread = channels.std(axis=0)
        ratio = (found.std(axis=0) / np.maximum(spread, 1e-9))[spread > 2]
        # An add layer makes noise of what the layers before it lost, and the gains that suit the data best shrink with
        # it: in a network of random weights its tail says nothing, its middle does.
        assert ratio.size == 0 or 0.3 < np.median(ratio) < 1.6, (step.op.name, ratio)
        if operator == "shift" and ratio.size:
            assert np.quantile(ratio, 0.1) > 0.45 and np.quantile(ratio, 0.9) < 1.6, (step.op.name, ratio)


def test_power_of_two_network_multiplies_nothing_and_equals_tflite_micro():
    model, images = small_shift_model()
    network, _ = compile_and_compare(model, images, flavour="custom", requantization="power-of-two")
    assert {step.op.kind for step in network.steps} >= {"add", "mean"}
    counts = count_operations(network)
    assert (counts["multiplications"], counts["requantizations"]) == (0, 0)
    assert count_operations(tflm_export.compile_network(model, images, flavour="custom"))["requantizations"] > 1000


def test_power_of_two_reports_what_it_costs(tmp_path):
    model, images = small_shift_model()
    labels = model.predict(images, verbose=0).argmax(axis=-1)
    options = {"flavour": "custom", "requantization": "power-of-two", "evaluation_data": (images, labels)}
    report = tflm_export.export(model, images, tmp_path / "out", **options)
    assert report.int8_accuracy_q31 >= report.tflm_accuracy - 0.1 and report.int8_accuracy_q31 > 0.9
    assert "Q31 requantization" in str(report)


def separable(x):
    x = L.ZeroPadding2D(((1, 0), (0, 2)))(x)
    x = L.SeparableConv2D(5, (3, 2), strides=2, padding="same", depth_multiplier=2, activation="relu", name="first")(x)
    x = L.BatchNormalization()(L.SeparableConv2D(6, 3, dilation_rate=2, padding="same", use_bias=False)(x))
    return L.Dense(4)(L.GlobalAveragePooling2D()(L.ReLU()(x)))


def norms_of_vectors(x):
    x = L.BatchNormalization(name="pooled")(L.GlobalAveragePooling2D()(L.Conv2D(6, 3, activation="relu")(x)))
    x = L.BatchNormalization(name="activated")(L.Dense(7, activation="relu")(L.ReLU()(x)))
    return L.Dense(4)(x)


@pytest.mark.parametrize("flavour", ["builtin", "custom"])
@pytest.mark.parametrize("network", [separable, norms_of_vectors])
def test_what_is_made_of_several_operators_equals_tflite_micro_and_keras(network, flavour):
    image = keras.Input((9, 7, 3))
    model = keras.Model(image, network(image))
    images = images_like((9, 7, 3), 24)
    settle(model, images)
    lowered, expected = graph.lower(model), model.predict(images, verbose=0)
    np.testing.assert_allclose(graph.run_float(lowered, images)[lowered.output], expected, rtol=1e-4, atol=1e-4)
    compiled, _ = compile_and_compare(model, images, flavour=flavour)
    found = compiled.output.dequantize(reference.run(compiled, compiled.input.quantize(images))[compiled.output.name])
    # A batch norm of pooled values, which vary little, makes their int8 steps large.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_separable_layer_that_is_not_finite_is_named():
    image = keras.Input((9, 7, 3))
    model = keras.Model(image, separable(image))
    model.get_layer("first").depthwise_kernel.assign(np.full((3, 2, 3, 2), np.nan))
    with pytest.raises(ValueError, match="layer 'first' .* must have finite weights"):
        graph.lower(model)


def test_numbers_join_the_layer_before_or_become_a_step():
    keras.utils.set_random_seed(1)
    image = keras.Input((6, 5, 3))
    x = (L.Conv2D(4, 1)(image) + 3.0) * 2.0 - 1.5
    x = L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)  # hard sigmoid in the words of keras.applications
    x = L.BatchNormalization()(1.0 - L.Conv2D(4, 1)(x)) / 4.0
    x = L.MaxPooling2D(2)(x) * 0.5
    model, images = keras.Model(image, x), images_like((6, 5, 3), 6)
    settle(model, images)
    network, tensors = compile_and_compare(model, images)
    assert [step.op.kind for step in network.steps] == ["conv", "conv", "max_pool", "depthwise"]
    floats = graph.run_float(graph.lower(model), images)
    np.testing.assert_allclose(floats[network.output.name], model.predict(images, verbose=0), atol=1e-5)
    found = network.output.dequantize(tensors[network.output.name])
    assert np.abs(found - floats[network.output.name][: len(found)]).max() < 0.1 * np.ptp(floats[network.output.name])


def test_what_is_joined_lies_on_one_grid_or_is_brought_there():
    """Tensors that only the concatenation reads share its grid; those that another reads, or a layer of ours, do not."""
    image = keras.Input((6, 5, 3))
    a = L.Conv2D(4, 1, name="a")(image)
    b = L.Conv2D(3, 1, name="b")(image) * 7.0
    c = L.Conv2D(2, 1, activation="hard_sigmoid", name="c")(a)
    x = ours.ShiftConv2D(5, 3, name="shift")(L.Concatenate(name="join")([b, a, c]))
    x = L.Concatenate(axis=1, name="rows")([x, L.AveragePooling2D((1, 1))(x)])
    model, images = keras.Model(image, x), images_like((6, 5, 3), 6)
    settle(model, images)
    for flavour in ("builtin", "custom"):
        network, _ = compile_and_compare(model, images, flavour=flavour)
        join = next(step for step in network.steps if step.op.name == "join")
        assert [tensor.name for tensor in join.inputs] == ["b", "join/part1", "join/part2"]
        assert len({(tensor.scale, tensor.zero_point) for tensor in (*join.inputs, join.output)}) == 1
        trained = np.array(model.get_layer("shift").input_range)
        assert join.output.scale == saaug_ops.nudged_range(*map(float, trained), 8)[2]


def test_mobilenet_v3_of_keras_is_exported(tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.applications.MobileNetV3Small(input_shape=(40, 33, 3), weights=None, classes=5, alpha=0.75)
    images = 255 * images_like((40, 33, 3), 6)
    settle(model, images)
    network, _ = compile_and_compare(model, images, input_range=(0, 255))
    assert {step.op.kind for step in network.steps} == {
        "conv",
        "depthwise",
        "add",
        "multiply",
        "mean",
        "hard_swish",
        "reshape",
        "softmax",
    }
    report = tflm_export.export(
        model, images, tmp_path / "out", input_range=(0, 255), evaluation_data=(images, np.arange(6) % 5)
    )
    assert report.agreement > 0.6


@pytest.mark.parametrize("activation", ["sigmoid", "silu", "swish", "leaky_relu"])
def test_activations_of_one_value_are_exported_with_any_layer(activation):
    keras.utils.set_random_seed(1)
    image = keras.Input((6, 5, 3))
    x = ours.ShiftConv2D(4, 3, activation=activation)(image)
    x = L.Activation(activation)(L.BatchNormalization()(ours.AdderConv2D(4, 1)(x)))
    x = L.Dense(3, activation=activation)(L.GlobalAveragePooling2D()(x))
    model, images = keras.Model(image, x), images_like((6, 5, 3), 6)
    settle(model, images)
    network, _ = compile_and_compare(model, images, flavour="custom")
    floats = graph.run_float(graph.lower(model), images)[network.output.name]
    np.testing.assert_allclose(floats, model.predict(images, verbose=0), atol=1e-4)
    found = network.output.dequantize(reference.run(network, network.input.quantize(images))[network.output.name])
    assert np.abs(found - floats).mean() < 0.1 * np.ptp(floats)


def test_h_swish_of_almost_nothing_reads_steps_that_tflite_micro_can():
    image = keras.Input((4, 4, 2))
    model = keras.Model(image, L.Activation("hard_swish")(L.Conv2D(3, 1, name="tiny")(image)))
    images = images_like((4, 4, 2), 4)
    for size in (1e-5, 1e-7):
        model.get_layer("tiny").kernel.assign(size * np.random.default_rng(0).normal(size=(1, 1, 2, 3)))
        network, _ = compile_and_compare(model, images)
        assert network.steps[-1].inputs[0].scale >= 2.0**-22
