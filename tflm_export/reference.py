"""NumPy integer interpreter: the bit-exact specification of the exported network, every intermediate tensor of it.

TFLite Micro's kernels, our C kernels and this module give the same bits. Arithmetic is int64 here, so nothing overflows
unnoticed: accumulators are asserted to fit int32.
"""

from __future__ import annotations

import math

import numpy as np

from saaug_keras import _validate
from saaug_keras.operators.channelshift import tap_of_channels
from tflm_export.fixed_point import multiply_high, quantize_multiplier, requantize, rounding_shift
from tflm_export.quantize import Network, Step
from tflm_export.windows import windows


def run(network: Network, images) -> dict[str, np.ndarray]:
    """Runs the network.

    Args:
        images: int8 (N, H, W, C), already on the grid of `network.input`.
    Returns:
        Tensor name -> int8 (N, ...), in the order of computation.
    """
    images = np.asarray(images)
    if images.dtype != np.int8 or images.shape[1:] != network.input.shape:
        raise ValueError(
            f"tflm_export.reference: `images` must be int8 (N, {', '.join(map(str, network.input.shape))}). Received: "
            f"{images.dtype} {images.shape}."
        )
    values = {network.input.name: images}
    for step in network.steps:
        values[step.output.name] = run_step(step, [values[tensor.name] for tensor in step.inputs])
    return values


def run_step(step: Step, inputs) -> np.ndarray:
    """One operation on int8 (N, ...) inputs."""
    _validate.one_of("tflm_export.reference", "kind", step.op.kind, _RUN)
    out = _RUN[step.op.kind](step, *(np.asarray(x, "int64") for x in inputs))
    return np.clip(out, step.act_min, step.act_max).astype("int8")


def _check_int32(acc):
    assert acc.size == 0 or (acc.min() >= -(2**31) and acc.max() < 2**31), "accumulator left int32"
    return acc


# ---- weighted


def _patches(x, step, fill):
    op = step.op
    return windows(x, op.kernel_size, op.strides, op.dilation, op.pads, fill)


def accumulate(step, x):
    """The accumulators of a weighted step without the bias: int64 (N, H', W', O)."""
    op, weights, zero_point = step.op, step.constants.weights, step.inputs[0].zero_point
    x = np.asarray(x, "int64")
    if op.kind == "dense":
        x = x.reshape(len(x), 1, 1, -1)
    patches = _patches(x, step, zero_point)
    return step.constants.operator.sums(patches, weights, zero_point, op.kind == "depthwise")


def _weighted(step, x):
    op, constants = step.op, step.constants
    acc = _check_int32(accumulate(step, x) + constants.bias)
    if constants.power_of_two:
        out = rounding_shift(acc * constants.multiplier, constants.shift)
    else:
        out = requantize(acc, constants.multiplier, constants.shift)
    out = out + step.output.zero_point
    return out.reshape(len(x), -1) if op.kind == "dense" else out


# ---- the rest


def _scales(step):
    return [float(tensor.scale) for tensor in step.inputs], float(step.output.scale)


def add_scales(step):
    """(multiplier, left shift) of both inputs, from 20 fraction bits, and of the output."""
    (scale_a, scale_b), scale_out = _scales(step)
    twice = 2 * max(scale_a, scale_b)
    return [quantize_multiplier(real) for real in (scale_a / twice, scale_b / twice, twice / (2**20 * scale_out))]


def add_function(step) -> str:
    """Which function of plain C adds the two tensors of a step; all give the same numbers."""
    if len({(tensor.scale, tensor.zero_point) for tensor in (*step.inputs, step.output)}) == 1:
        return "saaug_plain_add_same"
    *inputs, (multiplier, left) = add_scales(step)
    fine, fine_left = min(inputs, key=lambda scale: scale[1])  # the other is a half
    products = fine != 1 << 30 or multiplier != 1 << 30
    in_range = 1 <= -fine_left <= 31 and 1 <= -left <= 23
    return "saaug_plain_add_tensors" if products and in_range else "saaug_plain_add_any"


def _add(step, a, b):
    *inputs, (multiplier, shift) = add_scales(step)
    total = 0
    for x, tensor, (own, left) in zip((a, b), step.inputs, inputs, strict=True):
        total = total + requantize((x - tensor.zero_point) << 20, own, -left)
    return requantize(total, multiplier, -shift) + step.output.zero_point


def _multiply(step, a, b):
    (scale_a, scale_b), scale_out = _scales(step)
    multiplier, shift = quantize_multiplier(scale_a * scale_b / scale_out)
    product = (a - step.inputs[0].zero_point) * (b - step.inputs[1].zero_point)
    return requantize(product, multiplier, -shift) + step.output.zero_point


def mean_multiplier(input_scale, output_scale, count):
    """(multiplier, right shift) of a sum of `count` values: the division is in the multiplier."""
    multiplier, shift = quantize_multiplier(float(input_scale) / float(output_scale))
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << bits) // count, bits - shift


