"""Tensor maths of multiplication-free layers with its gradients, for the TensorFlow and the JAX backend.

Arrays in, arrays out; all images are channels-last. Sums of absolute differences run in islands that XLA compiles,
`saaug_keras._sums`.
"""

import functools

import numpy as np
from keras import ops as K

from saaug_keras import _sums, _validate
from saaug_keras._backend import island, portable, subgraph

# Exponents that are looked for: float32's end at -126 and 127.
_LOWEST_EXPONENT, _FAR = -120, 120
_MOST_PATCHED = 128  # numbers that a position of a convolution reads, beyond which its patches take too much memory


def straight_through(value, gradient_of):
    """`value` in the forward pass; the gradient goes to `gradient_of` as if this were the identity."""
    # x - x is exactly 0, so the result is exactly `value`.
    return K.stop_gradient(value) + (gradient_of - K.stop_gradient(gradient_of))


def power_of_two(exponent):
    """Exactly 2**exponent in float32 for an integer-valued `exponent` in [-126, 127]; no gradient."""
    return _float_of((K.cast(K.stop_gradient(exponent), "int32") + 127) * (1 << 23))


@portable
def _float_of(bits):
    return K.view(bits, dtype="float32")


@_float_of.on("tensorflow")
def _bitcast(bits):
    import tensorflow as tf

    return tf.bitcast(bits, tf.float32)  # keras.ops.view wants known shapes


def shift_exponents(kernel, *, bits=4, zero_code=True, channel_axes=(-1,)):
    """Signs and exponents of the nearest (in log2) powers of two; see `round_to_power_of_two`.

    Returns:
        (sign in {-1, 0, 1}, exponent), float32 tensors of the kernel's shape with integer values.
    """
    kernel = K.stop_gradient(K.cast(kernel, "float32"))
    exponent = K.round(log2_magnitude(kernel))
    lowest, top = _exponent_range(exponent, bits, zero_code, channel_axes)
    sign = K.where(kernel < 0, -1.0, 1.0)
    if zero_code:
        # Below half the smallest magnitude, and where there is nothing at all.
        magnitude = K.abs(kernel)
        nothing = K.logical_or(magnitude < power_of_two(lowest - 1), magnitude < 2.0**_LOWEST_EXPONENT)
        sign = K.where(nothing, 0.0, sign)
    return sign, K.clip(exponent, lowest, top)


def _exponent_range(exponent, bits, zero_code, channel_axes):
    """(lowest, top) of each channel, far enough from the ends of float32's exponents."""
    rank = len(exponent.shape)
    axes = [axis for axis in range(rank) if axis not in {a % rank for a in channel_axes}]
    top = K.clip(K.max(exponent, axis=axes, keepdims=True), float(-_FAR), float(_FAR))
    return K.maximum(top - float(2 ** (bits - 1) - (2 if zero_code else 1)), -125.0), top


def log2_magnitude(kernel):
    """log2|k| in float32, of 0 the smallest exponent that is looked for; no gradient."""
    magnitude = K.abs(K.stop_gradient(K.cast(kernel, "float32")))
    return K.log(K.maximum(magnitude, 2.0**_LOWEST_EXPONENT)) * float(1 / np.log(2))


def shift_and_sign(shift, sign, *, bits=4, zero_code=True, channel_axes=(-1,)):
    """The kernel of DeepShift-PS, whose exponents and signs are learned themselves.

        q = round(clip(s, -1, 1)) * 2**clip(round(p), lowest, top)

    `top` is the channel's largest round(p) among signs that are not 0, `lowest` as for `round_to_power_of_two`.
    Rounding and clipping are passed straight through: dL/ds = g * 2**p, dL/dp = g * q * ln 2, p and q as rounded.

    Args:
        shift, sign: float tensors p and s of the kernel's shape.
        bits, zero_code, channel_axes: as for `round_to_power_of_two`; without the zero code a sign is -1 or 1.
    Returns:
        float32 tensor.
    Source: DeepShift-PS, Elhoushi et al. 2019, arXiv:1905.13298.
    """
    shift, sign = K.cast(shift, "float32"), K.cast(sign, "float32")
    value, exponent = K.stop_gradient(sign), K.round(K.stop_gradient(shift))
    rounded = K.where(value < 0, -1.0, 1.0)
    if zero_code:
        rounded = K.where(K.abs(value) < 0.5, 0.0, rounded)
    lowest, top = _exponent_range(K.where(rounded == 0, float(-_FAR), exponent), bits, zero_code, channel_axes)
    magnitude = power_of_two(K.clip(exponent, lowest, top))
    # d(2**p)/dp = 2**p * ln 2, with the 2**p that is used.
    scaled = shift * float(np.log(2))
    through = magnitude + magnitude * (scaled - K.stop_gradient(scaled))
    return straight_through(rounded, sign) * through


