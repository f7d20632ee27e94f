"""Shift layers: the rounding, and every layer against slow NumPy loops."""

import keras
import numpy as np
import pytest
import reference
from contract import array, assert_layer_contract, gradients, random_inputs

from saaug_keras import ShiftConv2D, ShiftDense, ShiftDepthwiseConv2D

CONV = {"filters": 5, "kernel_size": (3, 2), "strides": (2, 1), "padding": "same"}
DEPTHWISE = {"kernel_size": (2, 3), "strides": (1, 2), "padding": "valid", "depth_multiplier": 2}
SHAPE = (2, 7, 6, 3)


@pytest.mark.parametrize(
    "cls, kwargs, shape",
    [
        pytest.param(ShiftConv2D, CONV, SHAPE, id="conv"),
        pytest.param(ShiftConv2D, {**CONV, "variant": "ps", "weight_bits": 5}, SHAPE, id="conv-ps"),
        pytest.param(
            ShiftConv2D,
            {
                "filters": 4,
                "kernel_size": 1,
                "exponent_scope": "layer",
                "activation_bits": None,
                "use_bias": False,
                "zero_code": False,
            },
            SHAPE,
            id="pointwise-bare",
        ),
        pytest.param(ShiftDepthwiseConv2D, {**DEPTHWISE, "activation": "relu"}, SHAPE, id="depthwise"),
        pytest.param(ShiftDepthwiseConv2D, {"kernel_size": 3, "variant": "ps"}, SHAPE, id="depthwise-ps"),
        pytest.param(ShiftDense, {"units": 4}, (6, 5), id="dense"),
        pytest.param(ShiftDense, {"units": 4, "variant": "ps"}, (6, 5), id="dense-ps"),
    ],
)
def test_layer_contract(cls, kwargs, shape, tmp_path):
    assert_layer_contract(cls, kwargs, shape, tmp_path)


def calibrated(layer, inputs, low=-0.7, high=1.9):
    """A built layer whose range cuts some inputs off on either side."""
    layer.build(inputs.shape)
    layer.input_range.assign([low, high])
    if layer.use_bias:
        layer.bias.assign(random_inputs(layer.bias.shape, 9))
    return layer


def slow(layer, inputs, upstream=None):
    """(y, dx, d(quantized kernel), dbias) by loops; the gradients need `upstream`."""
    low, high = array(layer.input_range)
    quantized, inside, _ = reference.fake_quantized(inputs, low, high)
    kernel = array(layer.quantized_kernel()).astype("float64")
    if isinstance(layer, ShiftDense):
        y, dx, dk = quantized @ kernel, upstream @ kernel.T, quantized.T @ upstream
    else:
        run = reference.depthwise if isinstance(layer, ShiftDepthwiseConv2D) else reference.convolution
        y, dx, dk = run(quantized, kernel, layer.strides, layer.padding, layer.dilation_rate, upstream)
    return y + array(layer.bias), dx * inside, dk, upstream.sum(axis=tuple(range(upstream.ndim - 1)))


CASES = [
    pytest.param(ShiftConv2D, CONV, SHAPE, id="conv-same-strided"),
    pytest.param(ShiftConv2D, {**CONV, "padding": "valid"}, SHAPE, id="conv-valid-strided"),
    pytest.param(ShiftConv2D, {**CONV, "strides": 1, "dilation_rate": (1, 3)}, SHAPE, id="conv-dilated"),
    pytest.param(ShiftConv2D, {"filters": 4, "kernel_size": 1, "strides": (2, 3)}, SHAPE, id="pointwise-strided"),
    pytest.param(ShiftDepthwiseConv2D, DEPTHWISE, SHAPE, id="depthwise-valid-uneven-strides"),
    pytest.param(ShiftDepthwiseConv2D, {**DEPTHWISE, "strides": (3, 2), "padding": "same"}, SHAPE, id="depthwise-same"),
    pytest.param(ShiftDepthwiseConv2D, {**DEPTHWISE, "strides": 1, "dilation_rate": 2}, SHAPE, id="depthwise-dilated"),
    pytest.param(ShiftDense, {"units": 4}, (6, 5), id="dense"),
]


@pytest.mark.parametrize("cls, kwargs, shape", CASES)
def test_forward_and_gradients_are_those_of_loops(cls, kwargs, shape):
    inputs = random_inputs(shape)
    layer = calibrated(cls(**kwargs), inputs)
    np.testing.assert_array_equal(
        array(layer.quantized_kernel()),
        reference.powers_of_two(array(layer.kernel), channel_axes=(-2, -1) if cls is ShiftDepthwiseConv2D else (-1,)),
    )
    output, (dx, dk, db), upstream = gradients(lambda x, *_: layer(x), inputs, layer.kernel, layer.bias)
    want, want_dx, want_dk, want_db = slow(layer, inputs, upstream)
    np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dk, want_dk, rtol=1e-5, atol=1e-4)  # straight through: that of the rounded kernel
    np.testing.assert_allclose(db, want_db, rtol=1e-5, atol=1e-4)


