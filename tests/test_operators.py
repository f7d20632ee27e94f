"""Operators as values: by text and back, and one of a user's own through training, pricing and export."""

import dataclasses
import itertools
import pickle

import keras
import numpy as np
import pytest
from users_operator import Ternary

import saaug_keras
import tflm_export
from saaug_keras import backbones, cost, datasets, operators, recipes


@pytest.mark.parametrize(
    "operator",
    [
        operators.Conv(),
        operators.Adder(),
        operators.Adder(activation_bits=None),
        operators.Adder(gradient_scale=0.5),
        operators.ShiftAdd(),
        operators.Binary(),
        operators.Binary(0.5, None),
        Ternary(),
        Ternary(0.5),
        *(
            operators.Shift(*options)
            for options in itertools.product((3, 4, 5, 8), (True, False), ("channel", "layer"), ("q", "ps"), (8, 2, None))
        ),
    ],
    ids=str,
)
def test_a_text_stands_for_an_operator_and_back(operator):
    assert operators.parse(str(operator)) == operator
    assert operators.parse(operator) is operator
    again = pickle.loads(pickle.dumps(operator))
    assert again == operator and hash(again) == hash(operator)
    spec = backbones.spec("tiny32-44k", operator=operator)
    assert backbones.NetSpec.from_dict(spec.as_dict()) == spec
    assert spec == backbones.spec("tiny32-44k", operator=str(operator)) and hash(spec) == hash(spec)


def test_every_name_keeps_its_text_and_its_operator():
    for name in operators.names():
        assert str(operators.parse(name)) == name
        text = f"shift/{name}/adder"
        assert operators.to_text(operators.parse_block(text)) == text
        if "conv" in operators.parse(name).kinds:
            assert operators.to_text(operators.parse_block(name)) == f"{name}/{name}/{name}"
    assert operators.parse("shift5-ps") == operators.Shift(weight_bits=5, variant="ps")
    assert str(operators.Shift(weight_bits=5, zero_code=False)) == "shift5(zero_code=False)"
    assert operators.to_text(operators.parse_block("adder/shift/adder")) == "adder/shift/adder"
    block = backbones.BlockSpec(8, 8, operator="shift/shift/shift")
    assert block == backbones.BlockSpec(8, 8, operator=operators.Shift())


@pytest.mark.parametrize(
    "text",
    [
        "xnor",
        "",
        "shift(",
        "shift(weight_bits=9)",
        "shift(bits=4)",
        "shift(4)",
        "shift(weight_bits=__import__('os'))",
        "shift)",
        "adder(gradient_scale='a')",
        None,
        3,
    ],
)
def test_an_unknown_text_names_those_known(text):
    with pytest.raises((ValueError, TypeError), match="'conv', 'shift', 'shift5'|must be"):
        operators.parse(text)


def test_a_name_belongs_to_one_operator():
    operators.register("ternary", Ternary())  # again is no harm
    with pytest.raises(ValueError, match="must not be taken by another operator. Received: name='shift'"):
        operators.register("shift", Ternary())
    with pytest.raises(ValueError, match="must be letters, digits and '-'"):
        operators.register("a/b", Ternary())
    with pytest.raises(TypeError, match="must be an Operator. Received: operator='shift'"):
        operators.register("mine", "shift")


def test_plain_layers_of_the_package_know_their_operator():
    shape = (None, 5, 5, 3)
    for operator in (operators.Shift(weight_bits=5, zero_code=False), operators.Adder(gradient_scale=0.5), Ternary(0.6)):
        for kind in operator.kinds:
            sizes = () if kind == "depthwise" else (4,)
            window = {} if kind == "dense" else {"kernel_size": 3}
            layer = operator.make_layer(kind, *sizes, **window)
            layer.build(shape if kind != "dense" else (None, 3))
            assert layer.operator == operator
            again = type(layer).from_config(layer.get_config())
            assert again.operator == operator
    with pytest.raises(ValueError, match="operator 'adder': `kind` must be one of 'conv', 'depthwise'"):
        operators.Adder().make_layer("dense", 4)
    with pytest.raises(ValueError, match="RoundedConv2D: `operator` must be one of products"):
        saaug_keras.RoundedConv2D(4, 3, operator="adder")


@pytest.fixture(scope="module")
def trained():
    """A network of the user's operator, trained inside a larger one by a recipe's own means."""
    data = datasets.load("digits")
    spec = backbones.spec("mobilenetv2-tiny", input_shape=data.image_shape, num_classes=10, operator="ternary")
    spec = dataclasses.replace(spec, blocks=spec.blocks[:2])
    keras.utils.set_random_seed(0)
    model = saaug_keras.augment(spec, width=(1.0, 2.0), expand=(1.0, 2.0))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    model.fit(datasets.pipeline(data.x_train, data.y_train, batch_size=64, shuffle=True), epochs=6, verbose=0)
    return data, spec, model


