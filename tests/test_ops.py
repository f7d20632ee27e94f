"""Tensor maths: rounding to powers of two, the quantization grid, ordinary convolutions, the layers on JAX."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import reference
from contract import array, gradients, random_inputs

from saaug_keras import _validate, ops


@pytest.mark.parametrize(
    "weight, bits, zero_code, rounded",
    [
        pytest.param(0.30, 4, True, 0.25, id="nearest-in-log2"),
        pytest.param(-0.75, 4, True, -1.0, id="nearest-in-log2-not-linear"),
        pytest.param(0.0, 4, True, 0.0, id="zero-stays-zero"),
        # The largest weight is 1: top = 0, and 4 bits with the zero code go down to 2**-6.
        pytest.param(2.0**-6, 4, True, 2.0**-6, id="lowest-of-4-bits"),
        pytest.param(1.01 * 2.0**-7, 4, True, 2.0**-6, id="up-to-the-lowest"),
        pytest.param(0.99 * 2.0**-7, 4, True, 0.0, id="below-half-of-the-lowest-is-zero"),
        pytest.param(0.99 * 2.0**-7, 4, False, 2.0**-7, id="one-level-more-without-the-code"),
        pytest.param(-(2.0**-30), 4, False, -(2.0**-7), id="clipped-without-the-code"),
        pytest.param(0.0, 4, False, 2.0**-7, id="no-zero-without-the-code"),
        pytest.param(2.0**-14, 5, True, 2.0**-14, id="lowest-of-5-bits"),
        pytest.param(2.0**-3, 3, True, 2.0**-2, id="3-bits"),
    ],
)
def test_kernel_rounds_to_a_signed_power_of_two(weight, bits, zero_code, rounded):
    kernel = np.float32([[1.0], [weight]])
    got = array(ops.round_to_power_of_two(kernel, bits=bits, zero_code=zero_code))
    np.testing.assert_array_equal(got, np.float32([[1.0], [rounded]]))


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), ()])
@pytest.mark.parametrize("bits, zero_code", [(4, True), (5, True), (4, False), (3, True)])
def test_rounding_is_that_of_the_loops(axes, bits, zero_code):
    kernel = random_inputs((3, 2, 5, 4)) * np.exp2(random_inputs((3, 2, 5, 4), 8) * 4).astype("float32")
    kernel[:, :, 1] = kernel[..., 2] = 0
    got = array(ops.round_to_power_of_two(kernel, bits=bits, zero_code=zero_code, channel_axes=axes))
    want = reference.powers_of_two(kernel, bits, zero_code, axes)
    if not zero_code:  # a channel with nothing in it has no level of its own
        empty = np.abs(kernel).max(axis=tuple(a for a in range(4) if a - 4 not in axes), keepdims=True) == 0
        want = np.where(empty, 0, want)
        got = np.where(np.broadcast_to(empty, got.shape), 0, got)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e30])
def test_rounding_is_exact_at_any_size_and_passes_gradients_straight_through(size):
    kernel = (random_inputs((3, 4)) * np.float32(size)).astype("float32")
    output, (found,), upstream = gradients(ops.round_to_power_of_two, kernel)
    np.testing.assert_array_equal(found, upstream)
    mantissa, _ = np.frexp(output[output != 0])
    assert set(np.abs(mantissa)) <= {0.5}
    if size > 1e-36:
        np.testing.assert_array_equal(output, reference.powers_of_two(kernel))


RANGES = [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.0), (0.5, 2.0), (-0.7, 1.9), (-1e-3, 7.3), (-0.31, 0.29), (0.0, 0.0)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("low, high", RANGES)
def test_grid_is_tensorflows(low, high, bits):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("compares with TensorFlow")
    import tensorflow as tf

    small, large, scale, zero_point = ops.nudged_range(low, high, bits)
    assert -(2 ** (bits - 1)) <= zero_point < 2 ** (bits - 1)
    x = np.linspace(min(low, 0) - 0.5, max(high, 0) + 0.5, 3001).astype("float32")
    stored = np.clip(np.floor(x / scale.astype("float64") + 0.5) + zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    want = ((stored - zero_point) * scale).astype("float32")
    wide = max(high, 1e-6) if low >= 0 or high > 0 else high
    got = tf.quantization.fake_quant_with_min_max_vars(x, min(low, 0.0), wide, num_bits=bits).numpy()
    off = np.abs(got - want) > 1e-6 * np.abs(want)  # halfway between two points, either is right
    assert off.mean() < 0.01 and np.abs(got - want)[off].max(initial=0) < 1.001 * scale
    assert got.min() == pytest.approx(small, rel=1e-6) and got.max() == pytest.approx(large, rel=1e-6)


@pytest.mark.parametrize("low, high", RANGES)
def test_fake_quantization_is_that_of_the_loops(low, high):
    x = np.concatenate([random_inputs((400,)), [0.0, low, high]]).astype("float32")
    output, (found,), upstream = gradients(lambda x: ops.fake_quantize(x, low, high), x)
    want, inside, step = reference.fake_quantized(x, low, high if (low, high) != (0, 0) else 1e-6)
    off = np.abs(output - want) > 1e-4 * step
    assert off.mean() < 0.01 and np.abs(output - want)[off].max(initial=0) < 1.001 * step
    edge = np.minimum(*(np.abs(x - bound) for bound in ops.nudged_range(low, high)[:2])) < 1e-6
    np.testing.assert_array_equal(found[~edge], (upstream * inside)[~edge])
    assert float(ops.quantization_scale(low, high)) == pytest.approx(float(ops.nudged_range(low, high)[2]), rel=2e-7)
    assert array(ops.fake_quantize(np.zeros(1, "float32"), low, high)) == 0


def test_step_rounding_neither_clips_nor_stops_gradients():
    kernel = random_inputs((5, 6)) * 100
    output, (found,), upstream = gradients(lambda k: ops.round_to_step(k, 0.25), kernel)
    np.testing.assert_allclose(output, np.round(kernel / 0.25) * 0.25)
    np.testing.assert_array_equal(found, upstream)


@pytest.mark.parametrize(
    "kernel_size, strides, padding, dilation",
    [
        ((3, 2), (2, 1), "same", (1, 1)),
        ((1, 1), (2, 3), "valid", (1, 1)),
        ((2, 3), (1, 1), "same", (2, 1)),
        ((4, 5), (2, 2), "same", (1, 1)),  # more taps than one loop takes
    ],
)
def test_convolutions_are_those_of_the_loops(kernel_size, strides, padding, dilation):
    x, f = random_inputs((2, 7, 6, 3)), random_inputs((*kernel_size, 3, 4), 2)
    window = {"strides": strides, "padding": padding, "dilation_rate": dilation}
    for run, loops in ((ops.conv2d, reference.convolution), (ops.depthwise_conv2d, reference.depthwise)):
        output, (dx, df), upstream = gradients(lambda x, f, run=run: run(x, f, **window), x, f)
        for got, want in zip((output, dx, df), loops(x, f, strides, padding, dilation, upstream), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: _validate.int_in("Owner", "arg", 9, 1, 7, " bits"),
            ValueError,
            r"^Owner: `arg` must be an int in \[1, 7\] bits. Received: arg=9.$",
        ),
        (lambda: _validate.int_in("Owner", "arg", True, 0, 7), TypeError, r"`arg` must be an int in .* arg=True"),
        (lambda: _validate.int_in("Owner", "arg", 2.0, 0, 7), TypeError, "arg=2.0"),
        (lambda: _validate.number_in("Owner", "arg", float("nan"), 0, 1), ValueError, r"a number in \[0, 1\]"),
        (lambda: _validate.number_in("Owner", "arg", None, 0, 1), TypeError, "Received: arg=None"),
        (lambda: _validate.one_of("Owner", "arg", "c", ("b", "a")), ValueError, "one of 'a', 'b'. Received: arg='c'"),
        (lambda: _validate.pair_of("Owner", "arg", (1, 2, 3)), ValueError, r"an int or a pair of ints"),
        (lambda: _validate.pair_of("Owner", "arg", (1, 0)), ValueError, r"each at least 1. Received: arg=\(1, 0\)"),
        (lambda: _validate.pair_of("Owner", "arg", "ab"), TypeError, "a pair of ints"),
    ],
)
def test_messages_name_owner_argument_bounds_and_value(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_checked_values_come_back():
    assert _validate.int_in("Owner", "arg", np.int64(3), 1, 7) == 3
    assert _validate.number_in("Owner", "arg", 1, 0, 1) == 1.0
    assert _validate.pair_of("Owner", "arg", 2) == (2, 2) == _validate.pair_of("Owner", "arg", [2, 2])


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="is itself the run on JAX")
def test_the_layers_pass_on_jax():
    """Every comparison with loops, and the remap, with the JAX backend in a process of its own."""
    pytest.importorskip("jax")
    here = pathlib.Path(__file__).parent
    files = [
        "test_ops.py",
        "test_layers_shift.py",
        "test_layers_adder.py",
        "test_layers_binary.py",
        "test_layers_channelshift.py",
        "test_hybrid.py",
        "test_remap.py",
    ]
    # What is computed, and its gradients; the rest is Keras's business on every backend.
    chosen = (
        "loops or every_gradient or (ps_ and not keeps_) or (width and not 1-True-shift) or float32 or are_finite "
        "or gradients_pass or moves or at_its_place"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-k",
            chosen,
            *(str(here / file) for file in files),
        ],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        cwd=here,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
