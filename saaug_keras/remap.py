"""The map from Gaussian latent weights to the Laplacian ones that a multiplication-free layer sees.

Source: ShiftAddAug, arXiv:2407.02881, section on heterogeneous weight sharing.
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops as K

from saaug_keras import _validate
from saaug_keras._backend import island, portable, subgraph

_SMALL = 0.75  # below this |z| / sqrt 2, erf is exact and 1 - erf is not a difference of near numbers
_FARTHEST = 12.0  # |z| up to which erfc(z / sqrt 2) is a normal float32
BINS = 100  # of the learned alternative
_NODES_TO, _BINS_TO = 4.0, 6.0
SHIFT_SCALE = 0.1  # of sigma: the narrow Laplacian that a shift kernel adds to its Gaussian


def gaussian_to_laplace(weights, *, mean, std, location=0.0, scale):
    """Maps normally distributed weights to Laplace distributed ones, quantile by quantile.

        z = (w - mean) / std
        r(w) = location - sign(z) * scale * (ln 2 + log_survival(|z|)) = ppf_Laplace(cdf_Normal(w))
        dr/dw = scale / std * pdf(z) / survival(|z|)

    In the log-survival form, which is finite far into the tails where ppf(cdf(w)) is infinite from 5.5 sigma on in
    float32. On TensorFlow it uses TensorFlow Probability, elsewhere the same function through erf and erfc.

    Args:
        weights: float32 or float64 tensor.
        mean, std: of the normal distribution; tensors or floats, without gradient. A `std` of 0 counts as 1e-12.
        location, scale: of the Laplace distribution; floats or tensors, without gradient; scale >= 0.
    Returns:
        Tensor of the shape of `weights`. |z| counts as 12 at most.
    """
    weights = K.convert_to_tensor(weights)
    numbers = [K.stop_gradient(K.cast(number, weights.dtype)) for number in (mean, std, location, scale)]
    value, slope = _laplace(K.stop_gradient(weights), *numbers)
    # The value is exact and the gradient is the slope: no derivative of the tails' many branches is taken.
    return value + slope * (weights - K.stop_gradient(weights))


@portable
def _laplace(weights, mean, std, location, scale):
    """(r, dr/dw)"""
    std = K.maximum(std, 1e-12)
    z = (weights - mean) / std
    size = K.minimum(K.abs(z), _FARTHEST)
    a = size * float(1 / np.sqrt(2.0))
    inner, outer = K.minimum(a, _SMALL), K.maximum(a, _SMALL)
    # Near 0 the log of the survival function is near -ln 2 and their sum loses digits; there, log1p keeps them.
    quantile = K.where(a < _SMALL, -K.log1p(-K.erf(inner)), _tail(outer))
    hazard = K.exp(quantile + (math.log(2.0) - 0.5 * math.log(2 * math.pi)) - 0.5 * size * size)
    return location + scale * K.where(z < 0, -quantile, quantile), scale / std * hazard


_laplace_island = island(_laplace.anywhere)


@_laplace.on("tensorflow")
def _padded_laplace(weights, *numbers):
    """Compiled for sizes that are powers of four, so that many kernels share few of them."""
    import tensorflow as tf

    if any(size is None for size in weights.shape):
        return _laplace.anywhere(weights, *numbers)
    count = int(np.prod(weights.shape))
    size = 256
    while size < count:
        size *= 4
    padded = tf.pad(tf.reshape(weights, (-1,)), [(0, size - count)])
    return [tf.reshape(tf.slice(part, (0,), (count,)), weights.shape) for part in _laplace_island(padded, *numbers)]


@portable
def _tail(a):
    """-(ln 2 + log survival of the standard normal at a * sqrt 2)."""
    return -K.log(K.erfc(a))


@_tail.on("tensorflow")
def _tail_of_probability(a):
    import tensorflow_probability as tfp

    zero, one = K.zeros((), a.dtype), K.ones((), a.dtype)
    return -(math.log(2.0) + tfp.distributions.Normal(zero, one).log_survival_function(a * float(np.sqrt(2.0))))


@subgraph
def moments(latent):
    """(mean, standard deviation) of a latent kernel, without gradient."""
    latent = K.stop_gradient(latent)
    return K.mean(latent), K.std(latent)


def remap_kernel(kernel, fc_kernel, fc_bias, *, moments, distance, laplace_scale, values=None):
    """The view of a latent kernel that a multiplication-free target has, before any rounding.

        v = FC(w) = fc_kernel @ w + fc_bias, w the taps of one pair of channels
        Shift:  v + r(v),  r with scale 0.1 * std          Add:  r(v),  r with scale `laplace_scale`

    With `values`, r is scale * `learned_map` in the place of `gaussian_to_laplace`.

    Args:
        kernel: (kh, kw, C, filters), or (C, units), of one tap.
        fc_kernel: (kh*kw, kh*kw); fc_bias: (kh*kw,).
        moments: (mean, std) of the layer's whole latent kernel; no gradient goes through them.
        distance: whether the target's layer is a sum of distances, as Add, or of products, as Shift: where large weights
            matter, r is added to them.
        laplace_scale: number > 0.
        values: (100,), of a learned map.
    """
    mean, std = moments
    if fc_bias.shape[0] == 1:
        mapped = kernel * fc_kernel[0, 0] + fc_bias[0]
    else:
        flat = K.reshape(kernel, (fc_bias.shape[0], -1))
        mapped = K.reshape(K.matmul(fc_kernel, flat) + fc_bias[:, None], K.shape(kernel))
    scale = laplace_scale if distance else SHIFT_SCALE * std
    if values is None:
        r = gaussian_to_laplace(mapped, mean=mean, std=std, scale=scale)
    else:
        r = scale * learned_map((mapped - mean) / K.maximum(std, 1e-12), values)
    return r if distance else mapped + r


def learned_values():
    """The values of `learned_map` that make it the identity: NumPy (100,)."""
    return np.linspace(-_NODES_TO, _NODES_TO, BINS).astype("float32")


def learned_map(z, values):
    """A learned function of standardised weights: piecewise linear through 100 nodes evenly spaced over -4..4.

    Args:
        z: float tensor; counts as -4 or 4 outside.
        values: (100,), the function's values at the nodes, which are learned.
    Returns:
        Tensor of the shape of `z`.
    Source: ShiftAddNAS, You et al. 2022, arXiv:2205.08119: the learned alternative to the quantile map.
    """
    return K.reshape(K.matmul(_hats(z, _NODES_TO), values[:, None]), K.shape(z))


def laplace_divergence(weights):
    """KL divergence of the weights' histogram, 100 soft bins over -6..6, from the standard Laplace distribution.

        sum over bins of p * log(p / q);    a weight counts for its two nearest bins, so that p has a gradient

    Args:
        weights: float tensor.
    Returns:
        Scalar tensor >= 0, in nats.
    Source: ShiftAddNAS, arXiv:2205.08119.
    """
    centres = np.linspace(-_BINS_TO, _BINS_TO, BINS)
    q = np.exp(-np.abs(centres))
    q = (q / q.sum()).astype("float32")
    p = K.mean(_hats(weights, _BINS_TO), axis=0)
    return K.sum(p * (K.log(K.maximum(p, 1e-8)) - np.log(q)))


def _hats(z, to):
    """(weights, 100): each weight's shares of its two nearest of 100 points evenly spaced over -to..to."""
    position = (K.clip(K.reshape(z, (-1, 1)), -to, to) + to) * ((BINS - 1) / (2 * to))
    return K.relu(1 - K.abs(position - np.arange(BINS, dtype="float32")))


