"""Every backbone with every operator, whole: on TFLite Micro and on every emulated core, bit for bit.

    python tests/every_backbone.py [--backbones mcunet-in0,...] [--operators shift,...] [--cores m0,...]

Networks of 32x32 images and 10 classes (segmentation: 32x48) with random weights and lively batch norms. Each is
exported in the custom flavour and every tensor compared with TFLite Micro's; where the built-in flavour exists, its
outputs must be the same bytes. Then the plain C project is built for each core and run in QEMU on one image, whose
output must be the reference's. Takes about half an hour; the test suite runs beginnings of the networks.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from export_models import assert_every_tensor_equal, small_backbone  # noqa: E402

import tflm_export  # noqa: E402
from saaug_keras import backbones  # noqa: E402
from tflm_export import emulator, flatbuffer, runner  # noqa: E402

OPERATORS = (
    "conv",
    "shift",
    "shift5",
    "shift-ps",
    "shift5-ps",
    "adder",
    "shiftadd",
    "binary",
    "shift/channelshift/shift",
    "mixed",
)


def network_of(name, operator):
    """(settled model, images) of a whole network; "mixed" gives every block the next operator."""
    segmentation = operator == "segmentation"
    shape = (32, 48, 3) if segmentation else (32, 32, 3)
    policy = "shift" if segmentation else operator
    if operator == "mixed":
        count = len(backbones.spec(name, input_shape=shape, num_classes=10).blocks)
        policy = [("shift", "adder", "conv", "shiftadd")[index % 4] for index in range(count)]
    return small_backbone(name, policy, shape=shape, blocks=None, classes=10, count=2, segmentation=segmentation)


def check_on_wheel(model, images, has_builtin):
    network = tflm_export.compile_network(model, images, flavour="custom")
    assert_every_tensor_equal(network, images, count=1)
    if has_builtin:
        builtin = tflm_export.compile_network(model, images, flavour="builtin")
        stored = network.input.quantize(images[:2])
        outputs = [runner.Interpreter(flatbuffer.write(each)).run(stored) for each in (network, builtin)]
        np.testing.assert_array_equal(*outputs)


def check_on_core(core, folder):
    kernels = (*sorted(folder.glob("kernels/src/*.c")), *sorted(folder.glob("kernels/src/*/*.c")))
    sources = tuple(emulator_sources(kernels))
    include = (sources[0].parents[1] / "include", sources[0].parents[1] / "src")
    objects = emulator.compile_once(core, sources, include)
    image = emulator.build(core, [*sorted(folder.glob("*.c")), *objects], folder, include=(folder, *include))
    result = emulator.run(core, image)
    assert result.status == 0 and result.output.count("output as expected") == 1, result.output[-500:]


def emulator_sources(kernels):
    """The same files in the checkout: compiled once for all projects, whose copies must not differ."""
    for copy in kernels:
        own = ROOT / "tflm_export" / "kernels" / copy.relative_to(next(p for p in copy.parents if p.name == "kernels"))
        assert own.read_bytes() == copy.read_bytes(), copy
        yield own


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default=",".join(backbones.NAMES))
    parser.add_argument("--operators", default=",".join((*OPERATORS, "segmentation")))
    parser.add_argument("--cores", default=",".join(emulator.CORES))
    arguments = parser.parse_args()
    cores = [emulator.CORES[name] for name in arguments.cores.split(",")]
    for core in [core for core in cores if emulator.missing(core)]:
        print(f"{core.name} is left out: {emulator.missing(core)}")
        cores.remove(core)
    failures = 0
    for name in arguments.backbones.split(","):
        for operator in arguments.operators.split(","):
            started, results = time.perf_counter(), {}
            model, images = network_of(name, operator)
            checks = {"tflite-micro": lambda m=model, x=images, o=operator: check_on_wheel(m, x, o in BUILTIN)}
            with tempfile.TemporaryDirectory() as directory:
                folder = pathlib.Path(directory) / "net"
                checks["c"] = lambda m=model, x=images, f=folder: tflm_export.export(m, x, f, target="c", name="net", samples=1)
                checks |= {core.name: lambda core=core, f=folder: check_on_core(core, f) for core in cores}
                for what, check in checks.items():
                    try:
                        check()
                        results[what] = "equal"
                    except (AssertionError, RuntimeError) as error:
                        failures += 1
                        lines = [line for line in str(error).splitlines() if line.strip()]
                        results[what] = f"FAILED ({lines[-1][:160] if lines else type(error).__name__})"
            line = ", ".join(f"{what} {result}" for what, result in results.items())
            if set(results.values()) == {"equal"}:
                line = f"equal on {', '.join(results)}"
            print(f"{name} {operator}: {line}; {time.perf_counter() - started:.0f} s", flush=True)
    print("all equal" if not failures else f"{failures} failed")
    return 1 if failures else 0


BUILTIN = ("conv", "shift", "shift-ps", "segmentation")

if __name__ == "__main__":
    sys.exit(main())
