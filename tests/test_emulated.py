"""The kernels on emulated microcontroller cores, bit for bit against NumPy, and the emulator's own soundness.

Whole networks on these cores are in test_firmware.py, instruction budgets in test_kernel_budget.py.
"""

import ctypes
import dataclasses

import kernel_cases
import numpy as np
import pytest
from kernel_cases import BYTE, KERNELS, NIBBLE, OPS
from test_kernels_host import structs

from tflm_export import emulator, native

INCLUDE = (KERNELS / "include", KERNELS / "src")
PROGRAMS = kernel_cases.HERE / "emulated"
# Version of the kernels that each core's compiler chooses, and the name of its getters of scratch on the host.
VERSIONS = {
    "m0": "portable4",
    "m3": "portable4",
    "m4": "dsp",
    "m7": "dsp",
    "m55": "helium",
    "rv32": "portable8",
    "rv32-no-m": "portable8",
}


@pytest.fixture(params=emulator.CORES)
def core(request):
    core = emulator.CORES[request.param]
    if reason := emulator.missing(core):
        pytest.skip(reason)
    return core


def build(core, main, directory):
    """An image of a program and the kernels."""
    sources = tuple(sorted([*KERNELS.glob("src/*.c"), *KERNELS.glob("src/*/*.c")]))
    objects = emulator.compile_once(core, sources, INCLUDE)
    return emulator.build(core, [main, *objects], directory, include=INCLUDE, flags=emulator.WARNINGS)


def layers():
    """Random layers of every operator, and those at which a version takes another path."""
    rng = np.random.default_rng(31)
    cases = [kernel_cases.random_case(rng, op) for _ in range(16) for op in OPS]
    pointwise = {"kernel": (1, 1), "strides": (1, 1), "size": (3, 5), "batches": 1}
    cases += [
        # Several groups of channels; several chunks of taps and tiles of pixels.
        kernel_cases.random_case(rng, "shift_conv_2d", in_c=93, out_c=131, layout=NIBBLE, **pointwise),
        kernel_cases.random_case(rng, "shift_conv_2d", kernel=(3, 5), size=(14, 9), in_c=41, out_c=7, batches=1),
        kernel_cases.random_case(rng, "adder_conv_2d", kernel=(3, 5), size=(6, 7), in_c=41, out_c=19, batches=1),
        kernel_cases.random_case(rng, "shift_fully_connected", in_c=300, out_c=21, batches=6),
        # Several strips of rows, an odd number of them; planes that are too wide, kernels that are too large.
        *(
            kernel_cases.random_case(rng, f"{operator}_depthwise_conv_2d", kernel=kernel, size=size, in_c=3, batches=1)
            for operator in ("shift", "adder")
            for kernel, size in [((3, 3), (61, 47)), ((5, 2), (2, 3001)), ((17, 16), (18, 17))]
        ),
    ]
    for layout, largest in ((NIBBLE, 7), (BYTE, 16)):
        # All weights zero; all of the same exponent, the largest and the smallest; all of them negative.
        case = kernel_cases.random_case(rng, "shift_conv_2d", in_c=61, out_c=6, layout=layout, **pointwise)
        negative = 8 if layout == NIBBLE else 0
        case.codes[:] = np.array([0, largest, 1, -largest, -1, 0])[:, None]
        case.codes[:] = np.where(case.codes < 0, negative - case.codes if negative else case.codes, case.codes)
        case.codes[5, 7] = largest
        cases.append(dataclasses.replace(case, input=np.full_like(case.input, -128)))
    return cases + kernel_cases.rests(rng)


def test_every_layer_is_bit_exact(core, tmp_path):
    cases = layers()
    kernel_cases.write_cases(tmp_path / "cases.bin", cases)
    result = emulator.run(core, build(core, kernel_cases.HERE / "kernel_driver.c", tmp_path), [tmp_path / "cases.bin"])
    name = VERSIONS[core.name].rstrip("48")
    assert result.output.splitlines()[-1] == f"{name}: {len(cases)} cases, 0 failures", result.output[-2000:]
    assert result.status == 0


def test_scratch_is_what_the_host_plans_for_the_core(core, tmp_path):
    cases = layers()
    kernel_cases.write_cases(tmp_path / "cases.bin", cases)
    image = build(core, PROGRAMS / "sizes.c", tmp_path)
    sizes = [int(line) for line in emulator.run(core, image, [tmp_path / "cases.bin"]).output.splitlines()]
    library = native.load()
    planned = []
    for case in cases:
        getter = getattr(library, f"saaug_{case.op}_s8_{VERSIONS[core.name]}_size")
        getter.restype = ctypes.c_int64
        planned.append(getter(*map(ctypes.byref, structs(case))))
    assert sizes == planned and max(sizes) > 0


def test_counts_are_exact_and_repeatable(core, tmp_path):
    image = emulator.build(core, [PROGRAMS / "loop.c"], tmp_path, include=[native.PLAIN])
    first, second = (emulator.run(core, image).output.split() for _ in range(2))
    assert first == second
    counts = [core.instructions(int(ticks)) for ticks in first]
    # A tick is up to 8 instructions; reading the counter takes a few.
    np.testing.assert_allclose(counts, [2 * 10**power for power in range(1, 6)], atol=12)


@pytest.mark.parametrize("name, has_it", [("m3", True), ("m0", False), ("rv32", True), ("rv32-no-m", False)])
def test_a_core_faults_on_an_instruction_that_it_lacks(name, has_it, tmp_path):
    """So that code for a larger core cannot pass on a smaller one: the M0 has no Thumb-2, RV32 without M no product."""
    core = emulator.CORES[name]
    if reason := emulator.missing(core):
        pytest.skip(reason)
    result = emulator.run(core, emulator.build(core, [PROGRAMS / "multiply.c"], tmp_path), timeout=60)
    if has_it:
        assert result == emulator.Result(0, "done\n")
    else:
        assert result.status != 0 and "done" not in result.output


def test_missing_tools_are_named():
    core = dataclasses.replace(emulator.CORES["m0"], compiler="no-such-gcc", emulator="no-such-qemu")
    start = "no-such-gcc and no-such-qemu not found; on Debian or Ubuntu: apt-get install gcc-arm-none-eabi "
    assert emulator.missing(core).startswith(start)
