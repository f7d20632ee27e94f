"""Exported networks: every tensor equal on TFLite Micro, every layer within one step of Keras, both flavours alike."""

import os

import keras
import numpy as np
import pytest
from export_models import compile_and_compare, images_like, layer_by_layer, settle, small_backbone

import tflm_export
from saaug_keras import layers as ours
from tflm_export import flatbuffer, graph, operators, reference, runner

L = keras.layers


CASES = [
    pytest.param("mobilenetv2-tiny", "conv", "builtin", id="v2-conv"),
    pytest.param("mobilenetv2-tiny", "shift", "builtin", id="v2-shift-builtin"),
    pytest.param("proxylessnas-w0.35", "shift-ps", "builtin", id="proxyless-shift-ps-builtin"),
    pytest.param("mcunet-in0", "shift", "custom", id="mcunet-shift-custom"),
    pytest.param("mcunet-in1", "shift5", "custom", id="mcunet-shift5-custom"),
    pytest.param("mobilenetv3-w0.35", "shift5-ps", "custom", id="v3-shift5-ps-custom"),
    pytest.param("mobilenetv2-w0.35", "adder", "custom", id="v2-adder-custom"),
    pytest.param("mobilenetv3-w0.35", "shiftadd", "custom", id="v3-shiftadd-custom"),
    pytest.param("mcunet-in0", "binary", "custom", id="mcunet-binary-custom"),
    pytest.param("mobilenetv2-tiny", "binary", "builtin", id="v2-binary-builtin"),
    pytest.param("mcunet-in0", "shift/channelshift/shift", "custom", id="mcunet-channelshift-custom"),
    pytest.param("mobilenetv3-w0.35", "binary/channelshift/shift5", "custom", id="v3-channelshift-custom"),
    pytest.param("mobilenetv2-tiny", "shift/channelshift/conv", "builtin", id="v2-channelshift-builtin"),
]


@pytest.mark.parametrize("name, operator, flavour", CASES)
def test_backbone_equals_tflite_micro_and_keras_within_a_step(name, operator, flavour):
    blocks = 2 if "add" in operator else 5
    model, images = small_backbone(name, operator, blocks=blocks, shape=(20, 17, 3))
    network, tensors = compile_and_compare(model, images, flavour=flavour)
    for step, difference in layer_by_layer(model, network, tensors):
        # Rounding to the output's grid is half a step; requantization and Keras's own float sums add a little, the
        # int8 weights of multiplicative layers more.
        limit = 1.0 + 1e-3
        if step.constants is not None and step.constants.operator is operators.CONV:
            limit = 6.0
        elif step.op.kind == "hard_swish":
            limit = 1.6
        assert difference.max() <= limit, (step.op.kind, step.op.name, difference.max())


def test_segmentation_network_equals_tflite_micro():
    model, images = small_backbone("mobilenetv3-w0.35", "shift", blocks=5, shape=(24, 32, 3), segmentation=True)
    network, tensors = compile_and_compare(model, images, flavour="custom")
    assert {"resize", "multiply", "add", "mean"} <= {step.op.kind for step in network.steps}
    assert tensors[network.output.name].shape == (2, 24, 32, 7)


def test_h_swish_of_channels_that_are_dead_is_exported():
    """Its output's steps would be finer than TFLite Micro can make them."""
    image = keras.Input((6, 5, 3))
    x = L.Activation("hard_swish")(L.BatchNormalization()(L.Conv2D(4, 1)(image)))
    model = keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    images = images_like((6, 5, 3), 4)
    settle(model, images)
    model.layers[2].beta.assign([-90.0] * 4)
    network, tensors = compile_and_compare(model, images)
    step = next(step for step in network.steps if step.op.kind == "hard_swish")
    assert step.output.scale > step.inputs[0].scale / 128 and (tensors[step.output.name] == step.output.zero_point).all()


def test_h_swish_spends_no_steps_where_it_is_zero():
    image = keras.Input((6, 5, 3))
    x = L.Activation("hard_swish")(L.Conv2D(4, 1, kernel_initializer="ones")(image))
    model = keras.Model(image, x)
    model.layers[1].bias.assign([-20.0, 0.0, 1.0, 2.0])
    network, _ = compile_and_compare(model, images_like((6, 5, 3), 4))
    grid = next(step for step in network.steps if step.op.kind == "hard_swish").inputs[0]
    assert -3.1 < (-128 - grid.zero_point) * grid.scale < -2.9


@pytest.mark.parametrize("name", ["mobilenetv2-tiny", "mobilenetv3-w0.35"])
def test_both_flavours_of_a_shift_network_are_bit_identical(name):
    model, images = small_backbone(name, "shift", blocks=5)
    outputs = {}
    for flavour in ("builtin", "custom"):
        network = tflm_export.compile_network(model, images, flavour=flavour)
        data = flatbuffer.write(network)
        outputs[flavour] = runner.Interpreter(data).run(network.input.quantize(images))
    assert len(np.unique(outputs["builtin"])) > 10
    np.testing.assert_array_equal(outputs["custom"], outputs["builtin"])