def _mean(step, x):
    (scale,), scale_out = _scales(step)
    count = x.shape[1] * x.shape[2]
    multiplier, shift = mean_multiplier(scale, scale_out, count)
    total = x.sum(axis=(1, 2)) - step.inputs[0].zero_point * count
    out = requantize(total, multiplier, shift) + step.output.zero_point
    return out.reshape(len(x), *step.output.shape)


def _resize(step, x):
    height, width, _ = step.output.shape
    y0, y1, dy = _interpolation(x.shape[1], height)
    x0, x1, dx = _interpolation(x.shape[2], width)
    dy, dx = dy[:, None, None], dx[None, :, None]
    rows0, rows1 = x[:, y0], x[:, y1]
    total = (
        rows0[:, :, x0] * (1024 - dy) * (1024 - dx)
        + rows1[:, :, x0] * dy * (1024 - dx)
        + rows0[:, :, x1] * (1024 - dy) * dx
        + rows1[:, :, x1] * dy * dx
    )
    # to nearest, ties away from zero, but a zero total keeps its negative half: truncation makes it 0 again
    total = total + np.where(total > 0, 1 << 19, -(1 << 19))
    return np.where(total < 0, -(-total >> 20), total >> 20)


def _interpolation(size_in, size_out):
    """Lower and upper neighbour of every output position and the weight of the upper, in 1/1024, half-pixel centres."""
    scale = (1024 * size_in + size_out // 2) // size_out
    at = np.arange(size_out) * scale + scale // 2 - 512
    lower = np.maximum(np.where(at < 0, -(-at >> 10), at >> 10), 0)
    upper_at = at + 1023
    upper = np.minimum(np.where(upper_at < 0, -(-upper_at >> 10), upper_at >> 10), size_in - 1)
    return lower, upper, at - 1024 * lower


def _pool(step, x):
    op = step.op
    inside = _patches(np.ones_like(x), step, 0)
    if op.kind == "max_pool":
        return np.where(inside == 1, _patches(x, step, -128), -128).max(axis=(3, 4))
    total, count = _patches(x, step, 0).sum(axis=(3, 4)), inside.sum(axis=(3, 4))
    magnitude = (np.abs(total) + count // 2) // count
    return np.where(total > 0, magnitude, -magnitude)


def _channel_shift(step, x):
    op, channels = step.op, np.arange(x.shape[-1])
    patches = _patches(x, step, step.inputs[0].zero_point)
    patches = patches.reshape(*patches.shape[:3], -1, len(channels))
    return patches[..., tap_of_channels(len(channels), op.kernel_size[0] * op.kernel_size[1]), channels]


def _pad(step, x):
    top, left, bottom, right = step.op.pads
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=step.output.zero_point)


def _reshape(step, x):
    return x.reshape(len(x), *step.output.shape)


def hard_swish_constants(input_scale, output_scale):
    """((multiplier int16, right shift) to the output, (multiplier int16, left shift) of the gate)."""
    fine = np.float32(np.float32(1 / 128) * np.float32(input_scale))
    pairs = []
    for target in (np.float32(output_scale), np.float32(3.0) / np.float32(32768.0)):
        multiplier, shift = quantize_multiplier(float(np.float32(fine / target)))
        multiplier = 32767 if multiplier >= 2**31 - 1 - 2**15 else (multiplier + 2**15) >> 16
        pairs.append((multiplier, shift))
    return (pairs[0][0], -pairs[0][1]), pairs[1]


def _hard_swish(step, x):
    (out_multiplier, out_shift), (gate_multiplier, gate_shift) = hard_swish_constants(step.inputs[0].scale, step.output.scale)
    assert out_shift >= 0, step.op.name
    fine = (x - step.inputs[0].zero_point) * 128

    def high16(a, b):
        product = a * b
        return _truncate(product + np.where(product >= 0, 1 << 14, 1 - (1 << 14)), 15)

    value = high16(fine, out_multiplier)
    gate = fine
    if gate_shift > 0:
        gate = np.clip(gate << (gate_shift - 1), -32768, 32767)
    gate = high16(gate, gate_multiplier)
    if gate_shift > 0:
        gate = np.clip(gate << 1, -32768, 32767)
    if gate_shift < 0:
        gate = rounding_shift(gate, -gate_shift)
    gate = (gate + (1 << 15)) >> 1
    product = _truncate(gate * value, 15)
    return rounding_shift(product, out_shift) + step.output.zero_point


def _truncate(value, bits):
    """Division by 2**bits that rounds toward zero, as C's does."""
    return np.where(value < 0, -(-value >> bits), value >> bits)


def _concatenate(step, *parts):
    return np.concatenate(parts, axis=1 + step.op.axis)


def leaky_relu_scales(step):
    """(multiplier, right shift) of values from 0 on, and of those below."""
    (source,), output = _scales(step)
    factors = source / output, source * float(np.float32(step.op.slope)) / output
    return [(multiplier, -shift) for multiplier, shift in map(quantize_multiplier, factors)]


def _leaky_relu(step, x):
    centred = x - step.inputs[0].zero_point
    (gain, shift), (slope, slope_shift) = leaky_relu_scales(step)
    out = np.where(centred >= 0, requantize(centred, gain, shift), requantize(centred, slope, slope_shift))
    return out + step.output.zero_point


def _sigmoid(step, x):
    return sigmoid(x - step.inputs[0].zero_point, step.inputs[0].scale)


def sigmoid(x, input_scale):
    """int8 logistic function of centred int8 values, in TFLite Micro's fixed point: Q4.27 in, Q0.31 exponentials.

    The output's scale is 1/256, its zero point -128. Values beyond 15 are 0 or 255 steps.
    """
    multiplier, left = quantize_multiplier(float(np.float32(input_scale)) * 2**27)
    radius = math.floor(15 * 2.0**27 / 2.0**left)
    near = np.abs(x) < radius
    scaled = multiply_high(np.where(near, np.abs(x), 0) << min(left, 31), multiplier)
    positive = _one_over_one_plus(_exp_of_negative(-scaled, 4))
    value = np.where(x > 0, positive, 2**31 - 1 - positive)
    value = np.where(scaled == 0, 1 << 30, value)
    out = np.clip(rounding_shift(value, 23) - 128, -128, 127)
    return np.where(near, out, np.where(x <= -radius, -128, 127))


def _softmax(step, x):
    return softmax(x, step.inputs[0].scale)


def softmax_constants(input_scale):
    """(multiplier, left shift) to Q5.26 of a difference of int8 logits, and the least difference that still counts."""
    multiplier, left = quantize_multiplier(min(float(np.float32(input_scale)) * 2**26, 2.0**31 - 1))
    return multiplier, left, -math.floor(((1 << 5) - 1) * 2.0 ** (31 - 5) / 2.0**left)


def softmax(x, input_scale):
    """int8 softmax over the last axis, in TFLite Micro's fixed point: Q5.26 differences, Q0.31 exponentials.

    The output's scale is 1/256, its zero point -128.
    """
    multiplier, left, limit = softmax_constants(input_scale)
    difference = x - x.max(axis=-1, keepdims=True)
    near = difference >= limit
    scaled = multiply_high(np.where(near, difference, 0) << left, multiplier)
    exponentials = _exp_of_negative(scaled)
    total = np.where(near, rounding_shift(exponentials, 12), 0).sum(axis=-1, keepdims=True)
    headroom = 31 - np.array([int(v).bit_length() for v in total.ravel()]).reshape(total.shape) + 1
    unit = ((total << headroom) & 0xFFFFFFFF) - (1 << 31)  # total / 2**k - 1 in Q0.31
    reciprocal = _one_over_one_plus(unit)
    out = rounding_shift(multiply_high(reciprocal, exponentials), 12 - headroom + 31 - 8)
    return np.where(near, np.clip(out - 128, -128, 127), -128)


def _exp_of_negative(a, integer_bits=5):
    """exp of a value of so many integer bits, Q5.26 in [-32, 0] or Q4.27 in [-16, 0], as Q0.31."""
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    mask = quarter - 1
    fraction = (a & mask) - quarter
    result = _exp_of_quarter(fraction << integer_bits)
    remainder = fraction - a
    for exponent, multiplier in zip(range(-2, integer_bits), _EXP_TABLE, strict=False):
        bit = (remainder >> (fraction_bits + exponent)) & 1
        result = np.where(bit == 1, multiply_high(result, multiplier), result)
    return np.where(a == 0, 2**31 - 1, result)


# exp(-1/4), exp(-1/2), ... exp(-16) in Q0.31
_EXP_TABLE = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def _exp_of_quarter(a):
    """exp of Q0.31 in [-1/4, 0): a Taylor series around -1/8."""
    x = a + (1 << 28)
    x2 = multiply_high(x, x)
    x3 = multiply_high(x2, x)
    x4 = multiply_high(x2, x2)
    inner = rounding_shift(x4, 2) + x3
    inner = rounding_shift(multiply_high(inner, 715827883) + x2, 1)
    return 1895147668 + multiply_high(1895147668, x + inner)


def _one_over_one_plus(x):
    """1 / (1 + x) of Q0.31 x in [0, 1] as Q0.31: Newton-Raphson on half the denominator, three steps in Q2.29."""
    half = (x + (2**31 - 1) + np.where(x + (2**31 - 1) >= 0, 1, -1)) // 2
    guess = 1515870810 + multiply_high(half, -1010580540)
    for _ in range(3):
        error = (1 << 29) - multiply_high(half, guess)
        guess = guess + np.clip(multiply_high(guess, error) << 2, -(2**31), 2**31 - 1)
    return np.clip(guess << 1, -(2**31), 2**31 - 1)


_RUN = {
    "conv": _weighted,
    "depthwise": _weighted,
    "dense": _weighted,
    "add": _add,
    "multiply": _multiply,
    "mean": _mean,
    "resize": _resize,
    "hard_swish": _hard_swish,
    "max_pool": _pool,
    "average_pool": _pool,
    "channel_shift": _channel_shift,
    "concatenate": _concatenate,
    "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid,
    "pad": _pad,
    "reshape": _reshape,
    "softmax": _softmax,
}