def test_ps_passes_gradients_to_shift_and_sign():
    inputs = random_inputs(SHAPE)
    layer = calibrated(ShiftConv2D(**CONV, variant="ps"), inputs)
    assert {weight.path.split("/")[-1] for weight in layer.trainable_weights} == {"shift", "sign", "bias"}
    sign = random_inputs(layer.sign.shape, 3)
    layer.sign.assign(sign)
    rounded = np.where(np.abs(sign) < 0.5, 0, np.sign(sign))
    assert (rounded == 0).any() and (rounded == 1).any() and (rounded == -1).any()
    kernel = array(layer.quantized_kernel())
    np.testing.assert_array_equal(np.sign(kernel), rounded)
    output, (dp, ds), upstream = gradients(lambda *_: layer(inputs), layer.shift, layer.sign)
    want, _, dk, _ = slow(layer, inputs, upstream)
    exponent = np.round(array(layer.shift))
    top = np.where(rounded == 0, -100, exponent).max(axis=(0, 1, 2))
    magnitude = 2.0 ** np.clip(exponent, top - 6, top)
    np.testing.assert_array_equal(np.abs(kernel), np.abs(rounded) * magnitude)
    np.testing.assert_allclose(output, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dp, dk * kernel * np.log(2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ds, dk * magnitude, rtol=1e-5, atol=1e-5)


def test_ps_starts_from_a_drawn_kernel_with_every_weight_alive():
    layer = ShiftConv2D(6, 3, variant="ps", kernel_initializer=keras.initializers.HeNormal(seed=3))
    layer.build((None, 5, 5, 4))
    drawn = array(keras.initializers.HeNormal(seed=3)((3, 3, 4, 6)))
    np.testing.assert_allclose(2.0 ** array(layer.shift), np.abs(drawn), rtol=1e-4)
    np.testing.assert_array_equal(np.sign(array(layer.quantized_kernel())), np.sign(drawn))


def test_the_range_is_a_running_average_that_the_first_batch_sets():
    layer = ShiftDense(2)
    first, second = random_inputs((6, 5)), 3 * random_inputs((6, 5), 2)
    np.testing.assert_array_equal(array(layer(first)), array(layer(first)))
    np.testing.assert_array_equal(array(layer.input_range), [0, 0])  # inference leaves it alone
    layer(first, training=True)
    np.testing.assert_allclose(array(layer.input_range), [first.min(), first.max()])
    layer(second, training=True)
    want = [0.95 * pick(first) + 0.05 * pick(second) for pick in (np.min, np.max)]
    np.testing.assert_allclose(array(layer.input_range), want, rtol=1e-6)


def test_float_kernel_is_never_rounded_in_place():
    layer = ShiftConv2D(3, 3)
    layer.build((None, 5, 4, 2))
    before = array(layer.kernel)
    layer(random_inputs((2, 5, 4, 2)), training=True)
    np.testing.assert_array_equal(before, array(layer.kernel))
    assert len(np.unique(np.abs(array(layer.quantized_kernel())))) <= 10 < len(np.unique(before))


@pytest.mark.parametrize(
    "cls, kwargs, message",
    [
        (ShiftConv2D, {"weight_bits": 9}, r"^ShiftConv2D: `weight_bits` must be an int in \[3, 8\] bits."),
        (ShiftConv2D, {"variant": "p"}, "^ShiftConv2D: `variant` must be one of 'ps', 'q'. Received: variant='p'"),
        (ShiftConv2D, {"exponent_scope": "tensor"}, "^ShiftConv2D: `exponent_scope` must be one of 'channel', 'layer'"),
        (ShiftConv2D, {"activation_bits": 1}, r"^ShiftConv2D: `activation_bits` must be an int in \[2, 8\] bits, or"),
        (ShiftConv2D, {"groups": 3}, "^ShiftConv2D: `groups` must be 1"),
        (ShiftConv2D, {"data_format": "channels_first"}, "^ShiftConv2D: `data_format` must be one of 'channels_last'"),
        (ShiftDepthwiseConv2D, {"zero_code": None}, "^ShiftDepthwiseConv2D: `zero_code` must be one of False, True"),
        (ShiftDense, {"weight_bits": 2}, "^ShiftDense: `weight_bits` must be an int"),
    ],
)
def test_bad_options_are_named(cls, kwargs, message):
    first = {ShiftConv2D: (3, 3), ShiftDepthwiseConv2D: (3,), ShiftDense: (3,)}[cls]
    with pytest.raises(ValueError, match=message):
        cls(*first, **kwargs)
