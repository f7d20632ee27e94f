"""Channels that move: which goes where, the layers against loops, price, training, and what runs."""

import dataclasses

import keras
import numpy as np
import pytest
import reference
from contract import array, assert_layer_contract, gradients, random_inputs
from export_models import assert_every_tensor_equal, images_like

import tflm_export
from saaug_keras import ChannelShift2D, HybridDepthwise, augment, backbones, callbacks, cost, datasets, operators, recipes
from saaug_keras.operators.channelshift import kernel_of, tap_of_channels
from tflm_export import flatbuffer, records

TEXT = "shift/channelshift/shift"
WINDOWS = [
    pytest.param({"kernel_size": 3}, id="3x3"),
    pytest.param({"kernel_size": (2, 3), "strides": (2, 1), "padding": "valid"}, id="lopsided"),
    pytest.param({"kernel_size": 3, "dilation_rate": 2}, id="dilated"),
    pytest.param({"kernel_size": (1, 5), "strides": 2}, id="wide"),
]


def test_groups_of_four_share_the_places_of_the_window():
    assert tap_of_channels(36, 9).tolist() == [group for group in range(9) for _ in range(4)]
    assert tap_of_channels(4, 9).tolist() == [4] * 4  # alone, a group stays in the middle
    assert tap_of_channels(16, 9).tolist() == [1] * 4 + [3] * 4 + [5] * 4 + [7] * 4  # up, left, right, down
    assert tap_of_channels(6, 1).tolist() == [0] * 6
    for channels in (36, 40, 72, 120, 121, 250):
        uses = np.bincount(tap_of_channels(channels, 9)[::4], minlength=9)
        assert uses.max() - uses.min() <= 1 and uses.min() > 0


@pytest.mark.parametrize("window", WINDOWS)
def test_a_channel_is_read_at_its_place(window):
    x = random_inputs((2, 7, 6, 22))
    layer = ChannelShift2D(**window)
    output, (dx,), upstream = gradients(layer, x)
    kernel = np.zeros((*layer.kernel_size, 22, 1), "float32")
    for channel, tap in enumerate(tap_of_channels(22, layer.kernel_size[0] * layer.kernel_size[1])):
        kernel[tap // layer.kernel_size[1], tap % layer.kernel_size[1], channel, 0] = 1
    expected, expected_dx, _ = reference.depthwise(x, kernel, layer.strides, layer.padding, layer.dilation_rate, upstream)
    np.testing.assert_array_equal(output, expected.astype("float32"))
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-6)
    assert layer.compute_output_shape(x.shape) == output.shape
    assert layer.count_params() == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_layer_contract(window, tmp_path):
    assert_layer_contract(ChannelShift2D, window, (2, 7, 6, 10), tmp_path, has_weights=False)


@pytest.mark.parametrize("mutable", [False, True])
def test_beside_the_moves_lies_an_ordinary_depthwise_layer(mutable):
    """The target moves; of the augmented layer the channels beyond multiply, and they alone have a gradient."""
    layer = HybridDepthwise(3, target_channels=8, operator="channelshift", mutable=mutable)
    layer.build((None, 6, 5, 12))
    assert {variable.name for variable in layer.weights} == {"kernel"} | ({"gate"} if mutable else set())
    x = random_inputs((2, 6, 5, 12))
    plain = ChannelShift2D(3)
    np.testing.assert_array_equal(array(layer(x[..., :8])), array(plain(x[..., :8])))
    output, (dx, dk), upstream = gradients(lambda x, _: layer(x, augmented=True), x, layer.kernel)
    kernel = array(layer.kernel)
    kernel[:, :, :8] = kernel_of(3, 3, 8)
    want, want_dx, want_dk = reference.depthwise(x, kernel, upstream=upstream)
    np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dk[:, :, 8:], want_dk[:, :, 8:], rtol=1e-4, atol=1e-4)
    assert not dk[:, :, :8].any()
    if mutable:  # the target still multiplies
        layer.gate.assign(0.0)
        want = reference.depthwise(x[..., :8], array(layer.kernel)[:, :, :8])
        np.testing.assert_allclose(array(layer(x[..., :8])), want[0] if isinstance(want, tuple) else want, rtol=1e-5, atol=1e-5)


def test_what_computes_nothing_has_no_bias():
    with pytest.raises(ValueError, match="HybridDepthwise: `use_bias` must be False for operator 'channelshift'"):
        HybridDepthwise(3, target_channels=4, operator="channelshift", use_bias=True)
    with pytest.raises(ValueError, match="operator 'channelshift': `use_bias` must be False"):
        operators.ChannelShift().make_layer("depthwise", kernel_size=3, use_bias=True)


@pytest.mark.parametrize(
    "operator, place",
    [("channelshift", "expanding"), ("shift/shift/channelshift", "projecting"), ("channelshift/shift/shift", "expanding")],
)
def test_other_layers_than_depthwise_cannot_move(operator, place):
    message = f"the operator of the {place} layer must be one that conv layers can have.*'shift/channelshift/shift'"
    with pytest.raises(ValueError, match=message):
        backbones.spec("tiny32-44k", operator=operator)