def test_a_users_operator_trains_inside_a_larger_network(trained):
    data, _, model = trained
    target = model.export_target()
    kinds = {type(layer).__name__ for layer in target.layers if getattr(layer, "operator", None) is not None}
    assert kinds == {"RoundedConv2D", "RoundedDepthwiseConv2D", "RoundedDense"}
    for layer in target.layers:
        if isinstance(getattr(layer, "operator", None), Ternary):
            kernel = np.abs(np.asarray(layer.quantized_kernel()))
            axis = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else -1
            assert all(len(np.unique(channel[channel > 0])) <= 1 for channel in np.moveaxis(kernel, axis, 0))
    images = data.x_test.astype("float32") / 255
    # Two programs round a sum at a tie of the grid to either side.
    np.testing.assert_allclose(target.predict(images, verbose=0), np.asarray(model.network(images)), atol=0.02)
    assert (target.predict(images, verbose=0).argmax(-1) == data.y_test).mean() > 0.5


def test_a_users_operator_is_priced(trained):
    _, spec, _ = trained
    priced, twin = cost.estimate(spec), cost.estimate(spec.with_operator("conv"))
    taps = backbones.count_macs(spec)
    assert twin.multiplies - priced.multiplies == taps and priced.adds == twin.adds
    assert priced.energy_mj < twin.energy_mj and priced.model_bytes == twin.model_bytes  # int8 weights, both
    assert {layer.operator for layer in priced.layers} == {"ternary", "none"}


def test_a_users_operator_exports_to_tflite_micro(trained, tmp_path):
    data, _, model = trained
    target = model.export_target()
    report = tflm_export.export(target, data.x_train[:64], tmp_path, evaluation_data=(data.x_test[:64], data.y_test[:64]))
    network = tflm_export.compile_network(target, data.x_train[:64])
    images = network.input.quantize(data.x_test[:8] / 255)
    wanted = tflm_export.reference.run(network, images)[network.output.name]
    found = tflm_export.Interpreter(tmp_path / report.model_file).run(images)
    np.testing.assert_array_equal(wanted.reshape(found.shape), found)
    assert report.agreement >= 0.9


@dataclasses.dataclass(frozen=True)
class Halves(operators.Operator):
    """Weights of 0, s / 2 and s: half of int8's 127 steps is none of them."""

    family = "halves"

    def round(self, kernel, channel_axes=(-1,)):
        top = keras.ops.max(keras.ops.abs(kernel), axis=(0, 1, 2), keepdims=True)
        return keras.ops.round(2 * kernel / top) / 2 * top


def test_weights_that_int8_does_not_hold_are_refused_at_export():
    images = np.random.default_rng(4).random((8, 6, 5, 2), "float32")
    inputs = keras.Input(images.shape[1:])
    for operator in (Halves(), Ternary()):
        layer = operator.make_layer("conv", 3, kernel_size=3, name="rounded")
        model = keras.Model(inputs, layer(inputs))
        layer(images, training=True)
        if isinstance(operator, Ternary):
            constants = tflm_export.compile_network(model, images).steps[0].constants
            assert set(np.unique(np.abs(constants.weights))) <= {0, 127}
        else:
            with pytest.raises(ValueError, match="rounded.* must have weights that are multiples of 127ths.*0.5 of such"):
                tflm_export.compile_network(model, images)


def test_operators_that_cannot_be_plain_layers_are_named():
    @dataclasses.dataclass(frozen=True)
    class Odd(operators.Operator):
        family = "odd"
        deployed_as = "adder"

    with pytest.raises(ValueError, match="RoundedConv2D: `operator` must be one of products.*has distances"):
        saaug_keras.RoundedConv2D(4, 3, operator="adder")
    with pytest.raises(ValueError, match="RoundedConv2D: `operator` must be one of products.*moves its inputs"):
        saaug_keras.RoundedConv2D(4, 3, operator="channelshift")
    model = keras.Sequential([keras.Input((4, 4, 2)), saaug_keras.RoundedConv2D(4, 3, operator=Odd(), name="odd")])
    with pytest.raises(ValueError, match="layer 'odd': operator .* must have `distance` True to be deployed as 'adder'"):
        tflm_export.compile_network(model, np.zeros((2, 4, 4, 2), "float32"))
    with pytest.raises(NotImplementedError, match="`apply` must be defined, since `distance` is True"):
        Odd().apply("conv", None, None)


def test_a_users_operator_stands_in_a_recipe(tmp_path):
    data = datasets.load("digits")
    recipe = recipes.Recipe("mobilenetv2-tiny", operator="ternary", blocks=1, epochs=1, width_multiplier=0.5)
    assert recipes.train(recipe, data, tmp_path)["val_accuracy"] >= 0
    assert recipes.train(recipe, data, tmp_path)["epochs"] == 1  # a run goes on by the text of its operator
