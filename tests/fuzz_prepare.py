"""Shows damaged models to the TFLite Micro adapter, under sanitizers.

    python tests/fuzz_prepare.py --mutants 100000

builds fuzz_prepare.cc with one version of the kernels, writes a model with all operators and runs it.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # the checkout's package, installed or not

import kernel_cases  # noqa: E402
from kernel_cases import BIT, BYTE, KERNELS, NIBBLE, NONE, OFFSET, SANITIZERS  # noqa: E402

STRICT = ("-Wall", "-Wextra", "-Werror")
DEBUG = ("-g", "-O1")


def model(edit=lambda rows, ops: None):
    """A model of a layer of each operator and layout, one after another in the file but not connected: Prepare looks at
    single nodes.

    `edit(rows, ops)` may change the tensors (input, output, weights and params of each layer, in this order; a channel
    shift, the last, has no weights and params) and the operators before they are written.
    """
    from tflm_export import flatbuffer, records

    rng = np.random.default_rng(31)
    layers = [
        ("shift_conv_2d", NIBBLE),
        ("shift_conv_2d", BYTE),
        ("shift_conv_2d", BIT),
        ("shift_depthwise_conv_2d", NIBBLE),
        ("shift_fully_connected", NIBBLE),
        ("adder_conv_2d", OFFSET),
        ("adder_depthwise_conv_2d", OFFSET),
        ("channel_shift", NONE),
    ]
    rows, ops = [], []
    for number, (op, layout) in enumerate(layers):
        case = kernel_cases.random_case(rng, op, layout=layout, batches=1, size=(5, 4), in_c=6, out_c=5, depth_multiplier=1)
        names = [f"{number}/{name}" for name in ("x", "weights", "params", "y")]
        fully = op == "shift_fully_connected"
        shapes = [case.input.shape, (1, *case.out_size)]
        scale = np.array([0.05], "float32")
        for name, shape, zero_point in zip((names[0], names[3]), shapes, case.zero_points, strict=True):
            if fully:  # the input as an image, which it reads flat
                shape = (shape[0], 1, 2, shape[3] // 2) if name == names[0] else (shape[0], shape[3])
            rows.append(flatbuffer._TensorRow(name, shape, "int8", None, scale, (zero_point,)))
        inputs, weights = names[:1], case.weights().reshape(-1)
        if weights.size:
            inputs = names[:3]
            rows.append(flatbuffer._TensorRow(names[1], weights.shape, "uint8", weights))
            rows.append(flatbuffer._TensorRow(names[2], case.params.shape, "int32", case.params))
        options = case.options()
        record = records.OptionRecord(records.MAGIC, records.VERSION, 28, *options[:9], 0, *options[9:12], *options[12:])
        ops.append(flatbuffer._OpRow(op.upper(), tuple(inputs), (names[3],), (), record.pack()))
    edit(rows, ops)
    network = SimpleNamespace(input=SimpleNamespace(name="0/x"), output=SimpleNamespace(name="5/y"))
    return flatbuffer._Writer().model(network, rows, ops)


def build(directory, *, version="portable", flags=()):
    """Compiles the program; returns its path."""
    directory = pathlib.Path(directory)
    include = [f"-I{path}" for path in (HERE / "tflm_stub", KERNELS / "include", KERNELS / "src", KERNELS / "tflm")]
    objects = []
    c_files = [*KERNELS.glob("src/*.c"), *KERNELS.glob(f"src/{version}/*.c"), KERNELS / "tflm" / "saaug_model.c"]
    jobs = [("gcc", "-std=c99", file) for file in c_files]
    jobs += [("g++", "-std=c++17", file) for file in (KERNELS / "tflm" / "saaug_ops.cc", HERE / "fuzz_prepare.cc")]
    for compiler, standard, file in jobs:
        objects.append(directory / f"{file.stem}.o")
        command = [compiler, standard, *STRICT, *DEBUG, *SANITIZERS, f"-DSAAUG_FORCE_{version.upper()}", *flags, *include, "-c"]
        subprocess.run([*command, str(file), "-o", str(objects[-1])], check=True)
    program = directory / "fuzz_prepare"
    subprocess.run(["g++", *SANITIZERS, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(program, path, mutants, seed):
    """The finished process: status 0 if nothing went wrong."""
    return subprocess.run([str(program), str(path), str(mutants), str(seed)], capture_output=True, text=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000, help="damaged models to show (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the damages (default: %(default)s)")
    parser.add_argument("--version", default="portable", choices=("reference", "portable", "dsp"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "model.tflite"
        path.write_bytes(model())
        done = run(build(directory, version=arguments.version), path, arguments.mutants, arguments.seed)
    print(done.stdout, done.stderr, sep="", end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
