"""Fixed-point numbers, as TFLite Micro makes and uses them."""

from __future__ import annotations

import math

import numpy as np

ACCUMULATOR_LIMIT = 2**30 - 1  # of our kernels: leaves room for rounding


def quantize_multiplier(real):
    """A double as (Q31 multiplier, shift): real = multiplier * 2**-31 * 2**shift, multiplier in [2**30, 2**31).

    Halves are rounded away from zero; below 2**-32 both are 0.
    """
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(abs(fraction) * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    return (multiplier if real > 0 else -multiplier), shift


def effective_scale(input_scale, weight_scale, output_scale):
    """float32 scales -> the double that an accumulator is multiplied by."""
    return float(np.float32(input_scale)) * float(np.float32(weight_scale)) / float(np.float32(output_scale))


def multiply_high(a, b):
    """SaturatingRoundingDoublingHighMul: a * b / 2**31 to nearest, ties up. The one saturating case is excluded."""
    return (np.asarray(a, "int64") * np.asarray(b, "int64") + (1 << 30)) >> 31


def rounding_shift(value, exponent):
    """RoundingDivideByPOT: to nearest, ties away from zero."""
    value, exponent = np.asarray(value, "int64"), np.asarray(exponent, "int64")
    half = np.where(exponent > 0, np.left_shift(1, np.maximum(exponent - 1, 0)), 0)
    return (value + half + np.where(exponent > 0, value >> 63, 0)) >> exponent


def requantize(acc, multiplier, shift):
    """MultiplyByQuantizedMultiplier with `shift` to the right; negative shifts go left, before the multiplication."""
    shift = np.asarray(shift)
    acc = np.asarray(acc, "int64") << np.maximum(-shift, 0)
    return rounding_shift(multiply_high(acc, multiplier), np.maximum(shift, 0))