def test_image_is_pixel_minus_128_exactly():
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=1)
    network = tflm_export.compile_network(model, images)
    pixels = np.arange(256)
    values = (pixels / 255).astype("float32")
    np.testing.assert_array_equal(network.input.quantize(values), pixels - 128)


def test_trained_range_is_the_grid_of_the_tensor():
    """What a shift layer reads has the very steps that its fake quantization had in training."""
    model, images = small_backbone("mobilenetv2-tiny", "shift", blocks=4)
    network = tflm_export.compile_network(model, images)
    checked = 0
    for step in network.steps[1:]:
        layer = model.get_layer(step.op.layers[0])
        if isinstance(layer, ours.ShiftConv2D):
            low, high = np.asarray(layer.input_range)
            probe = np.linspace(low - 0.3, high + 0.3, 1001).astype("float32")
            from saaug_keras import ops

            trained = np.asarray(ops.fake_quantize(probe, low, high, 8))
            deployed = step.inputs[0].dequantize(step.inputs[0].quantize(probe))
            ties = np.abs(trained - deployed) > 1e-5
            assert ties.mean() < 0.005, step.op.name
            checked += 1
    assert checked > 5


def one_layer(layer, shape=(7, 6, 5), before=(), after=()):
    image = keras.Input(shape)
    x = image
    for part in (*before, layer, *after):
        x = part(x)
    return keras.Model(image, x)


def random_model(rng):
    """A small network of random operators, sizes, strides, paddings and activations."""
    shape = tuple(int(n) for n in rng.integers([3, 3, 1], [12, 12, 6]))
    image = x = keras.Input(shape)
    for _ in range(int(rng.integers(2, 6))):
        operator = rng.choice(["conv", "shift", "shift", "shift5", "adder"])
        height, width = x.shape[1:3]
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        dilated = rng.random() < 0.2
        padding = str(rng.choice(["same", "valid"])) if height > 5 and width > 5 else "same"
        window = {
            "strides": 1 if dilated else int(rng.integers(1, 3)),
            "padding": padding,
            "dilation_rate": 2 if dilated and operator != "adder" else 1,
            "use_bias": bool(rng.integers(2)),
        }
        options = {"shift": {}, "shift5": {"weight_bits": 5}}.get(operator, {})
        family = {"conv": L.Conv2D, "adder": ours.AdderConv2D}.get(operator, ours.ShiftConv2D)
        depthwise = {"conv": L.DepthwiseConv2D, "adder": ours.AdderDepthwiseConv2D}.get(operator, ours.ShiftDepthwiseConv2D)
        if rng.random() < 0.4:
            y = depthwise(kernel, depth_multiplier=int(rng.integers(1, 3)), **options, **window)(x)
        else:
            y = family(int(rng.integers(1, 14)), kernel, **options, **window)(x)
        if operator == "adder" or rng.random() < 0.7:
            y = L.BatchNormalization()(y)
        activation = rng.choice(["relu", "relu6", "hard_swish", "hard_sigmoid", "linear"])
        if activation != "linear":
            y = L.Activation(str(activation))(y)
        if y.shape == x.shape and rng.random() < 0.7:
            y = L.Add()([x, y])
        elif rng.random() < 0.15:
            gate = L.GlobalAveragePooling2D(keepdims=True)(y)
            y = L.Multiply()([y, L.Conv2D(y.shape[-1], 1, activation="hard_sigmoid")(gate)])
        x = y
    x = L.Flatten()(x) if rng.random() < 0.5 else L.GlobalAveragePooling2D()(x)
    return keras.Model(image, (ours.ShiftDense if rng.random() < 0.5 else L.Dense)(int(rng.integers(1, 11)))(x))


def check_random_models(count, seed):
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        keras.utils.set_random_seed(index)
        model = random_model(rng)
        images = images_like(model.input_shape[1:], 4, seed=index)
        settle(model, images, seed=index)
        network = tflm_export.compile_network(model, images, flavour="custom")
        stored = network.input.quantize(images)
        stored[0] = rng.integers(-128, 128, stored[0].shape)
        expected = reference.run(network, stored)
        found = runner.Interpreter(flatbuffer.write(network), keep_tensors=True).tensors(stored[0])
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name][0], err_msg=f"model {index}, tensor {name}")


def test_random_architectures_are_bit_exact():
    check_random_models(12, seed=1)


@pytest.mark.slow
def test_many_random_architectures_are_bit_exact():
    """A share of them; all of a release: ARCHITECTURES=1000 pytest tests/test_export_models.py -k many"""
    check_random_models(int(os.environ.get("ARCHITECTURES", 40)), seed=2)


def test_lowered_graph_computes_what_keras_computes():
    """Batch norm folded, activations fused, padding explicit: the same numbers."""
    model, images = small_backbone("mobilenetv3-w0.35", "conv", blocks=6)
    lowered = graph.lower(model)
    values = graph.run_float(lowered, images)
    np.testing.assert_allclose(values[lowered.output], model.predict(images, verbose=0), atol=2e-5)
    assert all(op.kind != "batch_norm" for op in lowered.ops) and len(lowered.ops) < len(model.layers)