def round_to_power_of_two(kernel, *, bits=4, zero_code=True, channel_axes=(-1,)):
    """Rounds a kernel to signed powers of two.

        q = sign(k) * 2**p,   p = clip(round(log2|k|), lowest, top),   top = round(log2 max|k|)

    `zero_code` spends one level on zero: |k| < 2**(lowest - 1) gives 0. The gradient is the identity everywhere, and
    none goes through `top`. A channel of zeros stays zero with the code, and is 2**-125 without it.

    Args:
        kernel: float tensor.
        bits: int in [2, 8], of a weight: 1 sign bit and the code of the exponent. lowest = top - (2**(bits - 1) - 2)
            with the zero code, one less without it.
        zero_code: whether zero is a level.
        channel_axes: axes that have a `top` of their own, () for one of the whole kernel.
    Returns:
        Tensor of the kernel's shape and dtype. float16 holds powers of two down to 2**-24.
    Source: DeepShift-Q, Elhoushi et al. 2019, arXiv:1905.13298; the zero code is ours.
    """
    return _round_to_power_of_two(kernel, bits=bits, zero_code=zero_code, channel_axes=tuple(channel_axes))


@subgraph
def _round_to_power_of_two(kernel, *, bits, zero_code, channel_axes):
    sign, exponent = shift_exponents(kernel, bits=bits, zero_code=zero_code, channel_axes=channel_axes)
    return straight_through(K.cast(sign * power_of_two(exponent), kernel.dtype), kernel)


def nudged_range(low, high, bits=8):
    """The quantization grid that TensorFlow's fake quantization uses for a range, in its float32 arithmetic.

    The range is widened to include 0 and moved so that 0 is a grid point.

    Args:
        low, high: floats with low <= high.
        bits: int in [2, 16].
    Returns:
        (low', high', scale, zero_point): float32 scalars and an int for signed storage, -128..127 for 8 bits;
        value = scale * (stored - zero_point).
    """
    low, high = _with_zero(np, np.float32(low), np.float32(high))
    steps = np.float32(2**bits - 1)
    scale = (high - low) / steps
    zero = np.clip(_half_up(np, -low / scale), np.float32(0), steps)
    return -zero * scale, (steps - zero) * scale, scale, int(zero) - 2 ** (bits - 1)


def _with_zero(xp, low, high):
    """The range with 0 in it, and never empty."""
    low, high = xp.minimum(low, np.float32(0)), xp.maximum(high, np.float32(0))
    return low, xp.maximum(high, low + np.float32(1e-6))


def _half_up(xp, value):
    """The nearest integer, .5 upwards, without the rounding of value + 0.5."""
    whole = xp.floor(value)
    return xp.where(value - whole >= np.float32(0.5), whole + np.float32(1), whole)


def _grid(low, high, bits):
    low, high = _with_zero(K, K.cast(K.stop_gradient(low), "float32"), K.cast(K.stop_gradient(high), "float32"))
    steps = float(2**bits - 1)
    scale = (high - low) / steps
    zero = K.clip(_half_up(K, -low / scale), 0.0, steps)
    return scale, zero, steps


@subgraph
def _never_empty(low, high):
    return _with_zero(K, low, high)


def quantization_scale(low, high, bits=8):
    """The step of the grid of `nudged_range`, as a float32 tensor without gradient."""
    return _step(K.stop_gradient(K.cast(low, "float32")), K.stop_gradient(K.cast(high, "float32")), bits=bits)


@subgraph
def _step(low, high, *, bits):
    return _grid(low, high, bits)[0]


# Activations that clip, so that a range passes through them by its ends.
CLIPS = {"relu": K.relu, "relu6": K.relu6}


