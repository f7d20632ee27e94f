"""What a person reads of the zoo: an entry's card, and the table of all entries."""

from __future__ import annotations

import csv
import fnmatch
import io
import math

from saaug_keras import _validate, zoo
from saaug_keras._files import write_atomic
from saaug_keras.memory import CORES
from saaug_keras.recipes import Recipe

COUNTED = ("m0", "m3", "m4", "m55", "rv32")  # whose instructions are counted, as `zoo.multiplicative` names them


def card(entry) -> str:
    """An entry's card, as Markdown."""
    measured, recipe = entry.measured, entry.recipe
    spec = entry.spec()
    height, width, channels = spec.input_shape
    lines = [
        f"# {entry.name}",
        "",
        entry.title,
        "",
        entry.purpose.strip(),
        "",
        f"- Network: {recipe.backbone}, operator `{recipe.operator}`, {len(spec.blocks)} blocks, images {height}x{width}x"
        f"{channels}, {entry.classes} classes" + (f", strides {list_of(recipe.strides)}" if recipe.strides else "") + ".",
        f"- Training: {training_of(recipe)}",
        *(f"- It {verb} {named(name, first)}." for verb, name, first in trained_first(entry)),
        f"- Data: {entry.licence.strip()}",
        f"- Limits: {entry.limits.strip()}",
    ]
    if not measured:
        return "\n".join([*lines, "", f"Not trained yet: `saaug zoo train {entry.name}`.", ""])
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {label} | {value} |" for label, value in figures(measured)]
    for title, other in (("trained alone", entry.direct), ("its multiplicative twin", entry.twin)):
        if other in zoo.list() and (its := zoo.Entry.read(other).measured):
            lines.append(f"| int8, {title} | {percent(score(its, 'tflm'))} ({other}) |")
    return "\n".join([*lines, ""])


def figures(measured):
    """(label, text) of the measured figures, those of other units in groups."""
    for key, label in (("accuracy", "accuracy"), ("pixel_accuracy", "accuracy of pixels"), ("mean_iou", "mean IoU")):
        if f"float_{key}" in measured:
            yield f"{label}, float", percent(measured[f"float_{key}"])
            yield f"{label}, int8 on TFLite Micro", percent(measured[f"tflm_{key}"])
    for name, value in measured.get("tflm_class_ious", {}).items():
        yield f"IoU of {name}, int8", percent(value)
    yield "test images", f"{measured['test_images']:,}"
    yield "same class in both", percent(measured["agreement"])
    yield "parameters", f"{measured['parameters']:,}"
    for flavour in ("custom", "builtin"):
        if f"{flavour}_model_bytes" in measured:
            yield f"model file, {flavour} operators", f"{measured[f'{flavour}_model_bytes']:,} bytes"
            yield f"its activations on TFLite Micro, {flavour} operators", f"{measured[f'{flavour}_activation_bytes']:,} bytes"
    for part, label in (("flash", "flash"), ("ram", "RAM")):
        for core, size in measured.get(f"{part}_bytes_c", {}).items():
            yield f"{label} as plain C, {CORES[core].title}", f"{size:,} bytes"
    for core in COUNTED:
        if f"instructions_{core}" in measured:
            yield f"instructions per inference, {CORES[core].title}", f"{measured[f'instructions_{core}']:,}"
    for column, energy in measured.get("energy_mj", {}).items():
        yield f"energy, Eyeriss model, {column}", f"{energy:.4f} mJ"


def training_of(recipe) -> str:
    """How a recipe trains, in a sentence."""
    way = (
        "alone"
        if recipe.is_direct
        else (
            f"inside a larger multiplicative network (width {list_of(recipe.width)}, expand {list_of(recipe.expand)}"
            f"{f', block {list_of(recipe.drop_blocks)} for training alone' if recipe.drop_blocks else ''}"
            f"{', remap' if recipe.remap else ''}{', reorder' if recipe.reorder else ''}"
            f"{', which also is its teacher' if recipe.distill_weight else ''})"
        )
    )
    return (
        f"{way}, {recipe.epochs} epochs, batches of {recipe.batch_size}, {recipe.optimizer} at {recipe.learning_rate:g}, "
        f"seed {recipe.seed}{options_of(recipe.layer_options)}."
    )


