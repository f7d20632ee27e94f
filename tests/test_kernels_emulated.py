"""Random layers on emulated cores: the version that each core's compiler flags choose, bit for bit against NumPy."""

import kernel_cases
import numpy as np
import pytest
from kernel_cases import BIT, BYTE, HERE, KERNELS, NIBBLE, OPS

from tflm_export import emulator

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
VERSION = {"m4": "dsp", "m7": "dsp", "m55": "helium"}  # others: portable


def layers():
    rng = np.random.default_rng(404)
    cases = [kernel_cases.random_case(rng, op) for _ in range(16) for op in OPS]
    # More than a block of channels, an odd number of positions, lanes and groups that are not full.
    one = {"kernel": (1, 1), "batches": 1, "size": (3, 5), "in_c": 37}
    cases += [
        kernel_cases.random_case(rng, "shift_conv_2d", layout=NIBBLE, out_c=131, **one),
        kernel_cases.random_case(rng, "shift_conv_2d", layout=BYTE, out_c=131, **one),
        kernel_cases.random_case(rng, "shift_conv_2d", layout=BIT, out_c=131, **one),
        kernel_cases.random_case(rng, "adder_conv_2d", out_c=131, **one),
    ]
    # The largest distance in more taps than 16-bit sums hold.
    for value, code, taps in ((-128, 255, 301), (127, 0, 260)):
        case = kernel_cases.random_case(rng, "adder_conv_2d", out_c=3, **{**one, "in_c": taps})
        case.input[:], case.codes[:] = value, code
        case.params[:, 0] = -kernel_cases.ADDER_SCALE * 255 * taps + 1000 * np.arange(-1, 2)
        cases.append(case)
    wide = {"kernel": (3, 3), "dilations": (1, 1), "size": (19, 17), "in_c": 41, "depth_multiplier": 1, "batches": 1}
    return cases + [kernel_cases.random_case(rng, op, **wide) for op in OPS if "depthwise" in op]


@pytest.mark.parametrize("core", emulator.CORES.values(), ids=lambda core: core.name)
def test_random_layers_on_a_core(core, tmp_path):
    if (reason := emulator.missing(core)) is not None:
        pytest.skip(reason)
    sources = [*KERNELS.glob("src/*.c"), *KERNELS.glob("src/*/*.c"), HERE / "kernel_driver.c"]
    image = emulator.build(
        core,
        sources,
        tmp_path,
        include=[KERNELS / "include", KERNELS / "src"],
        flags=WARNINGS,
        optimize=("-O2", "-ffunction-sections", "-fdata-sections"),
    )
    cases = layers()
    kernel_cases.write_cases(tmp_path / "cases.bin", cases)
    result = emulator.run(core, image, [tmp_path / "cases.bin"])
    assert result.output.splitlines()[-1] == f"{VERSION.get(core.name, 'portable')}: {len(cases)} cases, 0 failures", (
        result.output[-2000:]
    )
    assert result.status == 0