def test_moves_cost_nothing_but_the_operator_in_the_file():
    spec = backbones.spec("tiny32-44k", operator=TEXT)
    lowered = {layer.name: layer for layer in backbones.lower(spec)}
    assert lowered["stem"].operator == operators.Shift()
    moved = lowered["block1_depthwise"]
    assert (moved.batch_norm, moved.activation, moved.weight_count, moved.bias_count, moved.taps) == (False, None, 0, 0, 0)
    found = {layer.name: layer for layer in cost.estimate(spec).layers}
    each = found["block1_depthwise"]
    assert (each.macs, each.multiplies, each.shifts, each.adds, each.params, each.energy_mj) == (0,) * 6
    assert each.model_bytes == cost.MODEL_OPERATOR["other"]
    as_built_in = {layer.name: layer for layer in cost.estimate(spec, bits=8).layers}["block1_depthwise"]
    assert as_built_in.model_bytes > 9 * moved.output_shape[2]


@pytest.mark.parametrize("flavour", ["custom", "builtin"])
def test_the_price_is_that_of_the_file(flavour):
    """As that of the network whose depthwise layers shift, which the moves make smaller."""
    written, predicted = [], []
    for operator in ("shift", TEXT):
        spec = backbones.spec("tiny32-44k", operator=operator, num_classes=10)
        model = backbones.build(spec)
        model(images_like((32, 32, 3), 4), training=True)
        network = tflm_export.compile_network(model, images_like((32, 32, 3), 8), flavour=flavour)
        written.append(len(flatbuffer.write(network)))
        predicted.append(cost.estimate(spec, bits=None if flavour == "custom" else 8).model_bytes)
    assert written[1] / written[0] == pytest.approx(predicted[1] / predicted[0], rel=0.01)


def test_channels_stay_where_they_move_from():
    """A channel's place decides where it moves: importance must not sort those of such a block."""
    spec = backbones.spec("tiny32-44k", operator="shift", num_classes=4)
    blocks = [dataclasses.replace(block, operator=TEXT if index == 1 else "shift") for index, block in enumerate(spec.blocks)]
    model = augment(dataclasses.replace(spec, blocks=tuple(blocks)), width=1.0, expand=1.5)
    model.build((None, 32, 32, 3))
    permutations = callbacks.reorder_channels(model.network)
    assert set(permutations) == set(range(len(blocks))) - {1}


def test_a_digits_network_trains_and_is_what_runs(tmp_path):
    """Custom and built-in flavour, TFLite Micro and reference: the same bits; no weights in the file."""
    data = datasets.load("digits")
    recipe = recipes.Recipe(
        "mobilenetv2-tiny",
        operator=TEXT,
        strides=(1, 2, 2, 1, 1),
        blocks=3,
        epochs=6,
        batch_size=64,
        width=(1.0, 1.5),
        expand=(1.0, 2.0),
        augment_data=False,
        evaluate_every=6,
    )
    recipes.train(recipe, data, tmp_path)
    model = keras.models.load_model(tmp_path / "target.keras")
    assert any(isinstance(layer, ChannelShift2D) for layer in model.layers)
    images = data.x_test
    networks = {
        flavour: tflm_export.compile_network(model, data.x_train[:200], flavour=flavour) for flavour in ("custom", "builtin")
    }
    classes = {}
    for flavour, network in networks.items():
        assert_every_tensor_equal(network, images[:8])
        classes[flavour] = tflm_export.Interpreter(flatbuffer.write(network)).classify(images)
    assert (classes["custom"] == classes["builtin"]).all()
    assert (classes["custom"] == data.y_test.ravel()).mean() > 0.85
    assert (classes["custom"] == model.predict(images / 255.0, verbose=0).argmax(axis=-1)).mean() > 0.98
    moves = [step for step in networks["custom"].steps if step.op.kind == "channel_shift"]
    assert moves and all(step.constants is None for step in moves)
    for step in moves:
        layer = flatbuffer.custom_layer(step)
        assert (layer.name, layer.record.layout, layer.weights.size) == ("CHANNEL_SHIFT", records.LAYOUT_NONE, 0)
        assert (step.inputs[0].scale, step.inputs[0].zero_point) == (step.output.scale, step.output.zero_point)


def test_what_follows_a_move_is_no_part_of_it():
    """A batch norm or an activation behind it is a step of its own; zeros from a padding layer, too."""
    image = keras.Input((6, 5, 8))
    x = ChannelShift2D(3, padding="valid")(keras.layers.ZeroPadding2D(2)(image))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    model = keras.Model(image, keras.layers.ReLU()(ChannelShift2D((1, 2), strides=(2, 1))(x)))
    images = np.random.default_rng(3).integers(0, 256, (4, 6, 5, 8)).astype("uint8")
    for flavour in ("custom", "builtin"):
        network = tflm_export.compile_network(model, images, flavour=flavour)
        assert_every_tensor_equal(network, images / np.float32(255))
