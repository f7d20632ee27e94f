"""The option records of our custom operators: their fields, in order, and the names and numbers that go with them."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class CustomOp:
    """One of our operators: its number in the option record, the kind of layer that it is, and what it sums.

    Args:
        kind: "conv", "depthwise" or "dense".
        terms: "shift" (signed shifts of the inputs), "adder" (distances from them) or "moves" (none: no weights, no sum).
    """

    number: int
    kind: str
    terms: str


CUSTOM = {  # by the name in a model; the one table of Python and C
    "SHIFT_CONV_2D": CustomOp(1, "conv", "shift"),
    "SHIFT_DEPTHWISE_CONV_2D": CustomOp(2, "depthwise", "shift"),
    "SHIFT_FULLY_CONNECTED": CustomOp(3, "dense", "shift"),
    "ADDER_CONV_2D": CustomOp(4, "conv", "adder"),
    "ADDER_DEPTHWISE_CONV_2D": CustomOp(5, "depthwise", "adder"),
    "CHANNEL_SHIFT": CustomOp(6, "depthwise", "moves"),
}
ADDER_SCALE_LOG2 = 8  # an add layer's accumulator holds 2**8 times the sum of distances
BIT_SCALE_LOG2 = 6  # weights of one bit are plus and minus 2**6
LAYOUT_NIBBLE, LAYOUT_BYTE, LAYOUT_OFFSET, LAYOUT_BIT, LAYOUT_NONE = 0, 1, 2, 3, 4
REQUANT_Q31, REQUANT_POWER_OF_TWO = 0, 1
MAGIC = int.from_bytes(b"SAAG", "little")
VERSION = 1
_FORMATS = {"u8": "B", "u16": "H", "u32": "I", "i8": "b"}


def _field(kind):
    return dataclasses.field(metadata={"kind": kind})


@dataclass(frozen=True)
class OptionRecord:
    """The custom options of one of our operators: a packed little-endian struct, in this order.

    Later versions append fields; a reader knows its version's length. `option_header` gives the offsets to C.
    """

    magic: int = _field("u32")
    version: int = _field("u16")
    length: int = _field("u16")
    op: int = _field("u8")
    layout: int = _field("u8")
    requant: int = _field("u8")
    kernel_h: int = _field("u8")
    kernel_w: int = _field("u8")
    stride_h: int = _field("u8")
    stride_w: int = _field("u8")
    dilation_h: int = _field("u8")
    dilation_w: int = _field("u8")
    reserved: int = _field("u8")
    pad_top: int = _field("u16")
    pad_left: int = _field("u16")
    depth_multiplier: int = _field("u16")
    input_zero_point: int = _field("i8")
    output_zero_point: int = _field("i8")
    act_min: int = _field("i8")
    act_max: int = _field("i8")

    def pack(self) -> bytes:
        """The record's bytes."""
        return struct.pack(_record_format(), *dataclasses.astuple(self))

    @classmethod
    def unpack(cls, data) -> OptionRecord:
        """The record of some bytes; nothing but the length is checked."""
        return cls(*struct.unpack(_record_format(), bytes(data)))


def _record_format():
    return "<" + "".join(_FORMATS[field.metadata["kind"]] for field in dataclasses.fields(OptionRecord))


RECORD_BYTES = struct.calcsize(_record_format())


def option_header() -> str:
    """The C header with the offsets of `OptionRecord`; kernels/src/saaug_option_record.h holds this very text."""
    offsets, offset = [], 0
    for field in dataclasses.fields(OptionRecord):
        offsets.append(f"#define SAAUG_OPTION_{field.name.upper()} {offset}")
        offset += struct.calcsize(_FORMATS[field.metadata["kind"]])
    lines = [
        "/* Generated from OptionRecord in tflm_export/records.py: byte offsets of the option record of the custom "
        "operators. */",
        "#ifndef SAAUG_OPTION_RECORD_H",
        "#define SAAUG_OPTION_RECORD_H",
        "",
        *offsets,
        "",
        f"#define SAAUG_OPTIONS_MAGIC 0x{MAGIC:08X}u",
        f"#define SAAUG_OPTIONS_VERSION {VERSION}u",
        f"#define SAAUG_OPTIONS_BYTES {RECORD_BYTES}u",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def operator_header() -> str:
    """The C header with the table `CUSTOM`; kernels/include/saaug_op_list.h holds this very text."""
    rows = [f"    X({name}, {name.lower()}, {op.number}, {op.kind.upper()}, {op.terms.upper()})" for name, op in CUSTOM.items()]
    lines = [
        "/**",
        " * @file saaug_op_list.h",
        " * Generated from CUSTOM in tflm_export/records.py: the operators, as X(NAME, name, number, KIND, TERMS).",
        " *",
        " * number  in the option record",
        " * KIND    CONV, DEPTHWISE or DENSE (fully connected)",
        " * TERMS   SHIFT, signed shifts of the inputs, ADDER, distances from them, or MOVES, none: no weights, no sum",
        " */",
        "#ifndef SAAUG_OP_LIST_H",
        "#define SAAUG_OP_LIST_H",
        "",
        " \\\n".join(["#define SAAUG_FOR_EACH_OP(X)", *rows]),
        "",
        "#endif /* SAAUG_OP_LIST_H */",
    ]
    return "\n".join(lines) + "\n"
