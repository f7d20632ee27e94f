"""Slow NumPy loops, float64: what the layers must compute, and every gradient."""

import math

import numpy as np


def output_size(size, window, stride, padding):
    return -(-size // stride) if padding == "same" else (size - window) // stride + 1


def padded(x, kernel_size, strides, padding, dilation_rate):
    """(x with zeros around it, offset of the image in it, sizes of the output)"""
    pads, sizes = [], []
    for axis in (0, 1):
        window = (kernel_size[axis] - 1) * dilation_rate[axis] + 1
        out = output_size(x.shape[axis + 1], window, strides[axis], padding)
        total = max((out - 1) * strides[axis] + window - x.shape[axis + 1], 0) if padding == "same" else 0
        pads.append((total // 2, total - total // 2))
        sizes.append(out)
    return np.pad(x, [(0, 0), *pads, (0, 0)]), (pads[0][0], pads[1][0]), sizes


def _taps(x, f_shape, strides, padding, dilation_rate):
    """Yields (n, m, q, i, j, row, column): output position, tap, position in the padded image."""
    image, offset, sizes = padded(x, f_shape[:2], strides, padding, dilation_rate)
    places = [
        (n, m, q, i, j, m * strides[0] + i * dilation_rate[0], q * strides[1] + j * dilation_rate[1])
        for n in range(x.shape[0])
        for m in range(sizes[0])
        for q in range(sizes[1])
        for i in range(f_shape[0])
        for j in range(f_shape[1])
    ]
    return image, offset, sizes, places


def _crop(dx, offset, x):
    return dx[:, offset[0] : offset[0] + x.shape[1], offset[1] : offset[1] + x.shape[2]]


def convolution(x, f, strides=(1, 1), padding="same", dilation_rate=(1, 1), upstream=None, adder=False):
    """y, or with `upstream` (y, dx, df), of a convolution or, `adder`, of AdderNet's sum of distances.

    x (N, H, W, C), f (kh, kw, C, filters).
    """
    x, f = np.asarray(x, "float64"), np.asarray(f, "float64")
    image, offset, sizes, places = _taps(x, f.shape, strides, padding, dilation_rate)
    y = np.zeros((x.shape[0], *sizes, f.shape[3]))
    dx, df = np.zeros_like(image), np.zeros_like(f)
    for n, m, q, i, j, row, column in places:
        values = image[n, row, column][:, None]  # (C, 1)
        weights = f[i, j]  # (C, filters)
        y[n, m, q] += (-np.abs(values - weights) if adder else values * weights).sum(axis=0)
        if upstream is not None:
            g = np.asarray(upstream, "float64")[n, m, q][None, :]
            slope = np.clip(weights - values, -1, 1) if adder else weights
            dx[n, row, column] += (g * slope).sum(axis=1)
            df[i, j] += g * ((values - weights) if adder else values)
    return y if upstream is None else (y, _crop(dx, offset, x), df)


def depthwise(x, f, strides=(1, 1), padding="same", dilation_rate=(1, 1), upstream=None, adder=False):
    """As `convolution` for every channel by itself: f (kh, kw, C, M), output channel c * M + q."""
    x, f = np.asarray(x, "float64"), np.asarray(f, "float64")
    image, offset, sizes, places = _taps(x, f.shape, strides, padding, dilation_rate)
    channels, multiplier = f.shape[2:]
    y = np.zeros((x.shape[0], *sizes, channels * multiplier))
    dx, df = np.zeros_like(image), np.zeros_like(f)
    for n, m, q, i, j, row, column in places:
        for c in range(channels):
            for k in range(multiplier):
                value, weight, out = image[n, row, column, c], f[i, j, c, k], c * multiplier + k
                y[n, m, q, out] += -abs(value - weight) if adder else value * weight
                if upstream is not None:
                    g = float(upstream[n, m, q, out])
                    dx[n, row, column, c] += g * (min(max(weight - value, -1), 1) if adder else weight)
                    df[i, j, c, k] += g * ((value - weight) if adder else value)
    return y if upstream is None else (y, _crop(dx, offset, x), df)


def powers_of_two(kernel, bits=4, zero_code=True, channel_axes=(-1,)):
    """Signed powers of two, one weight at a time."""
    kernel = np.asarray(kernel, "float64")
    axes = {axis % kernel.ndim for axis in channel_axes}
    out = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
        channel = kernel[tuple(index[a] if a in axes else slice(None) for a in range(kernel.ndim))]
        largest = np.abs(channel).max()
        if largest == 0:
            continue
        top = round(math.log2(largest))
        lowest = top - (2 ** (bits - 1) - (2 if zero_code else 1))
        size = abs(kernel[index])
        if size < 2.0 ** (lowest - 1) and zero_code:
            continue
        exponent = lowest if size == 0 else min(max(round(math.log2(size)), lowest), top)
        out[index] = (-1 if kernel[index] < 0 else 1) * 2.0**exponent
    return out


def signs(kernel, channel_axes=(-1,)):
    """The mean magnitude of every channel, in 8 significant bits, with the signs of its weights."""
    out = np.empty_like(kernel)
    axes = [axis % kernel.ndim for axis in channel_axes]
    for index in np.ndindex(*(kernel.shape[axis] for axis in axes)):
        place = [slice(None)] * kernel.ndim
        for axis, i in zip(axes, index, strict=True):
            place[axis] = i
        mean = float(np.abs(kernel[tuple(place)]).mean())
        step = 2.0 ** (np.floor(np.log2(mean)) - 7)
        out[tuple(place)] = np.where(kernel[tuple(place)] < 0, -1, 1) * np.round(mean / step) * step
    return out


def fake_quantized(x, low, high, bits=8):
    """(x on its grid, whether each lies in the range, the step): the grid is exact float32 arithmetic."""
    low, high = np.float32(min(low, 0)), np.float32(max(high, 0))
    step = np.float32((high - low) / np.float32(2**bits - 1))
    zero = min(max(math.floor(float(np.float32(-low) / step) + 0.5), 0), 2**bits - 1)
    smallest, largest = -zero * float(step), (2**bits - 1 - zero) * float(step)
    x = np.asarray(x, "float64")
    stored = np.floor((np.clip(x, smallest, largest) - smallest) / float(step) + 0.5)
    return (stored - zero) * float(step), (x >= smallest - 1e-9) & (x <= largest + 1e-9), float(step)
