"""Bytes of scratch that the C kernels take: their own formulas once more, for networks that no compiler has seen.

Every formula is the layout helper of a kernel's source; the tests compare them with the compiled kernels, which an export
asks where there is a compiler.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

NIBBLE, BYTE, OFFSET, BIT, NONE = range(5)  # layouts of weights, as in the option record
VERSIONS = ("reference", "portable4", "portable8", "dsp", "helium")
# Bytes of the C structs that hold what requantizes: saaug_channel, saaug_bucket_scale, saaug_four, saaug_sixteen.
_CHANNEL, _SCALE, _FOUR, _SIXTEEN = 16, 20, 64, 192


@dataclass(frozen=True)
class Window:
    """What the scratch of a layer depends on. Shapes are (H, W, C); pairs are (vertical, horizontal).

    Args:
        layout: of its weights. depth_multiplier: of a depthwise layer.
    """

    layout: int
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    depth_multiplier: int = 1

    @property
    def taps(self):
        return self.kernel[0] * self.kernel[1] * self.input_shape[2]

    @property
    def positions(self):
        return self.output_shape[0] * self.output_shape[1]


@functools.lru_cache(maxsize=1 << 14)
def scratch_bytes(name: str, window: Window, version: str) -> int:
    """Scratch of one layer.

    Args:
        name: of the operator, "shift_conv_2d" say. version: of `VERSIONS`.
    """
    if version == "reference" or name == "channel_shift":
        return 0
    if name == "shift_fully_connected":
        if version.startswith("portable"):
            return 0  # one vector packs nothing
        name = "shift_conv_2d"
    if version.startswith("portable"):
        return _PORTABLE[name](window, int(version.removeprefix("portable")))
    return (_DSP if version == "dsp" else _HELIUM)[name](window)


def _up(value, by):
    return -(-value // by)


# ---------------------------------------------------------------------------------------------------------------------
# Arm's DSP extension


def _dsp_shift_conv(w):
    channels, quads = w.output_shape[2], _up(w.taps, 4)
    padded = _up(quads, 2) * 2
    staging = 0 if w.kernel == (1, 1) else quads * 4
    if w.positions == 1 and w.layout == NIBBLE:
        return quads * 8 + staging
    even, most = _up(channels, 2) * 2, 5120 // (_up(w.taps, 8) * 16)
    block = even
    if most < even:
        blocks = even // 2 if most < 2 else _up(even, most // 2 * 2)
        block = _up(even // 2, blocks) * 2
    return padded * 16 + block * _CHANNEL + padded * 8 * block + staging


def _dsp_adder_conv(w):
    quads, fours = _up(w.taps, 4), _up(w.output_shape[2], 4)
    padded = _up(quads, 2) * 2
    blocks = _up(fours, max(2560 // (padded * 16), 1))
    block = _up(fours, blocks) * 4
    return padded * 8 + block * _CHANNEL + padded * 4 * block + (0 if w.kernel == (1, 1) else quads * 4)


def _planes_words(w, row_words):
    """Words of the four planes of a strip."""
    reach = (w.kernel[0] - 1) * w.dilation[0] + 1
    rows = 5120 // (row_words * 16)
    strip = min(1 if rows < reach else (rows - reach) // w.strides[0] + 1, w.output_shape[0])
    return 4 * ((strip - 1) * w.strides[0] + reach) * row_words


def _dsp_shift_depthwise(w):
    columns, stride = _up(w.output_shape[1], w.dilation[1]), w.strides[1]
    pairs = max(w.kernel[1] // 2 + 1, 2)
    if pairs > 4 or stride > 2 or (stride == 2 and w.dilation[1] > 1):
        return 0
    row_words = _up(columns, 4) * 4 * stride // 2 + pairs
    taps_words = _up(w.kernel[0] * w.kernel[1], 4) * 2
    return (_planes_words(w, row_words) + w.kernel[0] * pairs * 2 + taps_words) * 4


def _dsp_adder_depthwise(w):
    columns = _up(w.output_shape[1], w.dilation[1])
    if w.dilation[1] > 1 and w.strides[1] > 1:
        return 0
    words = _up(w.kernel[1], 4)
    row_words = _up((columns - 1) * w.strides[1], 4) + words
    return (_planes_words(w, row_words) + w.kernel[0] * words) * 4


# ---------------------------------------------------------------------------------------------------------------------
# Portable, by the words of a column


_PROGRAM_TAPS = _DISTANCE_TAPS = 252
_TABLE, _TABLE_TAPS = 512, 128  # of distances: its bytes, and most taps of a block


def _program_length(taps, layout):
    """uint16 of the longest program of so many taps."""
    return (1 + taps + taps // 4 + 5 * (16 if layout == BYTE else 7) + 2 + 1) // 2 * 2


def _portable_shift_conv(w, words):
    channels = w.output_shape[2]
    chunk = _up(_up(w.taps, _up(w.taps, _PROGRAM_TAPS)), 4) * 4
    chunks = _up(w.taps, chunk)
    length = _program_length(chunk, w.layout)
    group = _up(channels, _up(channels, 6144 // (2 * length)))
    tile = _up(w.positions, 2 * words)
    waiting = min(tile, 8) * group if chunks > 1 else 1
    return chunk * words * 4 + group * (length * 2 + _SCALE) + 8 * words * waiting


def _portable_adder_conv(w, words):
    chunk = _up(_up(w.taps, _up(w.taps, _TABLE_TAPS)), 4) * 4
    group = min(w.output_shape[2], 32)
    return _TABLE + chunk * words * 8 + group * _SCALE + 8 * words * group


def _planes(w, words, taps_bytes):
    """A plane of one channel, what is made of its taps, and their offsets; 0 for the reference's way."""
    taps = w.kernel[0] * w.kernel[1]
    reach = (w.kernel[1] - 1) * w.dilation[1]
    width = _up(w.output_shape[1], words) * words + reach // w.strides[1]
    row_bytes = 4 * min(w.strides[1], reach + 1) * width

    def height(rows):
        return (rows - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilation[0] + 1

    rows = _up(w.output_shape[0], 2)
    if row_bytes * height(rows) > 4096:
        room = 4096 // row_bytes - height(1)
        fit = 1 if room < 0 else room // w.strides[0] + 1
        rows = _up(rows, _up(rows, fit))
    plane = row_bytes * height(rows)
    return plane + taps_bytes + 2 * (taps + taps % 2) if plane < 65536 else 0


def _portable_shift_depthwise(w, words):
    taps = w.kernel[0] * w.kernel[1]
    return _planes(w, words, 2 * _program_length(taps, w.layout)) if taps <= _PROGRAM_TAPS else 0


def _portable_adder_depthwise(w, words):
    taps = w.kernel[0] * w.kernel[1]
    return _planes(w, words, 8 * (taps + 1)) if taps <= _DISTANCE_TAPS else 0


# ---------------------------------------------------------------------------------------------------------------------
# Helium


def _helium_conv(w, unit, tap_bytes):
    pairs, padded = _up(w.output_shape[2], 2), _up(w.taps, unit) * unit
    blocks = _up(pairs, max(4096 // (padded * tap_bytes * 2), 1))
    block = _up(pairs, blocks) * 2
    staging = 0 if w.kernel == (1, 1) else w.taps
    return block // 2 * _FOUR + padded * 2 + padded * tap_bytes * block + staging


def _helium_depthwise(w, weight_bytes, multiple):
    if w.depth_multiplier != 1:
        return 0
    taps = _up(w.kernel[0] * w.kernel[1], multiple) * multiple
    groups = _up(w.input_shape[2], 16)
    block = _up(groups, _up(groups, 8)) * 16
    return block // 16 * _SIXTEEN + taps * block * weight_bytes + taps * 4 + block


def _helium_shift_conv(w):
    return _helium_conv(w, 8, 2) if w.layout == BYTE else _helium_conv(w, 16, 1)


def _helium_shift_depthwise(w):
    return _helium_depthwise(w, 4, 1) if w.layout == BYTE else _helium_depthwise(w, 1, 3)


def _helium_adder_conv(w):
    return _helium_conv(w, 16, 1)


def _helium_adder_depthwise(w):
    return _helium_depthwise(w, 1, 1) if w.kernel[0] * w.kernel[1] <= 257 else 0


_DSP = {
    "shift_conv_2d": _dsp_shift_conv,
    "shift_depthwise_conv_2d": _dsp_shift_depthwise,
    "adder_conv_2d": _dsp_adder_conv,
    "adder_depthwise_conv_2d": _dsp_adder_depthwise,
}
_PORTABLE = {
    "shift_conv_2d": _portable_shift_conv,
    "shift_depthwise_conv_2d": _portable_shift_depthwise,
    "adder_conv_2d": _portable_adder_conv,
    "adder_depthwise_conv_2d": _portable_adder_depthwise,
}
_HELIUM = {
    "shift_conv_2d": _helium_shift_conv,
    "shift_depthwise_conv_2d": _helium_shift_depthwise,
    "adder_conv_2d": _helium_adder_conv,
    "adder_depthwise_conv_2d": _helium_adder_depthwise,
}
