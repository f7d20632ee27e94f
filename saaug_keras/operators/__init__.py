"""Operators as values: what a layer with weights computes, what it costs, and the plain Keras layers of it.

An operator is one object (`Operator`); a network's spec holds one a layer. By name: "conv" (multiplicative), "shift"
(4-bit DeepShift-Q), "shift5" (5 bits), "shift-ps", "shift5-ps" (DeepShift-PS), "adder" (AdderNet), "shiftadd" (a shift
layer followed by an add layer, ShiftAddNet), "binary" (signs, BNN) and, of depthwise layers alone, "channelshift" (each
channel moves by a place, ShiftNet).
"""

from saaug_keras.operators.adder import Adder
from saaug_keras.operators.binary import Binary
from saaug_keras.operators.cascade import ShiftAdd
from saaug_keras.operators.channelshift import ChannelShift
from saaug_keras.operators.conv import Conv
from saaug_keras.operators.names import names, option_names, parse, parse_block, register, to_text
from saaug_keras.operators.operator import Operator
from saaug_keras.operators.shift import Shift

__all__ = [
    "Adder",
    "Binary",
    "ChannelShift",
    "Conv",
    "Operator",
    "Shift",
    "ShiftAdd",
    "names",
    "option_names",
    "parse",
    "parse_block",
    "register",
    "to_text",
]
