"""The map from Gaussian latent weights to the Laplacian ones that a multiplication-free layer sees.

Source: ShiftAddAug, arXiv:2407.02881, section on heterogeneous weight sharing.
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops as K

_SMALL = 0.75  # below this |z| / sqrt 2, erf is exact and 1 - erf is not a difference of near numbers


def gaussian_to_laplace(weights, *, mean, std, location=0.0, scale):
    """Maps normally distributed weights to Laplace distributed ones, quantile by quantile.

        z = (w - mean) / std
        r(w) = location - sign(z) * scale * (ln 2 + log_survival(|z|)) = ppf_Laplace(cdf_Normal(w))

    In the log-survival form, which is finite far into the tails where ppf(cdf(w)) is infinite from 5.5 sigma on in
    float32. On TensorFlow it uses TensorFlow Probability, elsewhere the same function through erf and erfc.

    Args:
        weights: float tensor.
        mean, std: of the normal distribution; tensors or floats. A `std` of 0 maps everything to `location`.
        location, scale: of the Laplace distribution; scale >= 0.
    Returns:
        Tensor of the shape of `weights`.
    """
    z = (weights - mean) / K.maximum(std, 1e-12)
    size = K.abs(z)
    # sign(0) would cut the gradient at the centre, where the slope is finite and not zero.
    sign = K.where(z < 0, -1.0, 1.0)
    return location + sign * scale * _exponential_quantile(size)


def _exponential_quantile(size):
    """-(ln 2 + log survival of the standard normal) at size >= 0: 0 at 0, about size**2 / 2 far out."""
    a = size * float(1 / np.sqrt(2.0))
    inner, outer = K.minimum(a, _SMALL), K.maximum(a, _SMALL)
    # Near 0 the log of the survival function is near -ln 2 and their sum loses digits; there, log1p keeps them.
    return K.where(a < _SMALL, -K.log1p(-K.erf(inner)), _tail(outer))


def _tail(a):
    if keras.backend.backend() != "tensorflow":
        return -K.log(K.erfc(a))
    import tensorflow_probability as tfp

    zero, one = K.zeros((), a.dtype), K.ones((), a.dtype)
    return -(math.log(2.0) + tfp.distributions.Normal(zero, one).log_survival_function(a * float(np.sqrt(2.0))))