def trained_first(entry):
    """(what an entry does with a network that was trained before, the entry that this is or None, its recipe)."""
    pairs = (("starts from the weights of", "start"), ("learns from the outputs of", "teacher"))
    return [(verb, getattr(entry, key), first) for verb, key in pairs if (first := getattr(entry.recipe, key))]


def named(name, recipe) -> str:
    """A network that was trained first, with its epochs."""
    recipe = Recipe.from_dict(recipe)
    what = f"`{name}`" if name else f"the network of {recipe.backbone} with operator `{recipe.operator}`"
    return f"{what}, trained for {recipe.epochs_in_all} epochs"


def options_of(layer_options) -> str:
    """Options of layers, to end a list with."""
    texts = (f"{key} {value}" for options in layer_options.values() for key, value in options.items())
    return "".join(f", {text}" for text in texts)


def readme() -> str:
    """What `zoo/README.md` holds."""
    return f"""# The zoo

{table()}

Written by `saaug zoo verify --write-table zoo/README.md`. Accuracy (of scenes with a class per pixel: mean IoU) on the
whole test set; int8 on TFLite Micro. Epochs: with those of the network whose weights an entry starts from, as its card says.
"direct" is the int8 accuracy of the same network trained alone for the same epochs, "twin" that of its multiplicative twin
after its own epochs. Flash and RAM: everything that a project of plain C takes of a
Cortex-M4, linked at -O3 with arm-none-eabi-gcc 12.2: constants, kernels and calls; activations, scratch, input and output.
Model: the file for TFLite Micro with packed weights, where the operators are ours. Instructions per inference with our
kernels.

## Beside products

{cores_table()}

Millions of instructions of one inference, and in parentheses how many times fewer than the multiplicative twin takes on the
best int8 kernels that are public:

{libraries()}

Ours, from the same compilers, are whole inferences of the exported C, which `benchmarks/inference.py` counts; the twin's, in
[multiplicative.toml](multiplicative.toml), are sums over its layers, with nothing around them. The first convolution of the
add networks multiplies, in plain C, as the additions of tensors do in all of ours.
"""


def cores_table() -> str:
    """The table of networks with and without products on every core, as Markdown."""
    lines = [f"| entry | {' | '.join(CORES[core].title for core in COUNTED)} |", f"|{'---|' * (1 + len(COUNTED))}"]
    for twin, by_core in zoo.multiplicative()["instructions"].items():
        products = {core: sum(by_core[core].values()) for core in COUNTED}
        for name in without_products(twin):
            measured = zoo.Entry.read(name).measured
            cells = [beside(measured.get(f"instructions_{core}"), products[core]) for core in COUNTED]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        lines.append(f"| `{twin}` | {' | '.join(f'{count / 1e6:.2f}' for count in products.values())} |")
    return "\n".join(lines)


def beside(count, products):
    """Instructions in millions, and how many times fewer than with products; "-" where they were not counted."""
    return f"{count / 1e6:.2f} ({products / count:.2f})" if count else "-"


def libraries() -> str:
    """The kernels that multiplicative twins were counted with, each once, as a list in Markdown."""
    kernels = zoo.multiplicative()["kernels"]
    return "\n".join(f"- {library}" for library in dict.fromkeys(kernels[core] for core in COUNTED))


