"""Multiplication-free layers for Keras, and the hybrid layers that they are trained in."""

from saaug_keras.layers.adder import AdderConv2D, AdderDepthwiseConv2D
from saaug_keras.layers.hybrid import HybridBatchNormalization, HybridConv2D, HybridDense, HybridDepthwise
from saaug_keras.layers.shift import ShiftConv2D, ShiftDense, ShiftDepthwiseConv2D

__all__ = [
    "AdderConv2D",
    "AdderDepthwiseConv2D",
    "HybridBatchNormalization",
    "HybridConv2D",
    "HybridDense",
    "HybridDepthwise",
    "ShiftConv2D",
    "ShiftDense",
    "ShiftDepthwiseConv2D",
]
