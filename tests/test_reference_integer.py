"""The NumPy integer interpreter: its arithmetic against plain definitions, its ops against the TFLite Micro wheel."""

import math
from fractions import Fraction

import keras
import numpy as np
import pytest
from export_models import assert_every_tensor_equal, images_like, settle

from tflm_export import compile_network, graph, quantize, reference

L = keras.layers


def half_away(value: Fraction) -> int:
    """To the nearest integer, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + Fraction(1, 2)), value))


@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 30])
def test_rounding_shift_rounds_to_nearest_halves_away_from_zero(exponent):
    rng = np.random.default_rng(1)
    values = np.concatenate([np.arange(-40, 41), rng.integers(-(2**30), 2**30, 200)])
    expected = [half_away(Fraction(int(v), 2**exponent)) for v in values]
    np.testing.assert_array_equal(reference.rounding_shift(values, exponent), expected)


def test_multiply_high_is_the_rounded_high_half_of_the_doubled_product():
    rng = np.random.default_rng(2)
    a, b = rng.integers(-(2**30), 2**30, 500), rng.integers(2**30, 2**31, 500)
    expected = [math.floor(Fraction(int(x) * int(y), 2**31) + Fraction(1, 2)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(reference.multiply_high(a, b), expected)


@pytest.mark.parametrize(
    "real, multiplier, shift",
    [
        pytest.param(0.0, 0, 0, id="zero"),
        pytest.param(0.5, 2**30, 0, id="a-half-is-the-least-fraction"),
        pytest.param(1.0, 2**30, 1, id="one"),
        pytest.param(-0.25, -(2**30), -1, id="negative"),
        pytest.param(1 - 2.0**-40, 2**30, 1, id="rounds-up-to-the-next-power"),
        pytest.param(0.5 + 2.0**-32, 2**30 + 1, 0, id="halves-round-away"),
        pytest.param(2.0**-32, 2**30, -31, id="smallest"),
        pytest.param(2.0**-33, 0, 0, id="flushed-to-zero"),
    ],
)
def test_multiplier_is_the_fraction_in_31_bits(real, multiplier, shift):
    assert quantize.quantize_multiplier(real) == (multiplier, shift)


def every_builtin_op():
    """One lopsided model with every op that has no layer of ours."""
    image = keras.Input((13, 10, 3))
    x = L.Conv2D(8, (3, 2), strides=2, padding="same", use_bias=False, name="conv")(image)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    y = L.DepthwiseConv2D((2, 3), padding="same", depth_multiplier=2, dilation_rate=(2, 1), name="depthwise")(x)
    y = L.Conv2D(8, 1, name="project")(L.ReLU()(L.BatchNormalization()(y)))
    x = L.ReLU()(L.Add(name="add")([x, y]))
    gate = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    gate = L.Conv2D(8, 1, activation="hard_sigmoid", name="gate")(L.Conv2D(4, 1, activation="relu")(gate))
    x = L.Activation("hard_swish", name="swish")(L.Multiply(name="multiply")([x, gate]))
    x = L.Multiply(name="square")([x, x])
    x = L.Conv2D(12, 3, name="padded_conv")(L.ZeroPadding2D(((0, 1), (2, 1)))(x))
    x = L.Activation("hard_sigmoid", name="affine")(L.Add(name="double")([x, x]))
    x = L.Resizing(9, 11, interpolation="bilinear", name="up")(x)
    x = L.AveragePooling2D((3, 2), strides=2, padding="same", name="average")(x)
    x = L.MaxPooling2D(2, strides=1, padding="same", name="max")(L.ZeroPadding2D(1)(x))
    x = L.Reshape((4, 6, 12), name="reshape")(L.Resizing(8, 3, interpolation="bilinear")(x))
    x = L.Dropout(0.5)(L.Dense(6, activation="relu6", name="per_pixel")(x))
    y = L.LeakyReLU(0.3, name="leaky")(L.Conv2D(4, 1)(x))
    y = L.Concatenate(name="columns", axis=2)([L.Conv2D(4, 1, activation="silu", name="silu")(x), y])
    x = L.Concatenate(name="channels")([x, L.MaxPooling2D((1, 2))(y)])
    x = L.Dense(7, name="dense")(L.Flatten()(x))
    return keras.Model(image, L.Softmax(name="softmax")(x))


def test_every_op_equals_tflite_micro_bit_for_bit():
    keras.utils.set_random_seed(3)
    model = every_builtin_op()
    images = images_like((13, 10, 3), 8, seed=3)
    settle(model, images, seed=3)
    network = compile_network(model, images)
    kinds = {step.op.kind for step in network.steps}
    assert kinds == {
        "conv",
        "depthwise",
        "dense",
        "add",
        "multiply",
        "mean",
        "hard_swish",
        "resize",
        "max_pool",
        "average_pool",
        "pad",
        "reshape",
        "softmax",
        "leaky_relu",
        "sigmoid",
        "concatenate",
    }
    tensors = assert_every_tensor_equal(network, images, count=4)
    floats = graph.run_float(graph.lower(model), images[:4])
    for step in network.steps:
        if step.output.name in floats:
            spread = np.unique(tensors[step.output.name]).size
            assert spread > 4 or step.output.name == "softmax", step.output.name  # data that exercises the op
    difference = network.output.dequantize(tensors["softmax"]) - floats["softmax"]
    assert np.abs(difference).max() < 0.05


@pytest.mark.parametrize("scale", [0.002, 0.03, 0.11, 0.5, 3.0])
def test_softmax_equals_tflite_micro_over_scales(scale):
    """A model of one softmax, logits over the whole int8 range."""
    tensor = quantize.Tensor("input", (1, 1, 9), np.float32(scale), 5)
    output = quantize.Tensor("out", (1, 1, 9), np.float32(1 / 256), -128)
    op = graph.Op("softmax", "out", ("input",), "out")
    step = quantize.Step(op, (tensor,), output, None, -128, 127)
    network = quantize.Network("n", (step,), {"input": tensor, "out": output}, tensor, output, "builtin")
    stored = np.random.default_rng(4).integers(-128, 128, (40, 1, 1, 9)).astype("int8")
    stored[0], stored[1] = -128, 127
    assert_every_tensor_equal_stored(network, stored)
    values = reference.run(network, stored)["out"]
    exact = np.exp(scale * (stored - stored.max(axis=-1, keepdims=True).astype("float64")))
    exact = exact / exact.sum(axis=-1, keepdims=True)
    assert np.abs((values + 128.0) / 256 - exact).max() <= 1.01 / 256


@pytest.mark.parametrize("scales", [(0.1, 0.05), (0.02, 0.02), (0.5, 3.0), (6 / 255, 0.9)])
def test_hard_swish_equals_tflite_micro_over_scales(scales):
    tensor = quantize.Tensor("input", (16, 16, 1), np.float32(scales[0]), -7)
    output = quantize.Tensor("out", (16, 16, 1), np.float32(scales[1]), 11)
    step = quantize.Step(graph.Op("hard_swish", "out", ("input",), "out"), (tensor,), output, None, -128, 127)
    network = quantize.Network("n", (step,), {"input": tensor, "out": output}, tensor, output, "builtin")
    stored = np.arange(-128, 128, dtype="int8").reshape(1, 16, 16, 1)
    assert_every_tensor_equal_stored(network, stored)
    real = tensor.dequantize(stored).astype("float64")
    exact = output.quantize(real * np.clip(real + 3, 0, 6) / 6)
    assert np.abs(reference.run(network, stored)["out"].astype(int) - exact).max() <= 1


@pytest.mark.parametrize("scale", [2.0**-25, 1e-4, 0.002, 0.03, 0.125, 0.7, 14.0, 15.0, 17.0, 100.0])
def test_sigmoid_equals_tflite_micro_over_scales(scale):
    stored = np.arange(-128, 128, dtype="int8").reshape(1, 16, 16, 1)
    for zero_point in (-128, -3, 127):
        network = one_op("sigmoid", (scale, zero_point), (1 / 256, -128))
        assert_every_tensor_equal_stored(network, stored)
        if scale < 10:
            exact = 1 / (1 + np.exp(-network.input.dequantize(stored).astype("float64")))
            assert np.abs((reference.run(network, stored)["out"] + 128.0) / 256 - exact).max() <= 1.01 / 256


def test_leaky_relu_equals_tflite_micro_over_scales_and_slopes():
    rng = np.random.default_rng(2)
    stored = np.arange(-128, 128, dtype="int8").reshape(1, 16, 16, 1)
    # Among them one whose factor is a half but for the digits that float32 would lose.
    cases = [((0.011063698501850783, 23), (0.042351360273475566, -86), 149.0802859943922)]
    for _ in range(40):
        grids = [(2 ** rng.uniform(-8, 3), int(rng.integers(-128, 128))) for _ in range(2)]
        cases.append((*grids, 2 ** rng.uniform(-9, 9)))
    for source, output, slope in cases:
        assert_every_tensor_equal_stored(one_op("leaky_relu", source, output, slope=slope), stored)


def one_op(kind, source, output, **options):
    """A network of one op on images (16, 16, 1), of (scale, zero point) of its ends."""
    tensors = [
        quantize.Tensor(name, (16, 16, 1), np.float32(scale), zero_point)
        for name, (scale, zero_point) in (("input", source), ("out", output))
    ]
    step = quantize.Step(graph.Op(kind, "out", ("input",), "out", **options), tuple(tensors[:1]), tensors[1], None, -128, 127)
    return quantize.Network("n", (step,), {tensor.name: tensor for tensor in tensors}, *tensors, "builtin")


def assert_every_tensor_equal_stored(network, stored):
    from tflm_export import flatbuffer, runner

    expected = reference.run(network, stored)[network.output.name]
    np.testing.assert_array_equal(runner.Interpreter(flatbuffer.write(network)).run(stored), expected)


@pytest.mark.parametrize("sizes", [((5, 7), (11, 9)), ((8, 8), (16, 16)), ((9, 10), (4, 3)), ((1, 1), (6, 5))])
def test_resize_equals_tflite_micro_over_sizes(sizes):
    (height, width), (up, right) = sizes
    tensor = quantize.Tensor("input", (height, width, 3), np.float32(0.1), 3)
    output = quantize.Tensor("out", (up, right, 3), np.float32(0.1), 3)
    step = quantize.Step(graph.Op("resize", "out", ("input",), "out"), (tensor,), output, None, -128, 127)
    network = quantize.Network("n", (step,), {"input": tensor, "out": output}, tensor, output, "builtin")
    stored = np.random.default_rng(5).integers(-128, 128, (3, height, width, 3)).astype("int8")
    assert_every_tensor_equal_stored(network, stored)


def test_images_of_another_shape_or_kind_are_refused():
    tensor = quantize.Tensor("input", (2, 3, 1), np.float32(1), 0)
    network = quantize.Network("n", (), {"input": tensor}, tensor, tensor, "builtin")
    with pytest.raises(ValueError, match=r"`images` must be int8 \(N, 2, 3, 1\)"):
        reference.run(network, np.zeros((1, 3, 2, 1), "int8"))
    with pytest.raises(ValueError, match="Received: float32"):
        reference.run(network, np.zeros((1, 2, 3, 1), "float32"))
