"""Making and checking entries of the zoo: training by the entry's recipe, export, and every measured figure."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import tempfile

import numpy as np

from saaug_keras import _budget, _errors, cost, zoo
from saaug_keras._files import atomic_folder, write_atomic
from saaug_keras.study import charts
from saaug_keras.zoo import weights

CALIBRATION = 256  # training images that set the ranges which training did not
MAY_DIFFER = ("float_", "agreement")  # by a few images: float sums differ between machines


def train(name: str, out, *, data_dir=None, callbacks=(), resume: bool = True, until: float | None = None) -> dict:
    """Trains an entry by its recipe and puts weights, models and figures into the entry's folder.

    What its recipe names as `start` or `teacher` is the entry of that recipe, where that is trained; else it is trained first.

    Args:
        name: of the entry.
        out: folder of the run, for its checkpoints; a killed run goes on there.
        data_dir: as `datasets.load`.
        callbacks, resume, until: as `recipes.train`.
    Returns:
        The measured figures.
    Raises:
        ValueError: the run failed, or a weight or figure is not finite; the entry is as it was.
    """
    import keras

    import tflm_export
    from saaug_keras import callbacks as checks
    from saaug_keras import datasets, layers, recipes  # noqa: F401  the layers are registered for load_model

    entry = zoo.Entry.read(name)
    data = datasets.load(entry.dataset, data_dir=data_dir)

    def first(recipe):
        found = _trained(recipe, entry.dataset)
        return recipes.network_of(recipe, data, out, until=until) if found is None else zoo.load(found)

    result = recipes.train(entry.recipe, data, out, callbacks=callbacks, resume=resume, until=until, first=first)
    model = keras.models.load_model(pathlib.Path(out) / "target.keras", compile=False)
    weights.deploy(model)
    if broken := checks.first_not_finite(model):
        raise ValueError(f"zoo: the weights of {name} must be finite; {broken} is not. Train it by another recipe.")
    with tempfile.TemporaryDirectory() as directory:
        aside = pathlib.Path(directory)
        weights.write(model, aside / "weights.npz")
        images = datasets.resize(calibration_images(data), entry.spec().input_shape[:2])
        weights.write_observation(tflm_export.observe(model, images), aside / "calibration.npz")
        history = json.loads((pathlib.Path(out) / "history.json").read_text())
        (aside / "history.json").write_text(json.dumps(history, indent=1) + "\n")
        if charts.can_plot():
            draw_curves(history, aside / "curves.png")
        measured = write_models(entry, model, weights.read_observation(aside / "calibration.npz"), aside)
        measured |= evaluate(entry, model, data, aside)
        metric = "mean_iou" if data.y_train.ndim == 3 else "accuracy"
        measured |= {
            f"val_{metric}": round(result[f"val_{metric}"], 6),
            "epochs": entry.recipe.epochs_in_all,
            "train_seconds": round(result["train_seconds"]),
        }
        figures = [value for value in measured.values() if isinstance(value, float)]
        if not np.isfinite(figures).all():
            raise ValueError(f"zoo: all figures of {name} must be finite. Received: {measured}.")
        files = {path.name: zoo.sha256(path) for path in sorted(aside.iterdir())}
        with atomic_folder(entry.folder) as folder:
            for path in aside.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            (folder / "measured.toml").write_text(toml_of(files, measured))
    return measured


def _trained(recipe, dataset):
    """The name of a trained entry of a recipe, None where there is none."""
    entries = (zoo.Entry.read(name) for name in zoo.list())
    same = (each.name for each in entries if each.dataset == dataset and each.recipe == recipe and each.files)
    return next(same, None)


def train_all(names, folder, *, jobs: int = 1, data_dir=None, until: float | None = None, prepare=None, say=print) -> dict:
    """`train` of several entries, `jobs` at a time, each in a process of its own: those that have begun first.

    Args:
        names: the entries, the most wanted first.
        folder: gets a folder a run, of the entry's name.
        data_dir, until: as `train`.
        prepare: called first in every process.
        say: called with a line per entry that ends.
    Returns:
        {name: measured figures, or None where the time was over}.
    Raises:
        ValueError: an unknown entry; whatever made training fail, after the others have ended.
    """
    folder = pathlib.Path(folder)
    for name in names:
        zoo.Entry.read(name)
    names = sorted(names, key=lambda name: not (folder / name / "history.json").exists())
    _budget.share_cores(jobs)
    done, failed = {}, None
    with concurrent.futures.ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_prepare_apart, initargs=(os.getpid(), prepare)
    ) as pool:
        waiting = {pool.submit(_train_apart, name, folder, data_dir, until): name for name in names}
        for future in concurrent.futures.as_completed(waiting):
            name = waiting[future]
            try:
                done[name] = future.result()
            except _errors.foreseen() as error:
                failed = error
                say(f"{name}: failed: {_errors.one_line(error)}")
                continue
            say(f"{name}: {'the time was over' if done[name] is None else 'finished'}; {len(names) - len(done)} left")
    if failed is not None:
        raise failed
    return done


def _prepare_apart(parent, prepare):
    _budget.end_with(parent)
    if prepare is not None:
        prepare()


def _train_apart(name, folder, data_dir, until):
    try:
        return train(name, folder / name, data_dir=data_dir, until=until)
    except _budget.OutOfTime:
        return None


def draw_curves(history, file):
    """Writes the learning curves of a run as a PNG: its metric on training and validation images, by epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    metric = "mean_iou" if "mean_iou" in history[0] else "accuracy"
    for key, label, colour in ((metric, "training", "#6b7280"), (f"val_{metric}", "validation", "#0072b2")):
        points = [(row["epoch"], 100 * row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.6, marker="o", markersize=2.5)
    axes.set(xlabel="epoch", ylabel=f"{metric.replace('_', ' ')}, %")
    axes.grid(color="#e8ebf0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=100)


def write_models(entry, model, observation, folder) -> dict:
    """Writes the flatbuffers of both flavours, where both exist, and measures their size; needs no images."""
    import tflm_export

    blank = np.zeros((1, *entry.spec().input_shape), np.uint8)
    measured = {}
    for flavour in flavours_of(entry):
        with tempfile.TemporaryDirectory() as directory:
            report = tflm_export.export(model, blank, directory, flavour=flavour, name=flavour, observation=observation)
            (folder / f"{flavour}.tflite").write_bytes((pathlib.Path(directory) / f"{flavour}.tflite").read_bytes())
        measured |= {
            "parameters": report.parameters,
            f"{flavour}_model_bytes": report.model_bytes,
            f"{flavour}_activation_bytes": report.activation_bytes,
        }
    columns = cost.compare(entry.spec(), layer_options=entry.recipe.layer_options)
    measured["energy_mj"] = {column: round(each.energy_mj, 6) for column, each in columns.items()}
    return measured


@contextlib.contextmanager
def model_files(entry, model):
    """A folder that holds the entry's models for TFLite Micro.

    It is the entry's own; or, since a package comes without most of them, one to which they are exported anew.

    Raises:
        ValueError: a file whose SHA-256 is not the recorded one.
    """
    names = [f"{flavour}.tflite" for flavour in flavours_of(entry)]
    if all((entry.folder / name).is_file() for name in names):
        for name in names:
            entry.file(name)
        yield entry.folder
        return
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        write_models(entry, model, entry.observation(), folder)
        for name in names:
            if (digest := zoo.sha256(folder / name)) != entry.files[name]:
                raise ValueError(
                    f"zoo: {entry.name}, exported anew, must be the {name} of SHA-256 {entry.files[name]}. Received: {digest}."
                )
        yield folder


def evaluate(entry, model, data, folder, *, limit=None, classify=None) -> dict:
    """How right the Keras model and the models for TFLite Micro in a folder are on the test images.

    Args:
        entry, model, folder: the entry, its network, where its .tflite files are.
        data: `datasets.Dataset`.
        limit: only the first so many images.
        classify: function of (interpreter, images) that gives classes, with progress say.
    Returns:
        {"float_<metric>", "tflm_<metric>", "agreement", "test_images"}; metrics as `Dataset.score`. Of labels per pixel
        also "tflm_class_ious", by class.
    Raises:
        RuntimeError: the two flavours disagree.
    """
    import tflm_export
    from saaug_keras import datasets

    size = entry.spec().input_shape[:2]
    images, labels = datasets.resize(data.x_test[:limit], size), data.y_test[:limit]
    if labels.ndim == 3:
        labels = datasets.resize_labels(labels, size)
    expected = model.predict(datasets.pipeline(images, batch_size=64), verbose=0).argmax(axis=-1)
    found = {}
    for flavour in flavours_of(entry):
        interpreter = tflm_export.Interpreter(folder / f"{flavour}.tflite")
        found[flavour] = classify(interpreter, images) if classify else interpreter.classify(images)
    first, *others = found.values()
    if any((classes != first).any() for classes in others):
        raise RuntimeError(f"zoo: the flavours of {entry.name} must give the same classes; they differ.")
    known = labels != data.ignore_class if labels.ndim == 3 else slice(None)
    result = {f"float_{key}": round(value, 6) for key, value in data.score(expected, labels).items()}
    result |= {f"tflm_{key}": round(value, 6) for key, value in data.score(first, labels).items()}
    if labels.ndim == 3:
        result["tflm_class_ious"] = {key: round(value, 6) for key, value in data.class_ious(first, labels).items()}
    agreement = round(float((first == expected)[known].mean()), 6)
    return result | {"agreement": agreement, "test_images": len(images)}


def flavours_of(entry) -> tuple[str, ...]:
    """Custom where something of ours is in the network; built-in where every layer has an int8 multiplication."""
    from saaug_keras import backbones

    found = [backbones.operator_of(layer, entry.recipe.layer_options) for layer in backbones.lower(entry.spec())]
    found = [operator for operator in found if operator is not None]
    ours, whole = not all(operator.is_builtin for operator in found), all(operator.fits_int8 for operator in found)
    return ("custom",) * ours + ("builtin",) * whole


def calibration_images(data):
    """The training images, always the same, that an export is calibrated with."""
    chosen = np.random.default_rng(0).permutation(len(data.x_train))[:CALIBRATION]
    return data.x_train[np.sort(chosen)]


def verify(name: str, *, data_dir=None) -> list[tuple[str, object, object, bool | None]]:
    """Recomputes what is measured of an entry from its weights.

    Returns:
        (figure, recorded, found, whether they agree) of hashes, model files and figures. What this machine cannot
        compute, for want of the data set or of an emulator, was found to be None and agrees with None.
    """
    from saaug_keras import datasets

    entry = zoo.Entry.read(name)
    rows = []
    for file, digest in entry.files.items():
        path = entry.folder / file
        if path.suffix == ".tflite" and not path.is_file():
            continue  # left out of the package; below it is exported anew
        found = zoo.sha256(path) if path.is_file() else "missing"
        rows.append((f"sha256 of {file}", digest[:12], found[:12], found == digest))
    model = zoo.load(name)
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        measured = write_models(entry, model, entry.observation(), folder)
        for path in sorted(folder.iterdir()):
            found = zoo.sha256(path)
            rows.append(
                (f"{path.name}, exported anew", entry.files[path.name][:12], found[:12], found == entry.files[path.name])
            )
        try:
            measured |= evaluate(entry, model, datasets.load(entry.dataset, data_dir=data_dir), folder)
        except FileNotFoundError:
            if data_dir is not None:
                raise
    for key, recorded in entry.measured.items():
        found = measured.get(key)
        if found is None:
            agrees = None
        elif isinstance(found, float):
            agrees = abs(found - recorded) <= (2e-3 if key.startswith(MAY_DIFFER) else 0.0)
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
    _record(name, {f"instructions_{core}": count for core, count in counts.items()})


def memory_of(entry, cores) -> dict:
    """{core: `memory.Memory` as a project of plain C takes it} of a trained entry of which something is ours."""
    import tflm_export
    from tflm_export import firmware, footprint

    blank = np.zeros((1, *entry.spec().input_shape), np.uint8)
    options = {"flavour": "custom", "observation": entry.observation()}
    network = tflm_export.compile_network(zoo.load(entry.name), blank, **options)
    _, files = firmware.c_files(network, "net")
    return {core: footprint.measure_c(network, files, "net", core) for core in cores}


def record_memory(name: str, found: dict):
    """Adds flash and RAM of plain C, {core: linked `memory.Memory`}, to an entry's measured figures."""
    parts = ("flash", "ram")
    _record(name, {f"{part}_bytes_c": {core: getattr(each, f"{part}_bytes") for core, each in found.items()} for part in parts})


def _record(name, more):
    entry = zoo.Entry.read(name)
    write_atomic(entry.folder / "measured.toml", toml_of(entry.files, {**entry.measured, **more}))
