"""Sums over taps and channels, compiled: the arithmetic behind `ops.adder_conv2d`, and depthwise products on JAX.

XLA fuses a sum of a dozen |x - f| terms into one loop over memory. More terms in one expression make the loop slow,
hence chunks with an optimization barrier between them; and the time to compile grows faster than the number of terms,
hence islands of at most 48, which layers of the same shape share. On an accelerator under JAX, XLA fuses the whole sum
into one reduction by itself.
"""

import functools

from keras import ops as K

from saaug_keras import _backend
from saaug_keras._backend import barrier, island, portable

_CHUNK, _BODY = 12, 48


def same_padding(x, axis, window, stride):
    """(before, after) zeros along spatial `axis` of (N, H, W, C), the odd one after: ints, or tensors if H, W are."""
    size = _size(x, axis + 1)
    outputs = -(-size // stride)
    total = (outputs - 1) * stride + window - size
    total = max(total, 0) if isinstance(total, int) else K.maximum(total, 0)
    return total // 2, total - total // 2


def _size(x, axis):
    """A dimension: an int, or a tensor where it is unknown while a graph is built."""
    return x.shape[axis] if x.shape[axis] is not None else K.shape(x)[axis]


def _sum_in_chunks(term, count, total=None):
    """total + term(0) + ... + term(count - 1)"""
    for start in range(0, count, _CHUNK):
        part = None
        for index in range(start, min(start + _CHUNK, count)):
            value = term(index)
            part = value if part is None else part + value
        total = part if total is None else barrier(total) + part
    return total


@island
def _distance_island(x, f, *total):
    """- sum over c of |x[:, c] - f[c]|, for x (positions, inputs) and f (inputs, outputs), added to `total`."""
    return _sum_in_chunks(lambda c: -K.abs(x[:, c : c + 1] - f[c]), f.shape[0], *total)


@island
def _clip_island(x, f, g, *total):
    """sum over o of clip(f[o] - x, -1, 1) * g[:, o], for f (outputs, inputs), added to `total`."""
    return _sum_in_chunks(lambda o: K.clip(f[o] - x, -1.0, 1.0) * g[:, o : o + 1], f.shape[0], *total)


def _blocks(count):
    """Ranges of at most `_BODY`, equal where that is possible, so that few shapes are compiled."""
    size = next((size for size in range(_BODY, _BODY // 2, -1) if count % size == 0), _BODY)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _upstream(args, upstream):
    """The gradient from above: Keras hands it over as a keyword or by position, as the backend does."""
    return args[0] if upstream is None else upstream


def _fuses_sums() -> bool:
    """Whether XLA makes one loop of a broadcast and a sum; on a CPU that loop would be a slow one."""
    return _backend.name() == "jax" and _backend.is_accelerated()


def _distances(x, f, *total):
    """- sum over c of |x[p, c] - f[c, o]|, added to `total`."""
    if _fuses_sums():
        y = -K.sum(K.abs(x[:, :, None] - f[None]), axis=1)
        return total[0] + y if total else y
    y = total
    for a, b in _blocks(f.shape[0]):
        y = (_distance_island(x[:, a:b], f[a:b], *y),)
    return y[0]


def _clipped_sums(x, f, g):
    """sum over o of clip(f[c, o] - x[p, c], -1, 1) * g[p, o]"""
    if _fuses_sums():
        return K.sum(K.clip(f[None] - x[:, :, None], -1.0, 1.0) * g[:, None], axis=2)
    f, dx = K.transpose(f), ()
    for a, b in _blocks(f.shape[0]):
        dx = (_clip_island(x, f[a:b], g[:, a:b], *dx),)
    return dx[0]


@K.custom_gradient
def _matrix(x, f):
    """- sum over c of |x[p, c] - f[c, o]| for x (positions, inputs), f (inputs, outputs), with AdderNet's gradients."""
    x, f = K.stop_gradient(x), K.stop_gradient(f)  # an eager tape would look into the island

    def gradient(*args, upstream=None):
        g = _upstream(args, upstream)
        return _clipped_sums(x, f, g), _product(x, g) - f * _column_sums(g)

    return _distances(x, f), gradient


@portable
def _product(x, g):
    """transpose(x) @ g, without a transposed copy."""
    return K.matmul(K.transpose(x), g)


@_product.on("tensorflow")
def _product_natively(x, g):
    import tensorflow as tf

    return tf.matmul(x, g, transpose_a=True)


@portable
def _column_sums(g):
    """sum over p of g[p]; on TensorFlow as a product, which is several times faster than its sum."""
    return K.sum(g, axis=0)


@_column_sums.on("tensorflow")
def _column_product(g):
    import tensorflow as tf

    return tf.matmul(tf.ones((1, tf.shape(g)[0])), g)[0]


def _padded(x, window, strides, padding):
    if padding == "valid":
        return x
    return _pad(x, *(same_padding(x, axis, window[axis], strides[axis]) for axis in (0, 1)))


def _pad(x, rows, columns):
    """(N, H, W, C) with (before, after) zeros, ints or tensors."""
    pads = [(0, 0), rows, columns, (0, 0)]
    if all(isinstance(value, int) for pair in pads for value in pair):
        return K.pad(x, pads) if any(map(any, pads)) else x
    import tensorflow as tf

    return tf.pad(x, pads)


def _output_sizes(x, window, strides):
    return [(_size(x, axis + 1) - window[axis]) // strides[axis] + 1 for axis in (0, 1)]


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


def _side_by_side(x, kernel_size, strides, dilation_rate, sizes):
    """The views of a padded tensor in its channels, tap by tap."""
    return K.concatenate(list(_views(x, kernel_size, strides, dilation_rate, sizes)), axis=-1)


def patches(x, kernel_size, strides, padding, dilation_rate):
    """What every position of a convolution's output looks at: (N, H', W', kh * kw * C), row by row, channels last."""
    window = _extent(kernel_size, dilation_rate)
    x = _padded(x, window, strides, padding)
    return _side_by_side(x, kernel_size, strides, dilation_rate, _output_sizes(x, window, strides))


def _extent(kernel_size, dilation_rate):
    return [(size - 1) * rate + 1 for size, rate in zip(kernel_size, dilation_rate, strict=True)]


def conv2d(x, kernel, strides, padding, dilation_rate):
    """See `ops.adder_conv2d`."""
    dtype = x.dtype
    x, kernel = K.cast(x, "float32"), K.cast(kernel, "float32")
    kh, kw, channels, filters = kernel.shape
    window = _extent((kh, kw), dilation_rate)
    x = _padded(x, window, strides, padding)
    sizes = _output_sizes(x, window, strides)
    if (kh, kw) != (1, 1) and kh * kw * channels > _BODY:
        return K.cast(_convolution((kh, kw), strides, dilation_rate)(x, kernel), dtype)
    if (kh, kw) == (1, 1):
        x = x[:, :: strides[0], :: strides[1]] if strides != (1, 1) else x
    else:
        x = _side_by_side(x, (kh, kw), strides, dilation_rate, sizes)
    y = _matrix(K.reshape(x, (-1, kh * kw * channels)), K.reshape(kernel, (-1, filters)))
    return K.cast(K.reshape(y, (-1, sizes[0], sizes[1], filters)), dtype)


@functools.cache
def _convolution(kernel_size, strides, dilation_rate):
    """The sum over a padded image tap by tap, for one geometry: all taps side by side would be kh * kw images."""

    def rows_of(x, sizes):
        for view in _views(x, kernel_size, strides, dilation_rate, sizes):
            yield K.reshape(view, (-1, x.shape[3]))

    @K.custom_gradient
    def distance(x, f):
        x, f = K.stop_gradient(x), K.stop_gradient(f)
        channels, filters = f.shape[2:]
        sizes = _output_sizes(x, _extent(kernel_size, dilation_rate), strides)
        taps = K.reshape(f, (-1, channels, filters))
        y = ()
        for index, rows in enumerate(rows_of(x, sizes)):
            y = (_distances(rows, taps[index], *y),)

        def gradient(*args, upstream=None):
            g = K.reshape(_upstream(args, upstream), (-1, filters))
            total, dx, df = _column_sums(g), None, []
            for index, rows in enumerate(rows_of(x, sizes)):
                df.append(_product(rows, g) - taps[index] * total)
                part = K.reshape(_clipped_sums(rows, taps[index], g), (-1, *sizes, channels))
                part = _placed(part, divmod(index, kernel_size[1]), x)
                dx = part if dx is None else dx + part
            return dx, K.reshape(K.stack(df), f.shape)

        return K.reshape(y[0], (-1, *sizes, filters)), gradient

    def _placed(part, tap, x):
        """Where the tap's view lies in the padded image."""
        part, pads = _spread(part, strides), []
        for axis in (0, 1):
            before = tap[axis] * dilation_rate[axis]
            pads.append((before, _size(x, axis + 1) - before - _size(part, axis + 1) + strides[axis] - 1))
        part = part[:, : _size(part, 1) - strides[0] + 1, : _size(part, 2) - strides[1] + 1]
        return _pad(part, *pads)

    return distance


@functools.cache
def _depthwise(strides, dilation_rate, product=False):
    """The depthwise sum over a padded image, for one geometry: of distances, or of products."""

    @island
    def forward(x, f):
        sizes = _output_sizes(x, _extent(f.shape[:2], dilation_rate), strides)
        taps = K.reshape(f, (-1, f.shape[2]))
        views = list(_views(x, f.shape[:2], strides, dilation_rate, sizes))

        def term(index):
            return views[index] * taps[index] if product else -K.abs(views[index] - taps[index])

        return _sum_in_chunks(term, len(views))

    @island
    def backward(x, f, g):
        # Every position of x meets tap (i, j) in the output that lies that far before it: shift g, not x.
        height, width = _size(x, 1), _size(x, 2)
        g = _spread(g, strides)
        kh, kw = f.shape[:2]
        rows, columns = (kh - 1) * dilation_rate[0], (kw - 1) * dilation_rate[1]
        g = K.pad(g, [(0, 0), (rows, rows), (columns, columns), (0, 0)])
        taps = K.reshape(f, (-1, f.shape[2]))

        def term(index):
            top, left = rows - index // kw * dilation_rate[0], columns - index % kw * dilation_rate[1]
            slope = taps[index] if product else K.clip(taps[index] - x, -1.0, 1.0)
            return slope * g[:, top : top + height, left : left + width]

        return _sum_in_chunks(term, kh * kw)

    @K.custom_gradient
    def distance(x, f):
        x, f = K.stop_gradient(x), K.stop_gradient(f)

        def gradient(*args, upstream=None):
            g = _upstream(args, upstream)
            correlation = _correlation(x, f, g, strides, dilation_rate)
            df = correlation if product else correlation - f * _column_sums(K.reshape(g, (-1, f.shape[2])))
            return backward(x, f, g), df

        return forward(x, f), gradient

    return distance


def _spread(g, strides):
    """g with zeros between its rows and columns, so that it has stride 1."""
    for axis, stride in zip((1, 2), strides, strict=True):
        if stride == 1:
            continue
        shape = [-1, _size(g, 1), _size(g, 2), g.shape[3]]
        shape[axis] *= stride
        g = K.expand_dims(g, axis + 1)
        g = K.pad(g, [(0, stride - 1 if a == axis + 1 else 0) for a in range(5)])
        g = K.reshape(g, shape)
    return g


@portable
def _correlation(x, f, g, strides, dilation_rate, apart=lambda tensor: tensor):
    """sum over positions of g * (the view of x at each tap): the weight gradient of a depthwise convolution.

    `apart` is what stands between some sums and the next.
    """
    sizes = [_size(g, 1), _size(g, 2)]
    taps, sums = range(f.shape[0] * f.shape[1]), []
    for start in taps[::_CHUNK]:
        x, g = apart(x), apart(g)
        views = list(_views(x, f.shape[:2], strides, dilation_rate, sizes))
        sums += [K.sum(views[index] * g, axis=(0, 1, 2)) for index in taps[start : start + _CHUNK]]
    return K.reshape(K.stack(sums), f.shape)


@_correlation.on("jax")
def _correlation_apart(*args):
    return _correlation.anywhere(*args, apart=barrier)  # all sums in one loop would take minutes to compile


@_correlation.on("tensorflow")
def _correlation_natively(x, f, g, strides, dilation_rate):
    import tensorflow as tf

    if strides[0] != strides[1] or dilation_rate != (1, 1):
        return _correlation.anywhere(x, f, g, strides, dilation_rate)
    needed = [(_size(g, a + 1) - 1) * strides[a] + f.shape[a] for a in (0, 1)]
    return tf.nn.depthwise_conv2d_backprop_filter(x[:, : needed[0], : needed[1]], (*f.shape, 1), g, (1, *strides, 1), "VALID")[
        ..., 0
    ]


def depthwise_conv2d(x, kernel, strides, padding, dilation_rate, product=False):
    """See `ops.adder_depthwise_conv2d`; with `product` an ordinary depthwise convolution. kernel (kh, kw, C, M)."""
    dtype, multiplier = x.dtype, kernel.shape[3]
    x, kernel = K.cast(x, "float32"), K.cast(kernel, "float32")
    if multiplier != 1:
        x = K.repeat(x, multiplier, axis=-1)
    kernel = K.reshape(kernel, (*kernel.shape[:2], -1))
    x = _padded(x, _extent(kernel.shape[:2], dilation_rate), strides, padding)
    return K.cast(_depthwise(tuple(strides), tuple(dilation_rate), product)(x, kernel), dtype)
