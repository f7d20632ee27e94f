"""Making and checking entries of the zoo: training by the entry's recipe, export, and every measured figure."""

from __future__ import annotations

import json
import pathlib
import tempfile

import numpy as np

from saaug_keras import cost, zoo
from saaug_keras._files import atomic_folder, write_atomic
from saaug_keras.zoo import weights

CALIBRATION = 256  # training images that set the ranges which training did not
TOLERANCE = {"float_accuracy": 2e-3, "tflm_accuracy": 0.0, "agreement": 2e-3}  # float sums differ between machines


def train(name: str, out, *, data_dir=None, callbacks=(), resume: bool = True) -> dict:
    """Trains an entry by its recipe and puts weights, models and figures into the entry's folder.

    Args:
        name: of the entry.
        out: folder of the run, for its checkpoints; a killed run goes on there.
        data_dir: as `datasets.load`.
        callbacks, resume: as `recipes.train`.
    Returns:
        The measured figures.
    """
    import keras

    from saaug_keras import datasets, layers, recipes  # noqa: F401  the layers are registered for load_model

    entry = zoo.Entry.read(name)
    data = datasets.load(entry.dataset, data_dir=data_dir)
    result = recipes.train(entry.recipe, data, out, callbacks=callbacks, resume=resume)
    model = keras.models.load_model(pathlib.Path(out) / "target.keras", compile=False)
    weights.deploy(model)
    with tempfile.TemporaryDirectory() as directory:
        aside = pathlib.Path(directory)
        weights.write(model, aside / "weights.npz")
        history = json.loads((pathlib.Path(out) / "history.json").read_text())
        (aside / "history.json").write_text(json.dumps(history, indent=1) + "\n")
        measured = write_models(entry, model, data, aside)
        measured |= {"val_accuracy": score_of(result, "val"), "epochs": result["epochs"],
                     "train_seconds": round(result["train_seconds"])}  # fmt: skip
        files = {path.name: zoo.sha256(path) for path in sorted(aside.iterdir())}
        with atomic_folder(entry.folder) as folder:
            for path in aside.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            (folder / "measured.toml").write_text(toml_of(files, measured))
    return measured


def score_of(result, part):
    """Validation accuracy, or mean IoU, of a run."""
    return round(result.get(f"{part}_accuracy", result.get(f"{part}_mean_iou", result.get("mean_iou", 0.0))), 6)


def write_models(entry, model, data, folder) -> dict:
    """Writes the flatbuffers of both flavours, where both exist, and measures them on the whole test set."""
    import tflm_export
    from saaug_keras import datasets

    size = entry.spec().input_shape[:2]
    shown = datasets.resize(calibration_images(data), size)
    test = datasets.resize(data.x_test, size), data.y_test
    measured = {}
    for flavour in flavours_of(entry):
        with tempfile.TemporaryDirectory() as directory:
            report = tflm_export.export(model, shown, directory, flavour=flavour, name=flavour, evaluation_data=test)
            (folder / f"{flavour}.tflite").write_bytes((pathlib.Path(directory) / f"{flavour}.tflite").read_bytes())
        measured |= {
            "float_accuracy": round(report.float_accuracy, 6), "tflm_accuracy": round(report.tflm_accuracy, 6),
            "agreement": round(report.agreement, 6), "test_images": report.images, "parameters": report.parameters,
            f"{flavour}_flash_bytes": report.flash_bytes, f"{flavour}_arena_bytes": report.arena_bytes,
        }  # fmt: skip
    columns = cost.compare(entry.spec())
    measured["energy_mj"] = {column: round(each.energy_mj, 6) for column, each in columns.items()}
    return measured


def flavours_of(entry) -> tuple[str, ...]:
    """Custom where something of ours is in the network; built-in where every layer has an int8 multiplication."""
    from saaug_keras import backbones

    operators = {layer.operator for layer in backbones.lower(entry.spec())} - {"none"}
    kinds = {backbones.operator_kind(operator) for operator in operators}
    wide = any(backbones.operator_options(operator).get("weight_bits", 4) > 4 for operator in operators)
    return (("custom",) if kinds != {"conv"} else ()) + (() if "adder" in kinds or wide else ("builtin",))


def calibration_images(data):
    """The training images, always the same, that an export is calibrated with."""
    chosen = np.random.default_rng(0).permutation(len(data.x_train))[:CALIBRATION]
    return data.x_train[np.sort(chosen)]


def verify(name: str, *, data_dir=None) -> list[tuple[str, object, object, bool]]:
    """Recomputes what is measured of an entry from its weights.

    Returns:
        (figure, recorded, found, whether they agree) of hashes, model files and figures. Figures that need what is not
        here, an emulator say, are left out.
    """
    from saaug_keras import datasets

    entry = zoo.Entry.read(name)
    rows = []
    for file, digest in entry.files.items():
        path = entry.folder / file
        found = zoo.sha256(path) if path.is_file() else "missing"
        rows.append((f"sha256 of {file}", digest[:12], found[:12], found == digest))
    model = zoo.load(name)
    data = datasets.load(entry.dataset, data_dir=data_dir)
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        measured = write_models(entry, model, data, folder)
        for path in sorted(folder.iterdir()):
            found = zoo.sha256(path)
            rows.append((f"{path.name}, exported anew", entry.files[path.name][:12], found[:12],
                         found == entry.files[path.name]))  # fmt: skip
    for key, found in measured.items():
        recorded = entry.measured.get(key)
        if isinstance(found, float):
            agrees = recorded is not None and abs(found - recorded) <= TOLERANCE.get(key, 0.0)
        else:
            agrees = found == recorded
        rows.append((key, recorded, found, agrees))
    return rows


def toml_of(files, measured) -> str:
    """The text of measured.toml."""
    plain = {key: value for key, value in measured.items() if not isinstance(value, dict)}
    lines = [f"version = {zoo.FORMAT}", "", "[files]"]
    lines += [f'"{file}" = "{digest}"' for file, digest in files.items()]
    lines += ["", "[measured]", *(f"{key} = {json.dumps(value)}" for key, value in plain.items())]
    for key, value in measured.items():
        if isinstance(value, dict):
            lines += ["", f"[measured.{key}]", *(f'"{name}" = {json.dumps(number)}' for name, number in value.items())]
    return "\n".join(lines) + "\n"


def record_instructions(name: str, counts: dict):
    """Adds instructions per inference {core: count} to an entry's measured figures."""
    entry = zoo.Entry.read(name)
    measured = {**entry.measured, **{f"instructions_{core}": count for core, count in counts.items()}}
    write_atomic(entry.folder / "measured.toml", toml_of(entry.files, measured))
