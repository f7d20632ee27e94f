"""Instructions of our kernels in whole networks of the zoo, beside their multiplicative twins on the best public kernels.

Every layer of the networks that zoo/multiplicative.toml has a twin of, with its own weights on one bundled image, counted
as `kernels.py` counts chosen layers, its output compared with the exporter's. Summed by kind of layer:

    python benchmarks/networks.py             the table of tflm_export/kernels/README.md, from what was stored
    --store                                   counts anew into kernels/networks.json
    --cores m0,m3                             some cores only
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import kernels  # noqa: E402

from tflm_export import emulator  # noqa: E402

STORED = kernels.HERE / "networks.json"
KINDS = {"stem": "stem", "pointwise": "1x1", "depthwise": "depthwise", "classifier": "classifier"}
CORES = ("m0", "m3", "m4", "m55", "rv32", "rv32-no-m")
OPERATORS = {"shift": "SHIFT", "adder": "ADDER"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a network that our kernels compute, as `kernel_cases.write_cases` takes it."""

    op: str
    kernel: tuple
    kind: str
    macs: int
    option_values: tuple
    shape_values: tuple
    packed: np.ndarray
    params: np.ndarray
    input: np.ndarray
    output: np.ndarray

    def options(self):
        return self.option_values

    def shape(self):
        return self.shape_values

    def weights(self):
        return self.packed

    def expected(self):
        return self.output


def kind_of(step):
    """The key of KINDS."""
    if step.op.kind != "conv":
        return {"depthwise": "depthwise", "dense": "classifier"}[step.op.kind]
    return "pointwise" if step.op.kernel_size == (1, 1) else "stem"


def layers_of(name):
    """The layers of an entry that its operator's kernels compute: of an add network, those that add."""
    import kernel_cases

    import tflm_export
    from saaug_keras import datasets, zoo
    from tflm_export import firmware, flatbuffer, reference

    entry = zoo.Entry.read(name)
    images = datasets.resize(zoo.samples(name).x_test[:1], entry.spec().input_shape[:2])
    network = tflm_export.compile_network(zoo.load(name), images, flavour="custom", observation=entry.observation())
    values = reference.run(network, firmware.Samples.of(network, images).images)
    layers = []
    for step in network.steps:
        packed = flatbuffer.custom_layer(step) if flatbuffer.is_ours(step) else None
        if packed is None or not packed.name.startswith(OPERATORS[operator_of(name)]):
            continue
        record, shapes = packed.record, [(1, 1, *t.shape)[-3:] for t in (step.inputs[0], step.output)]
        options = [getattr(record, key) for key, _ in firmware._Options._fields_[1:]]
        layers.append(
            Layer(
                op=packed.name.lower(),
                kernel=step.op.kernel_size,
                kind=kind_of(step),
                macs=int(step.constants.weights.size * np.prod(shapes[1][:2])),
                option_values=(kernel_cases.OPS[packed.name.lower()], *options),
                shape_values=(1, *shapes[0], *shapes[1]),
                packed=packed.weights,
                params=packed.params,
                input=values[step.inputs[0].name],
                output=values[step.output.name],
            )
        )
    return layers


def operator_of(name):
    """The key of OPERATORS whose kernels an entry is there for."""
    return next(operator for operator in OPERATORS if f"-{operator}-" in name)


def by_kind(layers, figures):
    """{kind: sum of the figures of its layers}."""
    return {
        kind: sum(f for a, f in zip(layers, figures, strict=True) if a.kind == kind) for kind in {a.kind: 0 for a in layers}
    }


def count(core, layers, directory):
    """{kind: instructions} of an entry's layers on a core."""
    counts = kernels.count(core, kernels.image_of(core, directory, "ours"), "ours", layers, directory)
    return by_kind(layers, [counted.instructions for counted in counts])


def pairs_of(twins):
    """(twin, entry without products) of every such entry; one whose twin has other strides names none, so is in no pair."""
    from saaug_keras.zoo import cards

    return [(twin, name) for twin in twins for name in cards.without_products(twin)]


def store(cores):
    """Counts anew into STORED."""
    from saaug_keras import zoo

    stored = json.loads(STORED.read_text()) if STORED.exists() else {"compilers": {}, "macs": {}, "instructions": {}}
    layers = {name: layers_of(name) for _, name in pairs_of(zoo.multiplicative()["instructions"])}
    stored["instructions"] = {name: counts for name, counts in stored["instructions"].items() if name in layers}
    stored["macs"] = {name: by_kind(its, [layer.macs for layer in its]) for name, its in layers.items()}
    with tempfile.TemporaryDirectory() as directory:
        for name in cores:
            core = emulator.CORES[name]
            if reason := emulator.missing(core):
                sys.exit(f"{name}: {reason}")
            stored["compilers"][name] = f"{core.compiler} {kernels.compiler_version(core)}"
            for entry, its in layers.items():
                stored["instructions"].setdefault(entry, {})[name] = count(core, its, directory)
    STORED.write_text(json.dumps(stored, indent=1) + "\n")


def table(cores=CORES):
    """Instructions per multiply-accumulate, summed over the networks, as Markdown."""
    from saaug_keras import zoo

    stored, twins = json.loads(STORED.read_text()), zoo.multiplicative()["instructions"]
    pairs = [(twins[twin], name) for twin, name in pairs_of(twins)]
    lines = [
        "| core | layers | shift | products | times fewer | add | products | times fewer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for core in cores:
        for kind, label in KINDS.items():
            cells = [part for operator in OPERATORS for part in compared(stored, pairs, operator, core, kind)]
            lines.append(f"| {core} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(stored, pairs, operator, core, kind):
    """Cells: instructions per MAC of our operator and of products in the same networks, and their ratio."""
    ours, theirs, macs = 0, 0, 0
    for products, name in pairs:
        if operator_of(name) == operator and kind in stored["macs"][name]:
            macs += stored["macs"][name][kind]
            ours += stored["instructions"][name][core][kind]
            theirs += products[core][kind]
    return [f"{ours / macs:.2f}", f"{theirs / macs:.2f}", f"{theirs / ours:.2f}"] if macs else ["", "", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default=",".join(CORES), help="comma-separated; default: all that the twins were counted on")
    parser.add_argument("--store", action="store_true", help="count anew")
    arguments = parser.parse_args()
    names = arguments.cores.split(",")
    if unknown := sorted(set(names) - set(CORES)):
        parser.error(f"--cores must be of {', '.join(CORES)}. Received: {', '.join(unknown)}.")
    if arguments.store:
        store(names)
    print(table(names))


if __name__ == "__main__":
    main()