def fit_fc(trained_kernel, twin_kernel, *, distance, laplace_scale=1.0, iterations=30, ridge=0.01):
    """The FC that makes a trained convolution's remapped weights distributed like its multiplication-free twin's.

    Tap by tap, the sorted remapped weights are matched to the twin's sorted weights: in turn each weight gets the
    twin's quantile of its rank as its target, and the linear map from the taps to the targets is solved for, with a
    ridge that pulls it to the identity.

    Args:
        trained_kernel: (kh, kw, C, filters) or (C, units), of a convolution trained as such.
        twin_kernel: of the same kernel size, float kernel of a multiplication-free layer trained directly.
        distance: as for `remap_kernel`.
        laplace_scale: number > 0, as the layer's.
        iterations: int in [1, 1000]; ridge: number in [0, 1e6], relative to the number of weights per tap.
    Returns:
        (fc_kernel (kh*kw, kh*kw), fc_bias (kh*kw,)), float32 NumPy arrays: the best of all iterations.
    Raises:
        ValueError: kernel sizes that differ, an argument out of range, or a kernel that is constant.
    Source: ShiftAddAug, arXiv:2407.02881; the quantile matching is ours.
    """
    owner = "fit_fc"
    _validate.one_of(owner, "distance", distance, (True, False))
    _validate.number_in(owner, "laplace_scale", laplace_scale, 1e-6, 1e6)
    _validate.int_in(owner, "iterations", iterations, 1, 1000)
    _validate.number_in(owner, "ridge", ridge, 0, 1e6)
    trained, twin = _taps_of(owner, "trained_kernel", trained_kernel), _taps_of(owner, "twin_kernel", twin_kernel)
    if len(trained) != len(twin):
        raise ValueError(
            f"{owner}: `twin_kernel` must have the kernel size of `trained_kernel`. Received: shapes "
            f"{np.shape(twin_kernel)} and {np.shape(trained_kernel)}."
        )
    taps, count = trained.shape
    mean, std = trained.mean(), trained.std()
    options = {"mean": mean, "std": std, "distance": distance, "laplace_scale": laplace_scale}
    grid = mean + std * np.linspace(-8, 8, 8001)
    curve = _remapped(grid[None], **options)[0]
    # The twin's quantiles at the trained weights' ranks, taken back through the remap, which increases.
    ranks = (np.arange(count) + 0.5) / count
    wanted = np.stack([np.quantile(row, ranks) for row in twin])
    wanted_before = np.interp(wanted, curve, grid)

    design = np.concatenate([trained, np.ones((1, count))])  # (taps + 1, count)
    start = np.concatenate([np.eye(taps), np.zeros((taps, 1))], axis=1)
    strength = ridge * count * np.diag([std**2] * taps + [1e-9])
    matrix, best = start, (np.inf, start)
    for _ in range(iterations + 1):
        mapped = matrix @ design
        error = float(np.mean((np.sort(_remapped(mapped, **options), axis=1) - wanted) ** 2))
        best = min(best, (error, matrix), key=lambda pair: pair[0])
        targets = np.take_along_axis(wanted_before, mapped.argsort(axis=1).argsort(axis=1), axis=1)
        matrix = np.linalg.solve(design @ design.T + strength, design @ targets.T + strength @ start.T).T
    return best[1][:, :taps].astype("float32"), best[1][:, taps].astype("float32")


def _taps_of(owner, name, kernel):
    """A kernel as float64 (taps, channel pairs)."""
    kernel = np.asarray(keras.ops.convert_to_numpy(kernel), "float64")
    if kernel.ndim not in (2, 4):
        raise ValueError(f"{owner}: `{name}` must have 2 or 4 axes. Received: shape {kernel.shape}.")
    if not np.isfinite(kernel).all() or kernel.std() == 0:
        raise ValueError(f"{owner}: `{name}` must be finite and not constant. Received: mean {kernel.mean()}.")
    return kernel.reshape(int(np.prod(kernel.shape[:2])) if kernel.ndim == 4 else 1, -1)


def _remapped(mapped, *, mean, std, distance, laplace_scale):
    """The remap without FC, in NumPy float64."""
    scale = laplace_scale if distance else SHIFT_SCALE * std
    value = gaussian_to_laplace(K.convert_to_tensor(mapped, "float64"), mean=mean, std=std, scale=scale)
    value = np.asarray(K.convert_to_numpy(value), "float64")
    return value if distance else mapped + value
