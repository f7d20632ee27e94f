"""Multiplication-free layers for Keras, and the hybrid layers that they are trained in."""

from saaug_keras.layers.hybrid import HybridConv2D, HybridDense, HybridDepthwise
from saaug_keras.layers.norm import HybridBatchNormalization
from saaug_keras.operators.adder_layers import AdderConv2D, AdderDepthwiseConv2D
from saaug_keras.operators.channelshift_layers import ChannelShift2D
from saaug_keras.operators.product_layers import RoundedConv2D, RoundedDense, RoundedDepthwiseConv2D
from saaug_keras.operators.shift_layers import ShiftConv2D, ShiftDense, ShiftDepthwiseConv2D

__all__ = [
    "AdderConv2D",
    "AdderDepthwiseConv2D",
    "ChannelShift2D",
    "HybridBatchNormalization",
    "HybridConv2D",
    "HybridDense",
    "HybridDepthwise",
    "RoundedConv2D",
    "RoundedDense",
    "RoundedDepthwiseConv2D",
    "ShiftConv2D",
    "ShiftDense",
    "ShiftDepthwiseConv2D",
]
