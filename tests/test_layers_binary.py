"""Weights of one bit: the rounding, the layers against loops, price, and a trained network on every target."""

import dataclasses

import keras
import numpy as np
import pytest
import reference
from contract import array, assert_layer_contract, gradients, random_inputs
from export_models import assert_every_tensor_equal

import tflm_export
from saaug_keras import RoundedConv2D, RoundedDense, RoundedDepthwiseConv2D, backbones, cost, datasets, operators, ops, recipes
from tflm_export import flatbuffer, records
from tflm_export import operators as deployed

SHAPE = (2, 7, 6, 3)
CONV = {"filters": 5, "kernel_size": (3, 2), "strides": (2, 1), "padding": "same"}
DEPTHWISE = {"kernel_size": (2, 3), "strides": (1, 2), "padding": "valid", "depth_multiplier": 2}
CASES = [
    pytest.param(RoundedConv2D, CONV, SHAPE, id="conv"),
    pytest.param(RoundedConv2D, {"filters": 4, "kernel_size": 1, "use_bias": False}, SHAPE, id="pointwise"),
    pytest.param(RoundedDepthwiseConv2D, DEPTHWISE, SHAPE, id="depthwise"),
    pytest.param(RoundedDense, {"units": 4}, (6, 5), id="dense"),
]


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), ()])
def test_rounding_is_that_of_the_loops_and_stays_as_it_is(axes):
    kernel = random_inputs((3, 2, 4, 5)) * 2.0 ** random_inputs((1, 1, 4, 5), 3)
    rounded = array(ops.round_to_sign(kernel, channel_axes=axes))
    np.testing.assert_allclose(rounded, reference.signs(kernel, axes), rtol=1e-6)
    np.testing.assert_array_equal(array(ops.round_to_sign(rounded, channel_axes=axes)), rounded)
    assert (array(ops.round_to_sign(np.zeros((1, 1, 2, 3), "float32"))) >= 0).all()


def test_gradients_pass_where_weights_are_small():
    kernel = np.array([[0.1, -0.2], [0.5, -2.0], [-1.0, 1.01]], "float32")
    _, (found,), upstream = gradients(lambda k: ops.round_to_sign(k, clip=1.0), kernel)
    np.testing.assert_array_equal(found, upstream * (np.abs(kernel) <= 1))


