"""Sliding windows and sums of absolute differences in NumPy, for floats and integers alike."""

from __future__ import annotations

import numpy as np


def windows(x, kernel_size, strides, dilation, pads, fill):
    """(N, H', W', kernel_h, kernel_w, C) view of (N, H, W, C) with `pads` = (top, left, bottom, right) of `fill`."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2))
    view = view[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)


def distances(patches, weights, depthwise, dtype):
    """Sums of |x - w|.

    Args:
        patches: what `windows` gave.
        weights: (O, kernel_h, kernel_w, I); I = 1 and O = C * multiplier for depthwise.
        dtype: that differences are taken in; sums are int64 or float64.
    Returns:
        (N, H', W', O).
    """
    total = "int64" if np.issubdtype(dtype, np.integer) else "float64"
    if depthwise:
        channels = patches.shape[-1]
        planes = weights[..., 0].reshape(channels, -1, *weights.shape[1:3]).transpose(1, 2, 3, 0).astype(dtype)
        out = [np.abs(patches - plane).sum(axis=(3, 4), dtype=total) for plane in planes]
        return np.stack(out, axis=-1).reshape(*patches.shape[:3], -1)
    flat = np.ascontiguousarray(patches, dtype).reshape(-1, weights[0].size)
    rows = weights.reshape(len(weights), -1).astype(dtype)
    out = np.empty((len(flat), len(rows)), total)
    for start in range(0, len(flat), 512):  # keeps the differences in cache
        part = flat[start : start + 512]
        for o, row in enumerate(rows):
            out[start : start + 512, o] = np.abs(part - row).sum(axis=1, dtype=total)
    return out.reshape(*patches.shape[:3], -1)
