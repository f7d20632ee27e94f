"""Bytes of flash and RAM that TFLite Micro takes of an Arm core, for the table of `saaug_keras.memory`.

    python benchmarks/tflite_micro.py --core m4 --library libtensorflow-microlite.a --include TREE --include ... [--store]

The library is TFLite Micro's, built for the core by its own make or with its flags; the folders are its tree, the headers of
flatbuffers, gemmlowp and ruy, and those of the C++ library where the compiler has none. Every operator is linked alone; what
several share is found in the linker's maps. Then models of random networks and of the zoo are allocated in the emulator, and
the records that TFLite Micro keeps in its arena are fitted to what they used.

    --source TEXT     what the figures hold for, in words       --store     writes saaug_keras/_data/sizes.json
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]


import numpy as np  # noqa: E402
import random_networks  # noqa: E402
import sizes  # noqa: E402

import tflm_export  # noqa: E402
from saaug_keras import memory, zoo  # noqa: E402
from tflm_export import emulator, exporting, flatbuffer, footprint, linking, native, records  # noqa: E402

PROBE = ROOT / "benchmarks" / "kernels" / "tflm_probe.cc"
CXX = (
    "-std=c++17",
    "-fno-rtti",
    "-fno-exceptions",
    "-fno-threadsafe-statics",
    "-fno-use-cxa-atexit",
    "-DTF_LITE_STATIC_MEMORY",
)
BUILTINS = tuple(sorted(set(memory._TFLM_NAMES.values())))
SMALL = 6000  # bytes of activations below which planning the arena needs more than they do


def call(core, words, folder):
    done = subprocess.run([core.compiler, *core.flags, *map(str, words)], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def compile_parts(core, include, folder):
    """Object files: the probe, the probe with its program, and the adapter."""
    flags = ["-O3", "-ffunction-sections", "-fdata-sections", f"-I{native.KERNELS / 'tflm'}", *linking._includes()]
    flags += [word for path in include for word in ("-isystem", path)]
    adapter = native.KERNELS / "tflm"
    call(core, [*CXX, *flags, "-c", PROBE, "-o", "probe.o"], folder)
    call(core, [*CXX, *flags, "-DWITH_MAIN", "-c", PROBE, "-o", "main.o"], folder)
    call(core, [*CXX, *flags, "-c", adapter / "saaug_ops.cc", "-o", "ops.o"], folder)
    call(core, ["-std=c99", *flags, "-c", adapter / "saaug_model.c", "-o", "model.o"], folder)


def groups(core, library, folder):
    """[[bytes, operators that need them], ...] and the bytes of static RAM, by what is linked alone."""
    runtime = linking.runtime(core.name, "-O3")
    kept = {}
    for root in (*BUILTINS, *records.CUSTOM, "check", "interpreter"):
        link = [*linking._LINK, f"-Wl,--entry=probe_{root}", f"-Wl,--undefined=probe_{root}", f"-Wl,-Map={folder}/map"]
        parts = ["probe.o", "ops.o", "model.o", "-Wl,--start-group", library, runtime, "-lgcc", "-Wl,--end-group"]
        call(core, [*link, *parts, "-o", "image.elf"], folder)
        kept[root] = {
            section: size
            for section, size in sizes.kept_sections((folder / "map").read_text(), ram=True).items()
            if not section[0].startswith(".text.probe_")
        }
    static = sum(size for (section, _), size in kept["interpreter"].items() if section.startswith((".bss", ".data")))
    found = {name: size for name, _, _, size in linking.sections((folder / "probe.o").read_bytes())}
    one, two = found[".bss.size_one"], found[".bss.size_two"]
    code = {root: {key: size for key, size in part.items() if not key[0].startswith(".bss")} for root, part in kept.items()}
    return {"ram": {"interpreter": static, "resolver": 2 * one - two, "operator": two - one}, "groups": sizes.grouped(code)}


def networks():
    """Yields networks of both flavours, where there are both."""
    for number in range(sizes.RANDOM):
        model, images = random_networks.settled_model(random_networks.random_network(number))
        yield from flavours(model, images)
    for name in zoo.list():
        entry = zoo.Entry.read(name)
        blank = np.zeros((1, *entry.spec().input_shape), np.uint8)
        yield from flavours(zoo.load(name), blank, observation=entry.observation())


def flavours(model, images, **options):
    for flavour in exporting.FLAVOURS:
        try:
            yield tflm_export.compile_network(model, images, flavour=flavour, **options)
        except ValueError:  # of add layers, say, there is no built-in operator
            continue


def used_bytes(core, library, cases, folder):
    """Bytes that each network used of the arena on the emulated core."""
    names = []
    for number, network in enumerate(cases):
        names.append(f"model{number}")
        (folder / names[-1]).write_bytes(flatbuffer.write(network))
    (folder / "list").write_text("\n".join(names))
    made = emulator.CORES[core.name]
    code, constants, ram, ram_bytes = made.memory
    symbols = {"CODE": code, "CONSTANTS": constants, "RAM": ram, "RAM_SIZE": ram_bytes}
    link = ["--specs=rdimon.specs", "-nostartfiles", "-Wl,--gc-sections", f"-T{emulator.HERE / 'arm.ld'}"]
    link += [f"-Wl,--defsym={symbol}={value:#x}" for symbol, value in symbols.items()]
    parts = [emulator.HERE / "start_arm.c", "main.o", "ops.o", "model.o", "-Wl,--start-group", library]
    parts += [linking.runtime(core.name, "-O3"), "-lm", "-lc", "-lrdimon", "-lgcc", "-Wl,--end-group"]
    call(core, ["-O2", *link, *parts, "-o", "program.elf"], folder)
    done = emulator.run(made, folder / "program.elf", cwd=folder)
    if done.status:
        raise RuntimeError(f"status {done.status}, {done.output!r}")
    return [int(line.split()[1]) for line in done.output.splitlines()]


def fit_records(core, cases, used):
    """{operator: bytes of records}: what is left of the arena beside activations, scratch and channels."""
    keys = ["network", "ours", *BUILTINS]
    rows, left = [], []
    for network, size in zip(cases, used, strict=True):
        operations = footprint.operations_of(network)
        arena = memory._tflm_arena(operations, footprint.outside(network), core.name)
        if arena < SMALL:
            continue
        names = ["ours" if each.window is not None else each.name for each in operations]
        rows.append([1, *(names.count(key) for key in keys[1:])])
        left.append(size - arena - 8 * sum(each.channels for each in operations))
    seen = np.any(np.array(rows) > 0, axis=0)
    found = dict(zip(np.array(keys)[seen], np.linalg.lstsq(np.array(rows)[:, seen], left)[0], strict=True))
    return {key: round(float(found.get(key, found["ADD"]))) for key in keys}  # of an operator not seen: as an addition


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--core", required=True, choices=[name for name, core in memory.CORES.items() if "arm" in core.compiler]
    )
    parser.add_argument("--library", required=True)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--source")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    core, library = memory.CORES[arguments.core], str(pathlib.Path(arguments.library).resolve())
    include = [str(pathlib.Path(path).resolve()) for path in arguments.include]
    stored = json.loads(memory.TABLE.read_text())
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        compile_parts(core, include, folder)
        stored["tflm"]["cores"][core.name] = groups(core, library, folder)
        cases = list(networks())
        used = used_bytes(core, library, cases, folder)
    fitted = fit_records(core, cases, used)
    if core.name == "m4":
        stored["tflm"]["records"] = fitted
    if arguments.source:
        stored["tflm"]["source"] = arguments.source
    print(json.dumps(fitted))
    if arguments.store:
        sizes.store(stored)
        memory._table.cache_clear()
    worst = 0.0
    for network, size in zip(cases, used, strict=True):
        ram = memory.model_tflm(footprint.operations_of(network), footprint.outside(network), 0, core.name).ram
        off = (ram["activations and scratch"] + ram["records"]) / size - 1
        if ram["activations and scratch"] >= SMALL:
            worst = max(worst, abs(off))
    print(f"{core.name}: arena within {worst:.2%}, {len(cases)} models")


if __name__ == "__main__":
    main()
