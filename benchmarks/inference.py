"""Instructions of one inference of a zoo entry on emulated cores: `python benchmarks/inference.py NAME [--record]`.

The entry is exported as a project of plain C, built for each core and run in QEMU on one bundled image, whose output
must be the exporter's. Exact and repeatable for one compiler.

    --cores m4,m0     some cores only
    --record          also write the figures into the entry's measured.toml
    --memory          flash and RAM of that project, linked, in place of instructions; NAME may be a shell pattern
"""

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tflm_export  # noqa: E402
from saaug_keras import datasets, zoo  # noqa: E402
from saaug_keras.zoo import making  # noqa: E402
from tflm_export import emulator, profiling  # noqa: E402


def measure_memory(arguments):
    for name in zoo.list(arguments.name):
        entry = zoo.Entry.read(name)
        if not entry.measured or "custom" not in making.flavours_of(entry):
            continue
        found = making.memory_of(entry, arguments.cores.split(","))
        for core, each in found.items():
            if each.how != "linked":
                raise RuntimeError(f"{core}: its compiler must be installed.")
            print(f"{name} {core}: {each.flash_bytes:,} bytes of flash, {each.ram_bytes:,} of RAM", flush=True)
        if arguments.record:
            making.record_memory(name, found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--cores", default="m4,m0")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory:
        return measure_memory(arguments)
    entry = zoo.Entry.read(arguments.name)
    if "custom" not in making.flavours_of(entry):
        parser.error(
            f"{arguments.name} multiplies, with kernels that are not ours: zoo/multiplicative.toml has what some take."
        )
    images = datasets.resize(zoo.samples(arguments.name).x_test[:1], entry.spec().input_shape[:2])
    counts = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "net"
        tflm_export.export(zoo.load(arguments.name), images, folder, target="c", name="net", observation=entry.observation())
        for name in arguments.cores.split(","):
            found = profiling.count(emulator.CORES[name], folder)
            if found is None:
                print(f"{arguments.name} {name}: more than its counter counts", flush=True)
                continue
            counts[name] = found
            print(f"{arguments.name} {name}: {found:,} instructions", flush=True)
    if arguments.record:
        making.record_instructions(arguments.name, counts)


if __name__ == "__main__":
    main()
