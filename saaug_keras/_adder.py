"""Sums of absolute differences, compiled: the arithmetic behind `ops.adder_conv2d`.

XLA fuses a sum of a dozen |x - f| terms into one loop over memory. More terms in one expression make the loop slow,
hence chunks with an optimization barrier between them; and the time to compile grows faster than the number of terms,
hence islands of at most 48, which layers of the same shape share.
"""

import functools

import keras
from keras import ops as K

_CHUNK, _BODY = 12, 48


def same_padding(x, axis, window, stride):
    """(before, after) zeros along spatial `axis` of (N, H, W, C), the odd one after; ints, or tensors for unknown sizes."""
    size = x.shape[axis + 1]
    if size is None:
        size = K.shape(x)[axis + 1]
        total = K.maximum((-(-size // stride) - 1) * stride + window - size, 0)
    else:
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _island(function):
    """`function` compiled by XLA on the TensorFlow backend; on JAX the caller's jit compiles it."""
    compiled = None

    @functools.wraps(function)
    def call(*args, **static):
        nonlocal compiled
        if keras.backend.backend() != "tensorflow":
            return function(*args, **static)
        if compiled is None:
            import tensorflow as tf

            compiled = tf.function(function, jit_compile=True, autograph=False)
        return compiled(*args, **static)

    return call


def _barrier(tensor):
    if keras.backend.backend() == "jax":
        import jax

        return jax.lax.optimization_barrier(tensor)
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # not among tf.raw_ops

    return gen_xla_ops.xla_optimization_barrier(input=[tensor])[0]


def _sum_in_chunks(term, count):
    total = None
    for start in range(0, count, _CHUNK):
        part = None if total is None else _barrier(total)
        for index in range(start, min(start + _CHUNK, count)):
            value = term(index)
            part = value if part is None else part + value
        total = part
    return total


@_island
def _distance_island(x, f):
    return _sum_in_chunks(lambda c: K.abs(x[:, c : c + 1] - f[c]), f.shape[0])


@_island
def _clip_island(x, f, g):
    """sum over o of clip(f[o] - x, -1, 1) * g[:, o], for f (outputs, inputs)."""
    return _sum_in_chunks(lambda o: K.clip(f[o] - x, -1.0, 1.0) * g[:, o : o + 1], f.shape[0])


def _blocks(count):
    """Ranges of at most `_BODY`, equal where that is possible, so that few shapes are compiled."""
    size = next((size for size in range(_BODY, _BODY // 2, -1) if count % size == 0), _BODY)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


@keras.ops.custom_gradient
def _matrix(x, f):
    """- sum over c of |x[p, c] - f[c, o]| for x (positions, inputs), f (inputs, outputs), with AdderNet's gradients."""
    y = -sum(_distance_island(x[:, a:b], f[a:b]) for a, b in _blocks(f.shape[0]))

    def gradient(*args, upstream=None):
        g = args[0] if upstream is None else upstream
        transposed = K.transpose(f)
        dx = sum(_clip_island(x, transposed[a:b], g[:, a:b]) for a, b in _blocks(f.shape[1]))
        df = K.matmul(K.transpose(x), g) - f * K.sum(g, axis=0)
        return dx, df

    return y, gradient


def _padded(x, window, strides, padding):
    if padding == "valid":
        return x
    pads = [same_padding(x, axis, window[axis], strides[axis]) for axis in (0, 1)]
    if all(isinstance(value, int) for pair in pads for value in pair):
        return K.pad(x, [(0, 0), *pads, (0, 0)]) if any(map(any, pads)) else x
    import tensorflow as tf

    return tf.pad(x, [(0, 0), *pads, (0, 0)])


def _output_size(x, axis, window, stride):
    size = x.shape[axis + 1] if x.shape[axis + 1] is not None else K.shape(x)[axis + 1]
    return (size - window) // stride + 1


def _views(x, kernel_size, strides, dilation_rate, sizes):
    """The kernel's taps as strided views of a padded tensor, row by row."""
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation_rate[0], j * dilation_rate[1]
            yield x[
                :,
                top : top + (sizes[0] - 1) * strides[0] + 1 : strides[0],
                left : left + (sizes[1] - 1) * strides[1] + 1 : strides[1],
            ]


def conv2d(x, kernel, strides, padding, dilation_rate):
    """See `ops.adder_conv2d`."""
    dtype = x.dtype
    x, kernel = K.cast(x, "float32"), K.cast(kernel, "float32")
    kh, kw, channels, filters = kernel.shape
    window = [(size - 1) * rate + 1 for size, rate in zip((kh, kw), dilation_rate, strict=True)]
    x = _padded(x, window, strides, padding)
    sizes = [_output_size(x, axis, window[axis], strides[axis]) for axis in (0, 1)]
    if (kh, kw) == (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
    else:
        x = K.concatenate(list(_views(x, (kh, kw), strides, dilation_rate, sizes)), axis=-1)
    y = _matrix(K.reshape(x, (-1, kh * kw * channels)), K.reshape(kernel, (-1, filters)))
    return K.cast(K.reshape(y, (-1, sizes[0], sizes[1], filters)), dtype)


@functools.cache
def _depthwise(strides, dilation_rate):
    """The depthwise sum over a padded image, for one geometry."""

    @_island
    def forward(x, f):
        sizes = [(x.shape[a + 1] - (f.shape[a] - 1) * dilation_rate[a] - 1) // strides[a] + 1 for a in (0, 1)]
        taps = K.reshape(f, (-1, f.shape[2]))
        views = list(_views(x, f.shape[:2], strides, dilation_rate, sizes))
        return -_sum_in_chunks(lambda index: K.abs(views[index] - taps[index]), len(views))

    @_island
    def backward(x, f, g):
        # Every position of x meets tap (i, j) in the output that lies that far before it: shift g, not x.
        height, width = x.shape[1:3]
        g = _spread(g, strides)
        kh, kw = f.shape[:2]
        rows, columns = (kh - 1) * dilation_rate[0], (kw - 1) * dilation_rate[1]
        g = K.pad(
            g,
            [(0, 0), (rows, max(0, height - g.shape[1])), (columns, max(0, width - g.shape[2])), (0, 0)],
        )
        taps = K.reshape(f, (-1, f.shape[2]))

        def term(index):
            top, left = rows - index // kw * dilation_rate[0], columns - index % kw * dilation_rate[1]
            return K.clip(taps[index] - x, -1.0, 1.0) * g[:, top : top + height, left : left + width]

        return _sum_in_chunks(term, kh * kw)

    @keras.ops.custom_gradient
    def distance(x, f):
        def gradient(*args, upstream=None):
            g = args[0] if upstream is None else upstream
            correlation = _correlation(x, f, g, strides, dilation_rate)
            return backward(x, f, g), correlation - f * K.sum(g, axis=(0, 1, 2))

        return forward(x, f), gradient

    return distance


def _spread(g, strides):
    """g with zeros between its rows and columns, so that it has stride 1."""
    for axis, stride in zip((1, 2), strides, strict=True):
        if stride == 1:
            continue
        shape = list(g.shape)
        g = K.expand_dims(g, axis + 1)
        g = K.pad(g, [(0, stride - 1 if a == axis + 1 else 0) for a in range(5)])
        shape[axis] *= stride
        g = K.reshape(g, [-1 if size is None else size for size in shape])
    return g


def _correlation(x, f, g, strides, dilation_rate):
    """sum over positions of g * (the view of x at each tap): the weight gradient of a depthwise convolution."""
    if keras.backend.backend() == "tensorflow" and strides[0] == strides[1] and dilation_rate == (1, 1):
        import tensorflow as tf

        shape = (f.shape[0], f.shape[1], f.shape[2], 1)
        needed = [(g.shape[a + 1] - 1) * strides[a] + f.shape[a] for a in (0, 1)]
        out = tf.nn.depthwise_conv2d_backprop_filter(
            x[:, : needed[0], : needed[1]], shape, g, (1, *strides, 1), "VALID"
        )
        return out[..., 0]
    views = _views(x, f.shape[:2], strides, dilation_rate, g.shape[1:3])
    return K.reshape(K.stack([K.sum(view * g, axis=(0, 1, 2)) for view in views]), f.shape)


def depthwise_conv2d(x, kernel, strides, padding, dilation_rate):
    """See `ops.adder_depthwise_conv2d`; `kernel` is (kh, kw, channels)."""
    dtype = x.dtype
    x, kernel = K.cast(x, "float32"), K.cast(kernel, "float32")
    window = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape[:2], dilation_rate, strict=True)]
    x = _padded(x, window, strides, padding)
    return K.cast(_depthwise(tuple(strides), tuple(dilation_rate))(x, kernel), dtype)
