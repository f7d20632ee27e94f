"""Add layers against slow NumPy loops, and AdderNet's learning rate."""

import keras
import numpy as np
import pytest
import reference
from contract import array, assert_layer_contract, gradients, random_inputs

from saaug_keras import AdderConv2D, AdderDepthwiseConv2D, _sums, ops
from saaug_keras.operators import gradients as gradients_of

SHAPE = (2, 7, 6, 3)
CONV = {"filters": 5, "kernel_size": (3, 2), "strides": (2, 1), "padding": "same"}
DEPTHWISE = {"kernel_size": (2, 3), "strides": (1, 2), "padding": "valid", "depth_multiplier": 2}


@pytest.mark.parametrize(
    "cls, kwargs",
    [
        pytest.param(AdderConv2D, CONV, id="conv"),
        pytest.param(AdderConv2D, {"filters": 4, "kernel_size": 1, "activation_bits": None}, id="pointwise"),
        pytest.param(AdderDepthwiseConv2D, {**DEPTHWISE, "activation": "relu6", "use_bias": False}, id="depthwise"),
    ],
)
def test_layer_contract(cls, kwargs, tmp_path):
    if kwargs.get("activation"):  # outputs are at most 0: start the bias high, so that some come through
        kwargs = {**kwargs, "use_bias": True, "bias_initializer": keras.initializers.Constant(15.0)}
    assert_layer_contract(cls, kwargs, SHAPE, tmp_path)


