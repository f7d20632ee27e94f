"""Bytes of flash that the kernels and the generated calls of plain C take on each core: `python benchmarks/sizes.py`.

Every kernel is linked alone; what several share is found in the linker's maps. The generated calls are fitted to networks
that are linked whole, and the model that `saaug_keras.memory` makes of both is compared with these networks.

    --cores m4,m0     some cores only
    --store           writes saaug_keras/_data/sizes.json, which the model reads
"""

import argparse
import collections
import json
import os
import pathlib
import re
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from saaug_keras import memory  # noqa: E402
from saaug_keras._files import write_atomic  # noqa: E402
from tflm_export import footprint, linking, native, records  # noqa: E402

RANDOM = 20  # networks
# A line of the linker's map: a section that was kept, its address, its size and its file. Long names have a line apart.
_KEPT = re.compile(r"^ (\.\S+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) (\S+)$", re.MULTILINE)


def functions():
    """Every function that generated code calls."""
    ours = [f"saaug_{name.lower()}_s8{end}" for name in records.CUSTOM for end in ("", "_get_buffer_size")]
    header = (native.PLAIN / "saaug_plain.h").read_text()
    plain = [name for name in re.findall(r"^\w+ (saaug_plain_\w+)\(", header, re.MULTILINE) if not name.endswith("argmax")]
    return [*ours, "saaug_check", "saaug_check_constants", *plain]


def kept_sections(text, *, ram=False):
    """{(section, file): bytes} of what a linker's map says is in an image; of sections without values only with `ram`."""
    text = re.sub(r"^ (\.\S+)\n\s+", r" \1 ", text.partition("Linker script and memory map")[2], flags=re.MULTILINE)
    wanted = r"\.(text|rodata|srodata|data|sdata|ARM\.ex" + (r"|bss|sbss)" if ram else ")")
    return {
        (section, place.rpartition("/")[2]): int(size, 16)
        for section, address, size, place in _KEPT.findall(text)
        if int(size, 16) and int(address, 16) and re.match(wanted, section)
    }


def groups(core, optimize):
    """[[bytes, functions that need them], ...]: a network takes each group of which it calls a function."""
    kept = {}
    for root in functions():
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "map"
            linking.link([], [root], core, optimize, more=[f"-Wl,-Map={file}"])
            kept[root] = kept_sections(file.read_text())
    return grouped(kept)


def grouped(kept):
    """Groups of {root: {section: bytes}}."""
    users, sizes = collections.defaultdict(set), {}
    for root, sections in kept.items():
        for section, size in sections.items():
            users[section].add(root)
            sizes[section] = max(size, sizes.get(section, 0))
    total = collections.Counter()
    for section, roots in users.items():
        total[tuple(sorted(roots))] += sizes[section]
    return sorted([[size, list(roots)] for roots, size in total.items()], key=lambda group: (-group[0], group[1]))


def networks():
    """Yields (name, network, its C files): random ones, and the zoo's."""
    import random_networks

    import tflm_export
    from saaug_keras import zoo
    from tflm_export import firmware

    def made(name, model, images, **options):
        network = tflm_export.compile_network(model, images, flavour="custom", **options)
        return name, network, firmware.c_files(network, "net")[1]

    for number in range(RANDOM):
        yield made(f"random {number}", *random_networks.settled_model(random_networks.random_network(number)))
    for name in zoo.list():
        entry = zoo.Entry.read(name)
        blank = np.zeros((1, *entry.spec().input_shape), np.uint8)
        yield made(name, zoo.load(name), blank, observation=entry.observation())


def glue(cases, linked, table):
    """{"run": factors of `memory.glue_counts`, "check": ...}: fitted to what the kernels leave of linked networks."""
    counts, left = [], {"run": [], "check": []}
    for (_, network, _), found in zip(cases, linked, strict=True):
        calls = [(each.function, each.calls, each.constants > 0) for each in footprint.operations_of(network)]
        counts.append(memory.glue_counts(calls))
        for part, size in zip(left, memory.kernel_bytes(calls, table["groups"]), strict=True):
            left[part].append(found.flash["code" if part == "run" else "check"] - size)
    return {part: [round(float(x), 2) for x in np.linalg.lstsq(counts, each)[0]] for part, each in left.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default=",".join(memory.CORES))
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    cases = list(networks())
    stored = json.loads(memory.TABLE.read_text())
    for core in arguments.cores.split(","):
        for optimize in memory.OPTIMIZATIONS:
            table = {"groups": groups(core, optimize)}
            linked = [footprint.measure_c(network, sources, "net", core, optimize) for _, network, sources in cases]
            table |= glue(cases, linked, table)
            stored["cores"].setdefault(core, {})[optimize] = table
            print(f"{core} {optimize}: {compare(cases, linked, table)}", flush=True)
    if arguments.store:
        store(stored)


def store(tables):
    """Writes the tables, a core a line."""
    rest = {key: value for key, value in tables["tflm"].items() if key != "cores"}
    kernels, tflm = (
        ",\n".join(f'"{core}": {json.dumps(table)}' for core, table in sorted(cores.items()))
        for cores in (tables["cores"], tables["tflm"]["cores"])
    )
    text = f'{{"cores": {{\n{kernels}\n}},\n"tflm": {json.dumps(rest)[:-1]}, "cores": {{\n{tflm}\n}}}}}}\n'
    write_atomic(memory.TABLE, text)


def compare(cases, linked, table):
    """How far the model is from what was linked, in words."""
    worst = 0.0, ""
    for (name, network, _), found in zip(cases, linked, strict=True):
        modelled = footprint.model_c(network, found.core, found.optimize, table=table)
        off = abs(modelled.flash_bytes / found.flash_bytes - 1)
        worst = max(worst, (off, f"{name}: {modelled.flash_bytes:,} modelled, {found.flash_bytes:,} linked"))
        assert modelled.ram_bytes == found.ram_bytes, (name, modelled, found)
    return f"flash within {worst[0]:.2%} ({worst[1]}), RAM exact, {len(cases)} networks"


if __name__ == "__main__":
    main()