@subgraph(any_shape=True)
def observed_range(inputs, stored, *, momentum, bits, activation=None):
    """The running average (low, high) moved by a batch's range; the batch's own where `stored` is still empty.

    Args:
        inputs: float tensor.
        stored: float32 (2,), the average so far; empty while high <= low.
        momentum: number in [0, 1), the share of the average that stays; 1 leaves a range that is known as it is.
        bits: of the grid.
        activation: of `CLIPS`: the range is that of the activated inputs.
    Returns:
        (average (2,), low, high, step), float32 without gradient: low and high include 0, step is that of their grid.
    """
    batch = K.stop_gradient(K.cast(K.stack([K.min(inputs), K.max(inputs)]), "float32"))
    batch = batch if activation is None else CLIPS[activation](batch)
    stored = K.stop_gradient(stored)
    average = K.where(stored[1] > stored[0], momentum * stored + (1 - momentum) * batch, batch)
    low, high = _with_zero(K, average[0], average[1])
    return average, low, high, _grid(low, high, bits)[0]


def fake_quantize(x, low, high, bits=8):
    """Rounds `x` to the grid of `nudged_range(low, high, bits)`; the gradient is 1 inside the range and 0 outside.

    Args:
        x: float tensor.
        low, high: scalar tensors or floats; no gradient goes to them.
        bits: int in [2, 16].
    Returns:
        Tensor of the shape and dtype of `x`.
    """
    x = K.convert_to_tensor(x)
    low, high = (K.stop_gradient(K.cast(bound, "float32")) for bound in (low, high))
    return quantize_to(x, *_never_empty(low, high), bits)


@portable
def quantize_to(x, low, high, bits):
    """`fake_quantize` for scalar float32 tensors `low` <= 0 < `high` as `observed_range` gives them."""
    scale, zero, steps = _grid(low, high, bits)
    value = K.cast(x, "float32")
    smallest, largest = -zero * scale, (steps - zero) * scale
    clipped = K.clip(K.stop_gradient(value), smallest, largest)
    rounded = (K.floor((clipped - smallest) * (1 / scale) + 0.5) - zero) * scale
    inside = K.logical_and(value >= smallest, value <= largest)
    return K.cast(straight_through(rounded, K.where(inside, value, K.stop_gradient(value))), x.dtype)


@quantize_to.on("tensorflow")
def _quantize_natively(x, low, high, bits):
    import tensorflow as tf

    out = tf.quantization.fake_quant_with_min_max_vars(tf.cast(x, tf.float32), low, high, num_bits=bits)
    return tf.cast(out, x.dtype)


def activate_and_quantize(x, low, high, bits, *, channels=None, activation=None, split=False, fused=False):
    """`quantize_to` of the leading channels of activated inputs; the other channels are activated alone.

    Args:
        x: (..., C) tensor; low, high, bits: as `quantize_to`.
        channels: how many channels are rounded; None for all.
        activation: of `CLIPS`, or None.
        split: also return the leading channels by themselves.
        fused: on TensorFlow take one loop over memory each way, which is compiled for the shape.
    Returns:
        Tensor of the shape and dtype of `x`; with `split` a tuple of it and its leading channels.
    """
    if x.shape[-1] is not None and channels is not None and channels >= x.shape[-1]:
        channels = None
    if fused and x.dtype == "float32":
        return _in_one_loop(x, low, high, bits, channels, activation, split)
    return _step_by_step(x, low, high, bits, channels, activation, split)


def _step_by_step(x, low, high, bits, channels, activation, split):
    x = x if activation is None else CLIPS[activation](x)
    if channels is None:
        head = whole = quantize_to(x, low, high, bits)
    else:
        head = quantize_to(x[..., :channels], low, high, bits)
        whole = K.concatenate([head, x[..., channels:]], axis=-1)
    return (whole, head) if split else whole


_in_one_loop = portable(_step_by_step)


@_in_one_loop.on("tensorflow")
def _in_one_compiled_loop(x, low, high, bits, channels, activation, split):
    whole = _quantizing_loop(bits, channels, activation, split and channels is not None)(x, low, high)
    return whole if not split or channels is not None else (whole, whole)


@functools.cache
def _quantizing_loop(bits, channels, activation, split):
    """Slices, concatenations and their gradients, as an activation of its own, would each go over everything again."""
    import tensorflow as tf

    limits = {None: (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}[activation]

    def select(x, head, rest):
        return head if channels is None else tf.where(tf.range(tf.shape(x)[-1]) < channels, head, rest)

    @island
    def forward(x, low, high):
        x = x if activation is None else CLIPS[activation](x)
        return select(x, tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=bits), x)

    @island
    def backward(x, low, high, g, *g_head):
        if split:
            g += tf.pad(g_head[0], [(0, 0)] * (len(x.shape) - 1) + [(0, tf.shape(x)[-1] - channels)])
        head, *_ = tf.quantization.fake_quant_with_min_max_vars_gradient(g, x, low, high, num_bits=bits)
        g = select(x, head, g)
        return g if activation is None else tf.where((x > limits[0]) & (x < limits[1]), g, 0.0)

    @tf.custom_gradient
    def quantize(x, low, high):
        x, low, high = tf.stop_gradient(x), tf.stop_gradient(low), tf.stop_gradient(high)

        def gradient(*g):
            return backward(x, low, high, *g), None, None

        whole = forward(x, low, high)
        if not split:
            return whole, gradient
        return (whole, _head(whole, channels)), gradient

    return quantize