@pytest.mark.parametrize(
    "cls, kwargs",
    [
        pytest.param(AdderConv2D, CONV, id="conv-same-strided"),
        pytest.param(AdderConv2D, {**CONV, "padding": "valid"}, id="conv-valid-strided"),
        pytest.param(AdderConv2D, {**CONV, "strides": 1, "dilation_rate": (1, 3)}, id="conv-dilated"),
        pytest.param(AdderConv2D, {"filters": 4, "kernel_size": 1, "strides": (2, 3)}, id="pointwise-strided"),
        pytest.param(AdderDepthwiseConv2D, DEPTHWISE, id="depthwise-valid-uneven-strides"),
        pytest.param(AdderDepthwiseConv2D, {**DEPTHWISE, "strides": 2, "padding": "same"}, id="depthwise-same-strided"),
        pytest.param(AdderDepthwiseConv2D, {**DEPTHWISE, "strides": 1, "padding": "same"}, id="depthwise-same"),
        pytest.param(AdderDepthwiseConv2D, {**DEPTHWISE, "strides": 1, "dilation_rate": 2}, id="depthwise-dilated"),
    ],
)
def test_forward_and_gradients_are_those_of_loops(cls, kwargs):
    inputs = random_inputs(SHAPE)
    layer = cls(**kwargs)
    layer.build(SHAPE)
    layer.input_range.assign([-0.7, 1.9])
    layer.bias.assign(random_inputs(layer.bias.shape, 9))
    quantized, inside, step = reference.fake_quantized(inputs, -0.7, 1.9)
    kernel = np.round(array(layer.kernel).astype("float64") / step) * step
    np.testing.assert_allclose(array(layer.quantized_kernel()), kernel, rtol=1e-6, atol=1e-7)

    output, (dx, dk, db), upstream = gradients(lambda x, *_: layer(x), inputs, layer.kernel, layer.bias)
    run = reference.depthwise if cls is AdderDepthwiseConv2D else reference.convolution
    want, want_dx, want_dk = run(quantized, kernel, layer.strides, layer.padding, layer.dilation_rate, upstream, adder=True)
    np.testing.assert_allclose(output, want + array(layer.bias), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx * inside, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dk, want_dk, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(db, upstream.sum(axis=(0, 1, 2)), rtol=1e-5, atol=1e-5)
    assert (np.abs(want_dx) > 0).any() and (np.abs(quantized) > 1).any()  # the clip of the gradient was reached


@pytest.mark.parametrize("fused", [False, True], ids=["islands", "fused"])
@pytest.mark.parametrize("channels, filters", [(1, 1), (13, 50), (49, 3), (97, 100)])
def test_any_number_of_channels_is_summed_whole_as_by_loops(channels, filters, fused, monkeypatch):
    monkeypatch.setattr(_sums, "_fuses_sums", lambda: fused)
    x, f = random_inputs((3, 2, 1, channels)), random_inputs((1, 1, channels, filters), 2)
    output, (dx, df), upstream = gradients(ops.adder_conv2d, x, f)
    want, want_dx, want_df = reference.convolution(x, f, upstream=upstream, adder=True)
    np.testing.assert_allclose(output, want, rtol=1e-5)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(df, want_df, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "strides, padding, dilation",
    [((1, 1), "same", (1, 1)), ((2, 3), "same", (1, 1)), ((3, 2), "valid", (1, 1)), ((1, 1), "valid", (2, 1))],
)
@pytest.mark.parametrize("fused", [False, True], ids=["islands", "fused"])
def test_large_kernels_are_summed_tap_by_tap_as_by_loops(strides, padding, dilation, fused, monkeypatch):
    monkeypatch.setattr(_sums, "_fuses_sums", lambda: fused)
    x, f = random_inputs((2, 8, 7, 51)), random_inputs((3, 2, 51, 4), 2)
    output, (dx, df), upstream = gradients(lambda *args: ops.adder_conv2d(*args, strides, padding, dilation), x, f)
    want, want_dx, want_df = reference.convolution(x, f, strides, padding, dilation, upstream, adder=True)
    np.testing.assert_allclose(output, want, rtol=1e-5)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(df, want_df, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sizes unknown in a graph are TensorFlow's")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("function", ["conv", "depthwise"])
def test_in_a_graph_with_unknown_sizes_as_eager(function, compiled):
    import tensorflow as tf

    run = ops.adder_conv2d if function == "conv" else ops.adder_depthwise_conv2d
    kernel = random_inputs((3, 2, 3, 1), 2)
    shape = SHAPE if compiled else (None, None, None, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape)], jit_compile=compiled)
    def graph(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = run(x, kernel, strides=2)
        return y, tape.gradient(y, x)

    for count in (2,) if compiled else (2, 5):
        x = random_inputs((count, *SHAPE[1:]), count)
        eager, (dx,), _ = gradients(lambda x: run(x, kernel, strides=2), x)
        with tf.GradientTape() as tape:
            tape.watch(tensor := tf.constant(x))
            ones = run(tensor, kernel, strides=2)
        dx = tape.gradient(ones, tensor)
        for got, want in zip(graph(x), (eager, dx), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_learning_rate_gives_the_kernel_gradient_its_norm():
    layer = AdderConv2D(4, 1, gradient_scale=0.3)
    layer.build((None, 5, 5, 6))
    kernel_gradient, bias_gradient = random_inputs((1, 1, 6, 4)), random_inputs((4,))
    rules = gradients_of.rules_of([layer])
    scaled = gradients_of.scale_gradients(rules, [layer.kernel, layer.bias], [kernel_gradient, bias_gradient])
    want = kernel_gradient * 0.3 * np.sqrt(24) / np.linalg.norm(kernel_gradient)
    np.testing.assert_allclose(array(scaled[0]), want, rtol=1e-5)
    np.testing.assert_array_equal(scaled[1], bias_gradient)


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_learning_rate_forgets_the_loss_but_not_its_scale(factor):
    layer = AdderConv2D(4, 1)
    layer.build((None, 5, 5, 6))
    gradient = random_inputs((1, 1, 6, 4))
    rules = gradients_of.rules_of([layer])
    once = gradients_of.scale_gradients(rules, [layer.kernel], [gradient])[0]
    other = gradients_of.scale_gradients(rules, [layer.kernel], [gradient * np.float32(factor)], loss_scale=8.0)[0]
    np.testing.assert_allclose(array(other), 8 * array(once), rtol=1e-4)
    nothing = gradients_of.scale_gradients(rules, [layer.kernel, layer.bias], [np.zeros_like(gradient), None])
    assert np.abs(array(nothing[0])).max() == 0 and nothing[1] is None


@pytest.mark.parametrize(
    "cls, kwargs, error, message",
    [
        (AdderConv2D, {"gradient_scale": -1}, ValueError, r"^AdderConv2D: `gradient_scale` must be a number in \[0, 1"),
        (AdderConv2D, {"gradient_scale": "1"}, TypeError, r"^AdderConv2D: `gradient_scale` must be a number"),
        (AdderConv2D, {"groups": 3}, ValueError, "^AdderConv2D: `groups` must be 1"),
        (AdderDepthwiseConv2D, {"activation_bits": 9}, ValueError, "^AdderDepthwiseConv2D: `activation_bits` must be"),
        (AdderDepthwiseConv2D, {"data_format": "channels_first"}, ValueError, "^AdderDepthwiseConv2D: `data_format`"),
    ],
)
def test_bad_options_are_named(cls, kwargs, error, message):
    with pytest.raises(error, match=message):
        cls(*((3, 3) if cls is AdderConv2D else (3,)), **kwargs)


@pytest.mark.parametrize("name, value", [("padding", "full"), ("strides", 0), ("dilation_rate", (1, 2, 3))])
def test_bad_arguments_of_the_operation_are_named(name, value):
    with pytest.raises(ValueError, match=f"^adder_conv2d: `{name}` must be"):
        ops.adder_conv2d(random_inputs(SHAPE), random_inputs((1, 1, 3, 2)), **{name: value})
