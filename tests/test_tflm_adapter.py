"""The TFLite Micro adapter: it compiles where TFLM's types are, names the tensor at fault; damaged models do no harm.

With SAAUG_TFLM=<checkout of tflite-micro> in the environment it is compiled against the real headers, too; they need
the flatbuffers, gemmlowp and ruy headers, which TFLM's make downloads below tensorflow/lite/micro/tools/make/downloads.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess

import fuzz_prepare
import numpy as np
import pytest
from kernel_cases import KERNELS

STUB = pathlib.Path(__file__).resolve().parent / "tflm_stub"


def compile_adapter(compiler, tmp_path, *flags):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} not found")
    command = [
        compiler,
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        f"-I{KERNELS / 'include'}",
        f"-I{KERNELS / 'tflm'}",
        "-c",
        KERNELS / "tflm" / "saaug_ops.cc",
        "-o",
        tmp_path / "ops.o",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("where", ["global", "micro"])
def test_adapter_compiles_wherever_the_types_are(compiler, where, tmp_path):
    compile_adapter(compiler, tmp_path, f"-I{STUB}", *(["-DTFLM_TYPES_IN_MICRO"] if where == "micro" else []))


@pytest.mark.skipif("SAAUG_TFLM" not in os.environ, reason="SAAUG_TFLM names no checkout of tflite-micro")
def test_adapter_compiles_against_real_headers(tmp_path):
    root = pathlib.Path(os.environ["SAAUG_TFLM"])
    downloads = root / "tensorflow" / "lite" / "micro" / "tools" / "make" / "downloads"
    folders = [root, downloads / "flatbuffers" / "include", downloads / "gemmlowp", downloads / "ruy"]
    headers = [flag for path in folders for flag in ("-isystem", path)]
    compile_adapter("g++", tmp_path, "-Wno-unused-parameter", *headers)


@pytest.fixture(scope="module", params=["global", "micro"])
def show(request, tmp_path_factory):
    """Shows a model and its mutants to the adapter; returns what was printed."""
    if shutil.which("g++") is None:
        pytest.skip("g++ not found")
    directory = tmp_path_factory.mktemp("fuzz")
    flags = ("-DTFLM_TYPES_IN_MICRO",) if request.param == "micro" else ()
    program = fuzz_prepare.build(directory, version="portable" if request.param == "micro" else "dsp", flags=flags)

    def run(model, mutants=0, seed=1):
        path = directory / "model.tflite"
        path.write_bytes(model)
        done = fuzz_prepare.run(program, path, mutants, seed)
        assert "Sanitizer" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    return run


def test_damaged_models_do_no_harm(show):
    """A small share of `python tests/fuzz_prepare.py --mutants 100000`."""
    status, output = show(fuzz_prepare.model(), mutants=3000)
    assert status == 0, output
    assert "sound: 8 ran, 0 refused, 0 unreadable" in output
    assert "silent 0; tensors kept 0; failed in Eval 0" in output


def test_damaged_models_of_built_in_operators_do_no_harm(show, small_models):
    for name in ("products", "shift-builtin"):
        _, output = show((small_models / f"{name}.tflite").read_bytes(), mutants=3000)
        assert "sound: 0 ran, 0 refused, 0 unreadable" in output
        assert "silent 0; tensors kept 0; failed in Eval 0" in output


# Rows of the model's first layer.
X, Y, WEIGHTS, PARAMS = range(4)


def replaced(row, **changes):
    def edit(rows, ops):
        rows[row] = dataclasses.replace(rows[row], **changes)

    return edit


def record(position, byte):
    def edit(rows, ops):
        custom = bytearray(ops[0].custom)
        custom[position] = byte
        ops[0] = dataclasses.replace(ops[0], custom=bytes(custom))

    return edit


def shortened(row, count):
    def edit(rows, ops):
        data = rows[row].data.reshape(-1)[:count]
        rows[row] = dataclasses.replace(rows[row], data=data, shape=data.shape)

    return edit


def first_code(value):
    def edit(rows, ops):
        data = rows[WEIGHTS].data.copy()
        data[0] = value
        rows[WEIGHTS] = dataclasses.replace(rows[WEIGHTS], data=data)

    return edit


def param(column, value):
    def edit(rows, ops):
        data = rows[PARAMS].data.copy()
        data[0, column] = value
        rows[PARAMS] = dataclasses.replace(rows[PARAMS], data=data)

    return edit


def inputs(count):
    def edit(rows, ops):
        ops[0] = dataclasses.replace(ops[0], inputs=ops[0].inputs[:count])

    return edit


def of_moves(**changes):
    """The output of the channel shift, the last row, or `inputs` of the operator."""

    def edit(rows, ops):
        if "inputs" in changes:
            ops[-1] = dataclasses.replace(ops[-1], inputs=ops[-1].inputs + changes["inputs"])
        else:
            rows[-1] = dataclasses.replace(rows[-1], **changes)

    return edit


@pytest.mark.parametrize(
    "edit, sentence",
    [
        pytest.param(record(0, 0), "`options` must be a record of this operator", id="magic"),
        pytest.param(record(4, 9), "`options` must be a record of this operator", id="version"),
        pytest.param(record(8, 2), "`options` must be a record of this operator", id="another-operator"),
        pytest.param(inputs(2), "there must be N inputs and N output", id="two-inputs"),
        pytest.param(replaced(X, type="uint8"), "`input` must be of type intN", id="input-type"),
        pytest.param(replaced(X, shape=(5, 4, 6)), "`input` must have N dimensions, NHWC", id="input-rank"),
        pytest.param(replaced(X, scales=np.zeros(0, "float32"), zero_points=()), "`input` must have", id="no-scale"),
        pytest.param(replaced(X, zero_points=(99,)), "`input` must have the zero point of the options", id="zero-point"),
        pytest.param(replaced(Y, zero_points=(99,)), "`output` must have the zero point of the", id="zero-point-out"),
        pytest.param(replaced(Y, shape=(2, 5, 4, 5)), "`output` must have the batches of `input`", id="batches"),
        pytest.param(replaced(Y, shape=(1, 50, 4, 5)), "`output` does not fit the options", id="output-size"),
        pytest.param(replaced(X, shape=(1, 70000, 4, 6)), "`input` must have sizes in [N, N]", id="input-size"),
        pytest.param(replaced(WEIGHTS, type="int8"), "`weights` must be of type uintN", id="weights-type"),
        pytest.param(replaced(WEIGHTS, data=None), "`weights` must be a constant of the model", id="weights-computed"),
        pytest.param(shortened(WEIGHTS, 7), "`weights` must have at least N bytes", id="weights-short"),
        pytest.param(first_code(0x08), "`weights` has a value out of its range in output channel N", id="reserved-code"),
        pytest.param(replaced(PARAMS, data=None), "`params` must be a constant of the model", id="params-computed"),
        pytest.param(shortened(PARAMS, 5), "`params` must have at least N bytes", id="params-short"),
        pytest.param(param(2, 0), "`params` has a value out of its range in output channel N", id="shift"),
        pytest.param(param(0, 2**30), "`params` has a value out of its range in output channel N", id="overflow"),
        pytest.param(
            of_moves(inputs=("0/weights", "0/params")), "there must be N inputs and N output", id="moves-with-weights"
        ),
        pytest.param(of_moves(scales=np.array([0.06], "float32")), "`output` must have the scale of `input`", id="moves-scale"),
        pytest.param(of_moves(zero_points=(99,)), "`output` must have the zero point of the options", id="moves-zero-point"),
    ],
)
def test_prepare_names_what_is_wrong(show, edit, sentence):
    status, output = show(fuzz_prepare.model(edit))
    assert "sound: 7 ran, 1 refused, 0 unreadable" in output
    assert f"sound: {sentence}" in output
    assert status != 0


def test_a_truncated_model_is_found_before_it_is_read(show):
    model = fuzz_prepare.model()
    for length in (0, 3, 11, len(model) // 2, len(model) * 3 // 4):
        status, output = show(model[:length])
        assert "sound: 0 ran, 0 refused, 1 unreadable" in output, length


def test_a_constant_shorter_than_its_shape_is_found(show):
    _, output = show(fuzz_prepare.model(replaced(WEIGHTS, shape=(4096,))))
    assert "sound: a tensor's buffer is shorter than its shape" in output