def add_to_head(x, head):
    """`x` (..., C) with `head` (..., c <= C) added to its leading channels."""
    return x + head if x.shape[-1] == head.shape[-1] else _add_padded(x, head)


@portable
def _add_padded(x, head):
    return x + K.pad(head, [(0, 0)] * (len(x.shape) - 1) + [(0, x.shape[-1] - head.shape[-1])])


@_add_padded.on("tensorflow")
def _adding_loop(x, head):
    import tensorflow as tf

    @tf.custom_gradient
    def add(x, head):
        return _sum_with_head(tf.stop_gradient(x), tf.stop_gradient(head)), lambda g: (g, _head(g, head.shape[-1]))

    return add(x, head)


def _head(x, channels):
    """The leading channels, of known number where that of `x` is drawn."""
    head = x[..., :channels]
    head.set_shape((*x.shape[:-1], channels))
    return head


@island
def _sum_with_head(x, head):
    import tensorflow as tf

    return x + tf.pad(head, [(0, 0)] * (len(x.shape) - 1) + [(0, tf.shape(x)[-1] - head.shape[-1])])


def round_to_sign(kernel, *, clip=1.0, channel_axes=(-1,)):
    """Rounds a kernel to its signs, times one scale per output channel.

        q = s * sign(k),    s = mean|k| over the channel, to 8 significant bits,    sign(0) = 1

    The gradient is the identity where |k| <= clip and 0 elsewhere; none goes through s. What was rounded stays as it is
    when it is rounded again, which a scale of all bits would not: a mean of equal numbers is not quite that number.

    Args:
        kernel: float tensor.
        clip: number > 0.
        channel_axes: axes that have a scale of their own.
    Returns:
        Tensor of the kernel's shape and dtype.
    Source: BinaryConnect's clipped gradient, Courbariaux et al. 2015, arXiv:1511.00363; the scale is XNOR-Net's,
        Rastegari et al. 2016, arXiv:1603.05279.
    """
    rank = len(kernel.shape)
    axes = [axis for axis in range(rank) if axis not in {a % rank for a in channel_axes}]
    value = K.stop_gradient(K.cast(kernel, "float32"))
    mean = K.mean(K.abs(value), axis=axes, keepdims=True)
    step = power_of_two(K.maximum(K.floor(log2_magnitude(mean)) - 7.0, -125.0))
    scale = K.round(mean / step) * step
    inside = K.where(K.abs(value) <= clip, kernel, K.stop_gradient(kernel))
    return straight_through(K.cast(K.where(value < 0, -scale, scale), kernel.dtype), inside)


def round_to_step(kernel, step):
    """Rounds `kernel` to multiples of `step` (a scalar tensor), without clipping; the gradient is the identity."""
    step = K.cast(K.stop_gradient(step), "float32")
    rounded = K.round(K.stop_gradient(K.cast(kernel, "float32")) / step) * step
    return straight_through(K.cast(rounded, kernel.dtype), kernel)


