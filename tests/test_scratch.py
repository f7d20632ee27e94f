"""The formulas of scratch are the compiled kernels' own."""

import ctypes

import numpy as np
import pytest

from saaug_keras import _scratch
from tflm_export import firmware, native, records


def random_layer(rng, name):
    """(`Window`, options and shape as C takes them) of one of our operators."""
    op = records.CUSTOM[name.upper()]
    height, width, channels, filters = (int(n) for n in rng.integers(1, (40, 40, 200, 200)))
    kernel, strides, dilation = ((1, 1), (1, 1), (1, 1))
    if op.kind == "dense":
        height = width = 1
    elif rng.random() < 0.7 or op.kind == "depthwise":
        kernel = tuple(int(n) for n in rng.integers(1, 18, 2))
        strides = tuple(int(n) for n in rng.integers(1, 4, 2))
        dilation = tuple(int(n) for n in rng.integers(1, 3, 2))
    out = (-(-height // strides[0]), -(-width // strides[1]))
    multiplier = int(rng.integers(1, 3)) if op.kind == "depthwise" else 1
    filters = channels * multiplier if op.kind == "depthwise" else filters
    layouts = {"shift": (_scratch.NIBBLE, _scratch.BYTE, _scratch.BIT), "adder": (_scratch.OFFSET,), "moves": (_scratch.NONE,)}
    layout = int(rng.choice(layouts[op.terms]))
    window = _scratch.Window(layout, (height, width, channels), (*out, filters), kernel, strides, dilation, multiplier)
    numbers = {"op": op.number, "layout": layout, "depth_multiplier": multiplier, "act_min": -128, "act_max": 127}
    for field, pair in (("kernel", kernel), ("stride", strides), ("dilation", dilation)):
        numbers |= {f"{field}_h": pair[0], f"{field}_w": pair[1]}
    return window, firmware._Options(**numbers), firmware._Shape(1, height, width, channels, *out, filters)


@pytest.mark.parametrize("name", [name.lower() for name in records.CUSTOM])
def test_scratch_is_what_the_kernels_say(name):
    library, rng = native.load(), np.random.default_rng(7)
    sizes = {version: set() for version in _scratch.VERSIONS}
    for _ in range(400):
        window, options, shape = random_layer(rng, name)
        for version in _scratch.VERSIONS:
            getter = getattr(library, f"saaug_{name}_s8_{version}_size")
            getter.restype = ctypes.c_int64
            found = _scratch.scratch_bytes(name, window, version)
            assert found == getter(ctypes.byref(options), ctypes.byref(shape)), (version, window)
            sizes[version].add(found)
    none = {"reference"} if name != "shift_fully_connected" else {"reference", "portable4", "portable8"}
    for version, found in sizes.items():
        assert found == {0} if version in none or name == "channel_shift" else len(found) > 50