def table() -> str:
    """The table of all entries, as Markdown."""
    lines = [
        "| entry | images | epochs | parameters | float | int8 | direct | twin | flash, bytes | RAM, bytes | "
        "model, bytes | M4 instructions | M0 instructions |",
        f"|{'---|' * 13}",
    ]
    for name in zoo.list():
        entry = zoo.Entry.read(name)
        measured = entry.measured
        if not measured:
            continue
        height, width, channels = entry.spec().input_shape
        sizes = row(name)
        cells = [
            f"`{name}`",
            f"{height}x{width}x{channels}",
            f"{measured['epochs']}",
            f"{measured['parameters']:,}",
            percent(score(measured, "float")),
            percent(score(measured, "tflm")),
            *(others(entry.direct)),
            *(others(entry.twin)),
            *(cell(key, sizes[key]) for key in ("flash_bytes", "ram_bytes", "model_bytes")),
            *(f"{measured[f'instructions_{core}']:,}" if f"instructions_{core}" in measured else "-" for core in ("m4", "m0")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def without_products(twin) -> tuple[str, ...]:
    """The entries whose multiplicative twin an entry is; of a network trained alone and inside, the one trained alone."""
    entries = (zoo.Entry.read(name) for name in zoo.list())
    return tuple(entry.name for entry in entries if entry.twin == twin and not entry.direct)


# Of `results` and `list`: each figure's heading; the largest of accuracies is the best, of all else the smallest.
COLUMNS = {
    "name": "entry",
    "dataset": "data set",
    "epochs": "epochs",
    "parameters": "parameters",
    "macs": "MACs",
    "float": "float",
    "int8": "int8",
    "flash_bytes": "flash, bytes",
    "ram_bytes": "RAM, bytes",
    "model_bytes": "model file, bytes",
    "activation_bytes": "activations, bytes",
    "instructions_m4": "M4 instructions",
    "instructions_m0": "M0 instructions",
}
_BEST_IS_LARGEST = ("float", "int8")


def row(name) -> dict:
    """The figures of an entry, by the keys of `COLUMNS`."""
    from saaug_keras import backbones

    entry = zoo.Entry.read(name)
    measured, flavour = entry.measured, "custom" if "custom_model_bytes" in entry.measured else "builtin"
    return {
        "name": name,
        "dataset": entry.dataset,
        "epochs": measured.get("epochs"),
        "parameters": measured.get("parameters"),
        "macs": backbones.count_macs(entry.spec()),
        "float": score(measured, "float"),
        "int8": score(measured, "tflm"),
        "flash_bytes": measured.get("flash_bytes_c", {}).get("m4"),
        "ram_bytes": measured.get("ram_bytes_c", {}).get("m4"),
        "model_bytes": measured.get(f"{flavour}_model_bytes"),
        "activation_bytes": measured.get(f"{flavour}_activation_bytes"),
        "instructions_m4": measured.get("instructions_m4"),
        "instructions_m0": measured.get("instructions_m0"),
    }


def listed(names, pattern, sort_by, limits, as_table):
    """What `zoo.list` gives; see there."""
    _validate.one_of("zoo.list", "sort_by", sort_by, tuple(COLUMNS))
    for key, limit in limits.items():
        if limit is not None:
            _validate.int_in("zoo.list", f"max_{key.removesuffix('_bytes')}", limit, 0, 1 << 40, " bytes")
    names = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    limits = {key: limit for key, limit in limits.items() if limit is not None}
    if not limits and sort_by == "name" and not as_table:
        return tuple(names)
    rows = [row(name) for name in sorted(names)]
    rows = [each for each in rows if all((each[key] or math.inf) <= limit for key, limit in limits.items())]
    sign = -1 if sort_by in _BEST_IS_LARGEST else 1
    if sort_by not in ("name", "dataset"):
        rows.sort(key=lambda each: (each[sort_by] is None, sign * (each[sort_by] or 0)))
    elif sort_by == "dataset":
        rows.sort(key=lambda each: each["dataset"])
    if not as_table:
        return tuple(each["name"] for each in rows)
    lines = [f"| {' | '.join(COLUMNS.values())} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cell(key, each[key]) for key in COLUMNS)} |" for each in rows]
    return "\n".join(lines)


def cell(key, value) -> str:
    """A figure of `COLUMNS` as a person reads it."""
    if value is None:
        return "-"
    if key in _BEST_IS_LARGEST:
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_csv(rows, file):
    """Rows of `zoo.results` as a CSV file with the keys of `COLUMNS` as its first line; "" for what is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, tuple(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    return write_atomic(file, text.getvalue())


def others(name):
    """The int8 score of another entry in a list of one, "-" where there is none."""
    measured = zoo.Entry.read(name).measured if name in zoo.list() else {}
    return [percent(score(measured, "tflm")) if measured else "-"]


def score(measured, part):
    """Mean IoU where it was measured, else accuracy; `part`: "float" or "tflm"."""
    return measured.get(f"{part}_mean_iou", measured.get(f"{part}_accuracy"))


def percent(fraction) -> str:
    """0.98765 -> "98.77 %"."""
    return f"{100 * fraction:.2f} %"


def list_of(values) -> str:
    """Numbers with commas."""
    return ", ".join(f"{value:g}" for value in values)