@portable
def conv2d(x, kernel, *, strides=(1, 1), padding="same", dilation_rate=(1, 1)):
    """Ordinary 2D convolution, channels-last, whose channel counts may be unknown while a graph is built.

    A 1x1 kernel is a matrix multiplication, which is faster. On JAX so is any kernel of few taps: with kernels that
    differ from image to image, as side by side under `vmap`, its convolution would be a grouped one, which is slow.
    """
    if tuple(kernel.shape[:2]) == (1, 1):
        return K.matmul(x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if np.prod(kernel.shape[:3]) <= _MOST_PATCHED:
        x = _sums.patches(x, kernel.shape[:2], strides, padding, dilation_rate)
        return K.matmul(x, K.reshape(kernel, (-1, kernel.shape[3])))
    return K.conv(x, kernel, strides=strides, padding=padding, data_format="channels_last", dilation_rate=dilation_rate)


@conv2d.on("tensorflow")
def _conv2d_natively(x, kernel, *, strides=(1, 1), padding="same", dilation_rate=(1, 1)):
    import tensorflow as tf

    if tuple(kernel.shape[:2]) == (1, 1):
        x = x[:, :: strides[0], :: strides[1]] if tuple(strides) != (1, 1) else x
        matrix = tf.squeeze(kernel, (0, 1))
        out = tf.matmul(tf.reshape(x, (-1, _size(matrix, 0))), matrix)
        out = tf.reshape(out, (-1, _size(x, 1), _size(x, 2), _size(matrix, 1)))
        out.set_shape((x.shape[0], *out.shape[1:]))
        return out
    return tf.nn.conv2d(x, kernel, strides=strides, padding=padding.upper(), dilations=dilation_rate)


def _size(tensor, axis):
    return tensor.shape[axis] if tensor.shape[axis] is not None else K.shape(tensor)[axis]


@portable
def depthwise_conv2d(x, kernel, *, strides=(1, 1), padding="same", dilation_rate=(1, 1)):
    """Ordinary depthwise convolution, channels-last, whose channel count may be unknown while a graph is built.

    On JAX it is a sum over the taps, which XLA makes one loop of; JAX's own grouped convolution is slow.

    Args:
        x: (N, H, W, C); kernel: (kh, kw, C, depth multiplier).
    """
    return _sums.depthwise_conv2d(x, kernel, strides, padding, dilation_rate, product=True)


@depthwise_conv2d.on("tensorflow")
def _depthwise_natively(x, kernel, *, strides=(1, 1), padding="same", dilation_rate=(1, 1)):
    import tensorflow as tf

    if strides[0] == strides[1]:
        return tf.nn.depthwise_conv2d(x, kernel, (1, *strides, 1), padding.upper(), dilations=dilation_rate)
    # TensorFlow's kernel wants equal strides. Take every position, then those that remain.
    window = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape[:2], dilation_rate, strict=True)]
    if padding == "same":
        pads = [_sums.same_padding(x, axis, window[axis], strides[axis]) for axis in (0, 1)]
        x = tf.pad(x, [(0, 0), *pads, (0, 0)])
    out = tf.nn.depthwise_conv2d(x, kernel, (1, 1, 1, 1), "VALID", dilations=dilation_rate)
    return out[:, :: strides[0], :: strides[1]]


def adder_conv2d(x, kernel, strides=1, padding="same", dilation_rate=1):
    """2D convolution with the l1 distance in the place of multiplication.

        y[m, n, t] = - sum over i, j, k of |x[m+i, n+j, k] - f[i, j, k, t]|
        dL/df = sum g * (x - f),     dL/dx = sum g * clip(f - x, -1, 1)         (the gradients of AdderNet)

    Padding is with zeros, which are taps like any other. The tensor positions x taps x filters is never built.
    Computed in float32; second derivatives are not defined.

    Args:
        x: (N, H, W, C) tensor; N, H and W may be unknown while a graph is built.
        kernel: (kh, kw, C, filters) tensor.
        strides, dilation_rate: int or pair, at least 1.
        padding: "same" or "valid".
    Returns:
        (N, H', W', filters), dtype of `x`.
    Raises:
        ValueError: an argument out of range.
    Source: AdderNet, Chen et al. 2019, arXiv:1912.13200.
    """
    strides, dilation_rate = _window("adder_conv2d", strides, padding, dilation_rate)
    return _sums.conv2d(x, kernel, strides, padding, dilation_rate)


def adder_depthwise_conv2d(x, kernel, strides=1, padding="same", dilation_rate=1):
    """`adder_conv2d` of every channel by itself.

        y[m, n, c*M + q] = - sum over i, j of |x[m+i, n+j, c] - f[i, j, c, q]|

    Args:
        x: (N, H, W, C) tensor; kernel: (kh, kw, C, M) tensor, M the depth multiplier.
        strides, padding, dilation_rate: as for `adder_conv2d`.
    Returns:
        (N, H', W', C * M), dtype of `x`.
    """
    strides, dilation_rate = _window("adder_depthwise_conv2d", strides, padding, dilation_rate)
    return _sums.depthwise_conv2d(x, kernel, strides, padding, dilation_rate)


def _window(owner, strides, padding, dilation_rate):
    _validate.one_of(owner, "padding", padding, ("same", "valid"))
    return _validate.pair_of(owner, "strides", strides), _validate.pair_of(owner, "dilation_rate", dilation_rate)