@pytest.mark.parametrize("cls, kwargs, shape", CASES)
def test_forward_and_gradients_are_those_of_loops(cls, kwargs, shape):
    layer = cls(**kwargs, operator=operators.Binary(clip=0.25))
    x = random_inputs(shape)
    layer.build(shape)
    layer.input_range.assign([-0.7, 1.9])
    output, (dx, dk), upstream = gradients(lambda x, _: layer(x), x, layer.kernel)
    quantized, inside, _ = reference.fake_quantized(x, -0.7, 1.9)
    float_kernel = array(layer.kernel).astype("float64")
    kernel = reference.signs(float_kernel, (-2, -1) if cls is RoundedDepthwiseConv2D else (-1,))
    if cls is RoundedDense:
        want, want_dx, want_dk = quantized @ kernel, upstream @ kernel.T, quantized.T @ upstream
    else:
        run = reference.depthwise if cls is RoundedDepthwiseConv2D else reference.convolution
        want, want_dx, want_dk = run(quantized, kernel, layer.strides, layer.padding, layer.dilation_rate, upstream)
    passed = np.abs(float_kernel) <= 0.25
    assert 0 < passed.sum() < passed.size
    np.testing.assert_allclose(output, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, want_dx * inside, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dk, want_dk * passed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls, kwargs, shape", CASES)
def test_layer_contract(cls, kwargs, shape, tmp_path):
    assert_layer_contract(cls, {**kwargs, "operator": operators.Binary()}, shape, tmp_path)


def test_a_tap_is_an_addition_and_a_weight_is_a_bit():
    spec = backbones.spec("tiny32-44k", operator="binary")
    found, shifting = cost.estimate(spec), cost.estimate(spec.with_operator("shift"))
    for layer, other in zip(found.layers, shifting.layers, strict=True):
        if layer.operator != "binary":
            assert layer == other
            continue
        assert (layer.macs, layer.adds, layer.multiplies) == (other.macs, other.adds, other.multiplies)
        assert other.shifts - layer.shifts == layer.macs  # requantization's remain
        assert layer.model_bytes < other.model_bytes
    operators_of = {layer.name: layer.operator for layer in found.layers}
    assert operators_of["stem"] == "shift"  # of three channels, signs say too little
    assert operators_of["block2_depthwise"] == operators_of["classifier"] == "binary"
    weights = cost.estimate(backbones.spec("mcunet-in0", operator="binary")).model_bytes
    assert weights < 0.6 * cost.estimate(backbones.spec("mcunet-in0", operator="shift")).model_bytes


def test_a_digits_network_trains_and_is_what_runs(tmp_path):
    """Custom and built-in flavour, TFLite Micro and reference: the same bits; a bit a weight in the file."""
    data = datasets.load("digits")
    recipe = recipes.Recipe(
        "mobilenetv2-tiny",
        operator="binary",
        strides=(1, 2, 2, 1, 1),
        blocks=2,
        epochs=5,
        batch_size=64,
        aug_loss_weight=0,
        remap=False,
        augment_data=False,
        evaluate_every=5,
    )
    recipes.train(recipe, data, tmp_path)
    model = keras.models.load_model(tmp_path / "target.keras")
    images = data.x_test
    networks = {}
    for flavour in ("custom", "builtin"):
        networks[flavour] = tflm_export.compile_network(model, data.x_train[:200], flavour=flavour)
        assert_every_tensor_equal(networks[flavour], images[:8])
    shifted = tflm_export.compile_network(model, data.x_train[:200], flavour="custom", requantization="power-of-two")
    assert_every_tensor_equal(shifted, images[:8])
    classes = tflm_export.Interpreter(flatbuffer.write(networks["custom"])).classify(images)
    assert (classes == tflm_export.Interpreter(flatbuffer.write(shifted)).classify(images)).mean() > 0.8
    assert (classes == tflm_export.Interpreter(flatbuffer.write(networks["builtin"])).classify(images)).all()
    assert (classes == data.y_test.ravel()).mean() > 0.85
    assert (classes == model.predict(images / 255.0, verbose=0).argmax(axis=-1)).mean() > 0.98
    packed = [
        flatbuffer.custom_layer(step)
        for step in networks["custom"].steps
        if step.constants is not None and step.constants.operator is deployed.BINARY
    ]
    assert packed and all(layer.record.layout == records.LAYOUT_BIT for layer in packed)
    for step in networks["custom"].steps:
        if step.constants is not None and step.constants.operator is deployed.BINARY:
            row = step.constants.weights[0].size
            assert flatbuffer.custom_layer(step).weights.nbytes == len(step.constants.weights) * -(-row // 8)


def test_a_channel_that_is_a_constant_is_exported_all_the_same():
    """Its weights are not needed, and a bit knows no zero: the layer goes back to four bits a weight."""
    image = keras.Input((5, 4, 3))
    layer = RoundedConv2D(4, 3, operator="binary", name="signs")
    norm = keras.layers.BatchNormalization()
    model = keras.Model(image, norm(layer(image)))
    images = np.random.default_rng(0).integers(0, 256, (8, 5, 4, 3)).astype("uint8")
    for gamma, layout in ((1.0, records.LAYOUT_BIT), (0.0, records.LAYOUT_NIBBLE)):
        norm.gamma.assign([gamma, 1.0, -1.0, 1.0])
        network = tflm_export.compile_network(model, images, flavour="custom")
        assert flatbuffer.custom_layer(network.steps[0]).record.layout == layout
        assert_every_tensor_equal(network, images)


def test_weights_of_two_sizes_are_not_binary():
    @dataclasses.dataclass(frozen=True)
    class Odd(operators.Operator):
        family = "odd"
        deployed_as = "binary"

    image = keras.Input((4, 4, 2))
    model = keras.Model(image, RoundedConv2D(2, 1, operator=Odd(), name="odd")(image))
    with pytest.raises(ValueError, match="layer 'odd' .* must have weights of one size in every output channel"):
        tflm_export.compile_network(model, np.zeros((1, 4, 4, 2), "uint8"))
