"""Every version of the kernels on this machine, bit for bit against NumPy, and what damaged models meet.

The version for DSP cores has the instructions' meaning in C beside them, so it runs here too; Helium needs an emulator.
"""

import ctypes
import dataclasses
import shutil
import struct
import subprocess

import kernel_cases
import numpy as np
import pytest
from kernel_cases import BIT, BYTE, KERNELS, NIBBLE, OFFSET, OPS, POWER_OF_TWO, Q31

VERSIONS = ("reference", "portable", "dsp")
COMPILERS = ("gcc", "clang")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
DEBUG = ("-g", "-O1", "-fno-omit-frame-pointer")
OK, BAD_OPTIONS, BAD_INPUT, BAD_WEIGHTS, BAD_PARAMS, BAD_OUTPUT, BAD_SCRATCH = range(7)
BOUND = 2**30 - 1


def sources(version):
    return sorted([*KERNELS.glob("src/*.c"), *KERNELS.glob(f"src/{version}/*.c")])


def compile_kernels(compiler, version, output, *arguments):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} not found")
    flags = [*WARNINGS, f"-DSAAUG_FORCE_{version.upper()}", f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'src'}"]
    done = subprocess.run([compiler, *flags, *arguments, "-o", output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module", params=[(c, v) for c in COMPILERS for v in VERSIONS], ids="-".join)
def driver(request, tmp_path_factory):
    """kernel_driver.c with one version, under the compiler's sanitizers."""
    compiler, version = request.param
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} not found")
    program = tmp_path_factory.mktemp("driver") / f"driver-{compiler}-{version}"
    main = kernel_cases.HERE / "kernel_driver.c"
    flags = (*DEBUG, *kernel_cases.sanitizers_of(compiler))
    compile_kernels(compiler, version, program, *flags, *sources(version), main)

    def run(cases):
        kernel_cases.write_cases(program.with_suffix(".bin"), cases)
        done = subprocess.run([program, program.with_suffix(".bin")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert done.stdout.splitlines()[-1] == f"{version}: {len(cases)} cases, 0 failures"

    return run


class Options(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "op layout requant kernel_h kernel_w stride_h stride_w dilation_h dilation_w pad_top pad_left "
            "depth_multiplier input_zero_point output_zero_point act_min act_max"
        ).split()
    ]


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in "batches in_h in_w in_c out_h out_w out_c".split()]


@pytest.fixture(scope="module", params=VERSIONS)
def library(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / f"{request.param}.so"
    compile_kernels("gcc", request.param, path, "-O2", "-fPIC", "-shared", *sources(request.param))
    loaded = ctypes.CDLL(str(path))
    loaded.saaug_version.restype = ctypes.c_char_p
    loaded.version = request.param
    return loaded


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """The checks are the same in all versions."""
    path = tmp_path_factory.mktemp("library") / "checks.so"
    compile_kernels("gcc", "reference", path, "-O2", "-fPIC", "-shared", *sources("reference"))
    return ctypes.CDLL(str(path))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def structs(case):
    return Options(*case.options()), Shape(*case.shape())


def run_layer(library, case, *, scratch=True):
    """(status, output) of a layer through ctypes; the output starts as all 77."""
    options, shape = structs(case)
    function = getattr(library, f"saaug_{case.op}_s8")
    size = getattr(library, f"saaug_{case.op}_s8_get_buffer_size")(ctypes.byref(options), ctypes.byref(shape))
    output = np.full((case.input.shape[0], *case.out_size), 77, np.int8)
    room = np.zeros(max(size, 0) // 8 + 1, np.int64)
    weights, x, params = case.weights(), np.ascontiguousarray(case.input), np.ascontiguousarray(case.params)
    status = function(
        ctypes.byref(options),
        ctypes.byref(shape),
        pointer(x),
        pointer(weights),
        pointer(params),
        pointer(output),
        pointer(room) if scratch and size > 0 else None,
    )
    return status, output, size


def check_constants(checks, case, *, weights=None, params=None):
    options, shape = structs(case)
    weights = case.weights() if weights is None else weights
    params = np.ascontiguousarray(case.params if params is None else params)
    channel = ctypes.c_int32(-7)
    status = checks.saaug_check_constants(
        ctypes.byref(options),
        ctypes.byref(shape),
        pointer(weights),
        ctypes.c_size_t(weights.size),
        pointer(params),
        ctypes.c_size_t(params.size),
        ctypes.byref(channel),
    )
    return status, channel.value


def example(op="shift_conv_2d", seed=5, **fixed):
    return kernel_cases.random_case(np.random.default_rng(seed), op, **fixed)


def test_random_lopsided_layers(driver):
    rng = np.random.default_rng(20241125)
    driver([kernel_cases.random_case(rng, op) for _ in range(60) for op in OPS])


@pytest.mark.parametrize("zero_points", [(-128, 127), (127, -128), (0, 127)], ids=str)
def test_zero_points_at_their_extremes(driver, zero_points):
    rng = np.random.default_rng(zero_points[0] + 500)
    driver([kernel_cases.random_case(rng, op, zero_points=zero_points) for _ in range(12) for op in OPS])


def test_layers_larger_than_a_block_of_scratch(driver):
    """Versions hold some channels or some rows at a time: here are several such blocks, and an odd rest."""
    rng = np.random.default_rng(8)
    one = {"kernel": (1, 1), "batches": 1}
    driver(
        [
            kernel_cases.random_case(rng, "shift_conv_2d", layout=NIBBLE, size=(3, 5), in_c=93, out_c=131, **one),
            kernel_cases.random_case(rng, "shift_conv_2d", layout=BYTE, size=(3, 5), in_c=93, out_c=75, **one),
            kernel_cases.random_case(rng, "shift_conv_2d", layout=BIT, size=(3, 5), in_c=93, out_c=131, **one),
            kernel_cases.random_case(rng, "shift_conv_2d", kernel=(3, 5), size=(6, 7), in_c=70, out_c=9, batches=1),
            kernel_cases.random_case(rng, "shift_conv_2d", layout=BIT, kernel=(3, 5), size=(6, 7), in_c=70, out_c=9, batches=1),
            kernel_cases.random_case(rng, "adder_conv_2d", size=(3, 5), in_c=93, out_c=131, **one),
            kernel_cases.random_case(rng, "adder_conv_2d", kernel=(3, 5), size=(6, 7), in_c=70, out_c=9, batches=1),
            kernel_cases.random_case(rng, "shift_fully_connected", layout=NIBBLE, in_c=1281, out_c=37, batches=1),
            kernel_cases.random_case(rng, "shift_fully_connected", layout=BYTE, in_c=1281, out_c=37, batches=3),
            kernel_cases.random_case(rng, "shift_fully_connected", layout=BIT, in_c=1281, out_c=37, batches=1),
            kernel_cases.random_case(rng, "shift_fully_connected", layout=BIT, in_c=1281, out_c=37, batches=5),
            *(
                kernel_cases.random_case(
                    rng,
                    f"{operator}_depthwise_conv_2d",
                    layout=layout,
                    kernel=kernel,
                    strides=strides,
                    dilations=(1, 1),
                    size=(61, 47),
                    in_c=in_c,
                    depth_multiplier=1,
                    batches=1,
                )
                for operator, layout in (("shift", NIBBLE), ("shift", BYTE), ("shift", BIT), ("adder", OFFSET))
                for kernel, strides, in_c in [((3, 3), (1, 1), 6), ((5, 5), (2, 2), 130), ((7, 7), (1, 1), 3)]
            ),
        ]
    )


def test_layers_that_end_in_the_middle_of_a_group(driver):
    driver(kernel_cases.rests(np.random.default_rng(12)))


def test_channels_move_in_words_and_in_bytes(driver):
    """Runs of 1 to 5 words, groups that are not full, fewer groups than taps, taps that never reach the image."""
    rng = np.random.default_rng(9)
    windows = [
        {"kernel": (3, 3), "strides": (1, 1)},
        {"kernel": (3, 5), "strides": (2, 1)},
        {"kernel": (1, 2), "strides": (2, 3)},
        {"kernel": (3, 3), "strides": (1, 1), "dilations": (4, 3)},
    ]
    cases = [
        kernel_cases.random_case(rng, "channel_shift", in_c=channels, size=size, **{"dilations": (1, 1), **window})
        for channels in (1, 4, 7, 12, 36, 48, 72, 108, 144, 180, 183)
        for size in [(6, 5), (1, 4)]
        for window in windows
    ]
    driver(cases)
    assert {(case.expected() == case.zero_points[0]).all() for case in cases} == {True, False}


@pytest.mark.parametrize("requant", [Q31, POWER_OF_TWO])
@pytest.mark.parametrize("sign", [1, -1])
def test_accumulators_at_the_bound(driver, checks, requant, sign):
    """|bias| + 128 * sum |w| = 2^30 - 1, and 256 * 255 * K for add layers, with the inputs that reach it."""
    cases = []
    layouts = {"shift": (NIBBLE, BYTE, BIT), "adder": (OFFSET,)}
    for op, layout in [(name, layout) for name in OPS for layout in layouts.get(name.partition("_")[0], ())]:
        case = example(
            op,
            layout=layout,
            requant=requant,
            kernel=(1, 1),
            strides=(1, 1),
            size=(2, 3),
            in_c=6,
            out_c=6,
            depth_multiplier=1,
            zero_points=(-3, 5),
            batches=2,
        )
        case.activation = (-128, 127)
        if layout == OFFSET:
            case.codes[:] = 0 if sign > 0 else 255
            case.input[:] = 127 if sign > 0 else -128
            case.params[:, 0] = BOUND - 256 * 255 * case.codes.shape[1]
        else:
            # Codes 15 and 7: the largest weights that all versions compute by themselves.
            case.codes[:] = {NIBBLE: (7, 15), BYTE: (15, -15), BIT: (0, 1)}[layout][sign > 0]
            case.input[:] = -128
            total = 128 * np.abs(kernel_cases.decode(case.codes, layout)).sum(axis=1)
            case.params[:, 0] = sign * (BOUND - total)
        case.params[:, 2] = np.arange(1, 31)[[0, 1, 21, 22, 28, 29]]
        if requant == Q31:
            case.params[:, 1] = [2**31 - 1, -(2**31 - 1), 2**31 - 1, 2**30, -(2**30), 2**31 - 1]
        assert np.abs(kernel_cases.accumulators(case)).max() == BOUND
        assert check_constants(checks, case) == (OK, -1)
        beyond = case.params.copy()
        beyond[4, 0] += 1 if beyond[4, 0] > 0 else -1
        assert check_constants(checks, case, params=beyond) == (BAD_PARAMS, 4)
        cases.append(case)
    driver(cases)


def test_a_layer_through_ctypes(library):
    assert library.saaug_version().decode() == library.version
    rng = np.random.default_rng(77)
    for op in OPS:
        case = kernel_cases.random_case(rng, op)
        status, output, size = run_layer(library, case)
        assert status == OK and size >= 0
        np.testing.assert_array_equal(output, case.expected())


def test_scratch_that_is_needed_must_be_there(library):
    for op in OPS:
        case = example(
            op,
            kernel=(1, 1) if op == "shift_fully_connected" else (3, 3),
            strides=(1, 1),
            dilations=(1, 1),
            size=(7, 9),
            in_c=8,
            layout=OFFSET if op.startswith("adder") else NIBBLE,
        )
        status, output, size = run_layer(library, case, scratch=False)
        if size > 0:
            assert status == BAD_SCRATCH and (output == 77).all()
        else:
            assert status == OK


def test_an_operator_refuses_the_options_of_another(library):
    case = example("shift_conv_2d", layout=NIBBLE)
    options, shape = structs(case)
    options.op = OPS["shift_depthwise_conv_2d"]
    arguments = [ctypes.byref(options), ctypes.byref(shape)]
    assert library.saaug_shift_conv_2d_s8(*arguments, None, None, None, None, None) == BAD_OPTIONS
    assert library.saaug_shift_conv_2d_s8_get_buffer_size(*arguments) == -1


RECORD = "<IHHBBBBBBBBBBHHHbbbb"
GOOD_RECORD = (0x47414153, 1, 28, 2, 0, 1, 3, 5, 2, 1, 1, 2, 0, 2, 8, 3, -128, 127, -100, 99)


def parse(checks, record):
    options = Options(*range(100, 116))
    status = checks.saaug_parse_options(record, ctypes.c_size_t(len(record)), ctypes.byref(options))
    return status, tuple(getattr(options, name) for name, _ in options._fields_)


def test_option_record_is_read(checks):
    status, options = parse(checks, struct.pack(RECORD, *GOOD_RECORD))
    assert status == OK
    assert options == (2, 0, 1, 3, 5, 2, 1, 1, 2, 2, 8, 3, -128, 127, -100, 99)


@pytest.mark.parametrize(
    "field, value",
    [
        pytest.param(0, 0x47414152, id="magic"),
        pytest.param(1, 0, id="version-0"),
        pytest.param(1, 2, id="version-2"),
        pytest.param(2, 27, id="length"),
        pytest.param(3, 0, id="op-0"),
        pytest.param(3, 7, id="op-7"),
        pytest.param(3, 6, id="op-of-a-channel-shift"),
        pytest.param(4, 2, id="layout-of-add-layers"),
        pytest.param(4, 4, id="layout-of-channel-shifts"),
        pytest.param(4, 5, id="layout-5"),
        pytest.param(5, 2, id="requant"),
        pytest.param(6, 0, id="kernel-height-0"),
        pytest.param(7, 0, id="kernel-width-0"),
        pytest.param(8, 0, id="stride-height-0"),
        pytest.param(9, 0, id="stride-width-0"),
        pytest.param(10, 0, id="dilation-height-0"),
        pytest.param(11, 0, id="dilation-width-0"),
        pytest.param(12, 1, id="reserved"),
        pytest.param(13, 3, id="pad-top-beyond-kernel"),
        pytest.param(14, 9, id="pad-left-beyond-kernel"),
        pytest.param(15, 0, id="depth-multiplier-0"),
        pytest.param(18, 100, id="activation-range-empty"),
    ],
)
def test_option_record_with_a_wrong_field_is_refused_and_nothing_written(checks, field, value):
    fields = list(GOOD_RECORD)
    fields[field] = value
    assert parse(checks, struct.pack(RECORD, *fields)) == (BAD_OPTIONS, tuple(range(100, 116)))


GOOD_MOVES = (0x47414153, 1, 28, 6, 4, 0, 3, 5, 2, 1, 1, 2, 0, 2, 8, 1, -7, -7, -128, 127)


@pytest.mark.parametrize(
    "field, value",
    [
        pytest.param(4, 0, id="layout"),
        pytest.param(5, 1, id="requant"),
        pytest.param(15, 2, id="depth-multiplier"),
        pytest.param(17, -6, id="zero-point"),
        pytest.param(18, -127, id="activation-least"),
        pytest.param(19, 126, id="activation-most"),
    ],
)
def test_a_channel_shift_does_nothing_but_move(checks, field, value):
    fields = list(GOOD_MOVES)
    assert parse(checks, struct.pack(RECORD, *fields))[0] == OK
    fields[field] = value
    assert parse(checks, struct.pack(RECORD, *fields))[0] == BAD_OPTIONS


@pytest.mark.parametrize("length", [0, 1, 27, 29, 64])
def test_option_record_of_another_length_is_refused(checks, length):
    record = (struct.pack(RECORD, *GOOD_RECORD) + bytes(64))[:length]
    assert parse(checks, record)[0] == BAD_OPTIONS


@pytest.mark.parametrize(
    "changes, status",
    [
        pytest.param({"in_h": 0}, BAD_INPUT, id="no-rows"),
        pytest.param({"in_c": -4}, BAD_INPUT, id="negative-channels"),
        pytest.param({"in_w": 65536}, BAD_INPUT, id="too-wide"),
        pytest.param({"batches": 65535, "in_h": 65535}, BAD_INPUT, id="more-than-memory"),
        pytest.param({"out_h": 3}, BAD_OUTPUT, id="output-too-low"),
        pytest.param({"out_h": 6}, BAD_OUTPUT, id="output-too-high"),
        pytest.param({"out_w": 5}, BAD_OUTPUT, id="output-too-wide"),
        pytest.param({"out_c": 0}, BAD_OUTPUT, id="no-output-channels"),
        pytest.param({}, OK, id="sound"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(checks, changes, status):
    # Rows: 9 + 1 above + 0 to 2 below, kernel 3, stride 2: 4 or 5. Columns: 7 + 0, kernel 1, stride 2: 4.
    options = Options(1, NIBBLE, Q31, 3, 1, 2, 2, 1, 1, 1, 0, 1, 0, 0, -128, 127)
    shape = Shape(1, 9, 7, 3, 4, 4, 6)
    for name, value in changes.items():
        setattr(shape, name, value)
    assert checks.saaug_check(ctypes.byref(options), ctypes.byref(shape)) == status


def test_depthwise_output_channels_follow_from_the_input(checks):
    options = Options(2, NIBBLE, Q31, 1, 1, 1, 1, 1, 1, 0, 0, 3, 0, 0, -128, 127)
    for out_c, status in [(12, OK), (11, BAD_OUTPUT)]:
        shape = Shape(1, 2, 2, 4, 2, 2, out_c)
        assert checks.saaug_check(ctypes.byref(options), ctypes.byref(shape)) == status


@pytest.mark.parametrize(
    "op, layout, position, byte",
    [
        pytest.param("shift_conv_2d", NIBBLE, 5, 0x08, id="reserved-low-nibble"),
        pytest.param("shift_conv_2d", NIBBLE, 5, 0x81, id="reserved-high-nibble"),
        pytest.param("shift_conv_2d", NIBBLE, 7, 0x30, id="padding-of-a-nibble-row"),
        pytest.param("shift_conv_2d", BYTE, 9, 17, id="code-17"),
        pytest.param("shift_conv_2d", BYTE, 9, 256 - 17, id="code-minus-17"),
        pytest.param("shift_conv_2d", BYTE, 15, 1, id="padding-of-a-byte-row"),
        pytest.param("shift_conv_2d", BIT, 1, 0x80, id="padding-of-a-row-of-bits"),
        pytest.param("adder_conv_2d", OFFSET, 15, 1, id="padding-of-an-add-row"),
    ],
)
def test_weights_that_no_exporter_writes_are_refused(checks, op, layout, position, byte):
    case = example(op, layout=layout, kernel=(1, 1), in_c=7, out_c=5)  # rows of 8 codes: 1 byte, 4 or 8
    weights = case.weights().reshape(-1)
    assert check_constants(checks, case, weights=weights) == (OK, -1)
    weights[position] = byte
    assert check_constants(checks, case, weights=weights) == (BAD_WEIGHTS, 1)


def test_constants_that_are_too_short_are_refused(checks):
    case = example(in_c=7, out_c=5, kernel=(1, 1), layout=NIBBLE)
    assert check_constants(checks, case, weights=case.weights().reshape(-1)[:-1]) == (BAD_WEIGHTS, -1)
    assert check_constants(checks, case, params=case.params.reshape(-1)[:-1]) == (BAD_PARAMS, -1)


@pytest.mark.parametrize(
    "requant, column, value",
    [
        pytest.param(Q31, 2, 0, id="shift-0"),
        pytest.param(Q31, 2, 31, id="shift-31"),
        pytest.param(Q31, 2, -1, id="shift-negative"),
        pytest.param(Q31, 1, -(2**31), id="multiplier-whose-product-saturates"),
        pytest.param(POWER_OF_TWO, 1, 0, id="sign-0"),
        pytest.param(POWER_OF_TWO, 1, 2, id="sign-2"),
        pytest.param(Q31, 0, -(2**31), id="bias-beyond-the-bound"),
    ],
)
def test_params_out_of_range_are_refused(checks, requant, column, value):
    case = example(in_c=7, out_c=5, kernel=(1, 1), requant=requant)
    params = case.params.copy()
    params[3, column] = value
    assert check_constants(checks, case, params=params) == (BAD_PARAMS, 3)


def test_every_case_field_is_drawn():
    """The generator is lopsided in fact: a kernel that swaps two of these would be found."""
    cases = [example("shift_conv_2d", seed) for seed in range(200)]
    for name in ("kernel", "strides", "dilations", "pads", "zero_points"):
        pairs = [getattr(case, name) for case in cases]
        assert sum(first != second for first, second in pairs) > 20, name
    assert len({case.requant for case in cases}) == 2 and len({case.layout for case in cases}) == 3
    assert dataclasses.is_dataclass(cases[0])
