"""The export itself: lower, calibrate, quantize, write, measure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np

from saaug_keras import _validate, memory
from saaug_keras._files import atomic_folder
from tflm_export import ends, firmware, flatbuffer, footprint, plan, quantize, reference, runner
from tflm_export import graph as ir
from tflm_export.packaging import LAYOUTS, check_packaging
from tflm_export.power_of_two import requantize_by_shifts
from tflm_export.report import Report, count_operations

_OWNER = "tflm_export.export"
FLAVOURS = ("builtin", "custom")
TARGETS = ("tflite", "tflm", "c")
REQUANTIZATIONS = ("power-of-two", "q31")
# Images that are taken of what can only be iterated over, which may have no end.
MOST_REPRESENTATIVE = 4096
MOST_EVALUATED = 100_000
REPORT = "report.json"


def observe(model, representative_data, *, input_range=None) -> quantize.Observation:
    """What export needs to know of representative images: kept, it gives the same export again without them.

    Args: as `export`.
    """
    graph = ir.lower(model)
    return quantize.observe(graph, _images(as_array(representative_data)[0], graph.shapes[graph.input], input_range))


def compile_network(model, representative_data, *, flavour="builtin", requantization="q31", input_range=None, observation=None):
    """Keras model -> integer `quantize.Network`, without writing anything.

    Args: as `export`.
    """
    _validate.one_of(_OWNER, "flavour", flavour, FLAVOURS)
    _validate.one_of(_OWNER, "requantization", requantization, REQUANTIZATIONS)
    power_of_two = requantization == "power-of-two"
    if power_of_two and flavour != "custom":
        raise ValueError(
            f"{_OWNER}: `requantization` 'power-of-two' needs our kernels, flavour='custom'. Received: flavour={flavour!r}."
        )
    graph = ir.lower(model)
    for op in graph.ops:
        if op.weights is not None:
            op.weights.operator.check_flavour(op, flavour)
    data, notes = as_array(representative_data)
    images = _images(data, graph.shapes[graph.input], input_range)
    if observation is None:
        observation = quantize.observe(graph, images)
        notes += _spread_notes(images, input_range, graph, observation)
    else:
        quantize.check_observation(observation, graph)
    tensors = quantize.choose_tensors(graph, observation, input_range, power_of_two=power_of_two)
    network = quantize.quantize(graph, tensors, observation, flavour=flavour)
    network = dataclasses.replace(network, notes=(*notes, *network.notes))
    return requantize_by_shifts(network, graph, images) if power_of_two else network


def as_array(data):
    """An array, tf.data.Dataset or iterable of batches (or of (images, ...) tuples) as (one array, notes).

    What can only be iterated over may never end: it is cut after `MOST_REPRESENTATIVE` images, and a note says so.
    """
    if hasattr(data, "shape") or not (hasattr(data, "__iter__") or hasattr(data, "num_batches")):
        return np.asarray(data), ()
    batches, count, cut = [], 0, False
    for batch in _iterate(data):
        if cut := count >= MOST_REPRESENTATIVE:
            break
        batches.append(np.asarray(_only(batch[0] if isinstance(batch, (tuple, list)) else batch)))
        count += len(batches[-1]) if batches[-1].ndim else 0
    if len({(batch.shape[1:], batch.ndim) for batch in batches}) > 1:
        shapes = ", ".join(sorted({str(batch.shape) for batch in batches}))
        raise ValueError(
            f"{_OWNER}: `representative_data` must be images, or batches of images of one shape. Received: {shapes}."
        )
    array = np.concatenate(batches) if batches and batches[0].ndim else np.zeros(0, "float32")
    if not cut and count <= MOST_REPRESENTATIVE:
        return array, ()
    return array[:MOST_REPRESENTATIVE], (f"representative data: only the first {MOST_REPRESENTATIVE:,} images were used.",)


def _iterate(data):
    """The batches of a data set of TensorFlow, Keras or Torch, or of an iterable, in NumPy."""
    if hasattr(data, "as_numpy_iterator"):
        return data.as_numpy_iterator()
    if hasattr(data, "num_batches"):  # of a keras PyDataset, which the iteration protocol never ends
        return (data[index] for index in range(data.num_batches)) if data.num_batches is not None else iter(data)
    return iter(data)


def _only(value):
    """The one image tensor of a batch, which Keras also takes by its input's name."""
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value


def _images(images, shape, input_range):
    """Representative images as float32 (N, H, W, C), checked."""
    if images.ndim != len(shape) + 1 or images.shape[1:] != tuple(shape) or len(images) == 0:
        raise ValueError(
            f"{_OWNER}: `representative_data` must be images (N, {', '.join(map(str, shape))}), at least one. "
            f"Received: shape {images.shape}."
        )
    images = ends.to_float(images, input_range, owner=_OWNER, name="representative_data")
    low, high = ends.UNIT if input_range is None else input_range
    if not (np.isfinite(images).all() and images.min() >= low - 1e-3 and images.max() <= high + 1e-3):
        raise ValueError(
            f"{_OWNER}: `representative_data` must lie in [{low:g}, {high:g}]; other inputs need "
            f"`input_range=(low, high)`. Received: values in [{images.min():g}, {images.max():g}]."
        )
    return images


def _spread_notes(images, input_range, graph, observation):
    """Notes where the representative data vary so little that ranges taken from them mean nothing."""
    low, high = ends.UNIT if input_range is None else input_range
    least, most = float(images.min()), float(images.max())
    advice = "Ranges of tensors come from these images: give a few hundred that look like those of the field."
    if least == most:
        return (f"representative data show no spread: every value is {least:g}. {advice}",)
    if len(images) > 1 and (images == images[0]).all():
        return (f"representative data show no spread: all {len(images):,} images are the same. {advice}",)
    notes = ()
    if most - least < (high - low) / 16:
        notes = (
            f"representative data show little spread: values lie in [{least:g}, {most:g}], of an input range "
            f"[{low:g}, {high:g}]. {advice}",
        )
    still = [op.name for op in graph.ops if op.weights is not None and _is_still(observation.channels[op.name])]
    if still:
        shown = ", ".join(f"'{name}'" for name in still[:5]) + (f" and {len(still) - 5} more" if len(still) > 5 else "")
        notes += (f"no output of layer {shown} varies on the representative data: exported as constants.",)
    return notes


def _is_still(channels):
    return bool((channels[0] == channels[1]).all())


def export(
    model,
    representative_data,
    out_dir,
    *,
    flavour=None,
    target="tflite",
    requantization="q31",
    evaluation_data=None,
    input_range=None,
    sram_bytes=None,
    flash_bytes=None,
    name=None,
    samples=4,
    observation=None,
    packaging=None,
    core="m4",
) -> Report:
    """Writes a Keras model as an int8 model for TFLite Micro, and measures it.

    Args:
        model: functional keras.Model, one image in, one output; of an AugmentedModel, its export_target().
        representative_data: images as training saw them, (N, H, W, C): floats in `input_range`, or integers, whose 0
            to 255 span that range. An array, a tf.data.Dataset or an iterable of batches, of which at most 4,096 images
            are taken. A few hundred are plenty: they set the ranges of the tensors that training did not.
        out_dir: folder to write; made if missing. It gets what the target is, whole or not at all, and report.json,
            which comes last and holds the model file's SHA-256: a folder without it is of an export that was cut off.
        flavour: "builtin" runs on any TFLite Micro: shift weights are int8 powers of two, add layers are refused.
            "custom" packs shift weights to 4 bits and needs our kernels. Default: builtin for target "tflite", else
            custom; target "c" knows no other.
        target: "tflite", the model alone, <name>.tflite; "tflm", a firmware project with TFLite Micro; "c", one of
            plain C calls and a static memory plan, without an interpreter.
        requantization: "q31", one multiplication per output; "power-of-two", a shift (custom flavour).
        evaluation_data: what `model.evaluate` takes, to compare the exported with the Keras model: (images, labels), a
            tf.data.Dataset, a keras PyDataset or an iterable of such batches, of which at most 100,000 images are
            taken. Labels are classes or one-hot; sample weights are not used. Or None.
        input_range: (low, high) of the model's inputs where they are not images in [0, 1]: (0, 255) for a model that
            begins with Rescaling.
        sram_bytes, flash_bytes: limits of the device; an export that takes more of its RAM or flash is refused.
        name: of the files; default: the model's.
        samples: how many of the representative images a firmware project carries, with their outputs.
        observation: what `observe` gave of this model, in place of observing `representative_data` anew.
        packaging: of target "c", which build system's library the project is: "cmake", "arduino", "platformio",
            "zephyr" or "esp-idf"; default "plain", a folder with a program.
        core: of `saaug_keras.memory.CORES`, "m4" say: which processor flash and RAM are counted for, and the limits hold
            on. Of target "c" they are linked where the core's compiler is installed, else modelled; of the others they
            are TFLite Micro's, modelled on the cores of `saaug_keras.memory.tflm_cores()`, and None on others.
    Returns:
        `Report`.
    Raises:
        TypeError, ValueError: an argument, or a layer that export or the flavour does not know; names it.
        OSError: `out_dir` cannot be written.
    """
    _validate.one_of(_OWNER, "target", target, TARGETS)
    for key, limit in (("sram_bytes", sram_bytes), ("flash_bytes", flash_bytes)):
        if limit is not None:
            _validate.int_in(_OWNER, key, limit, 1, 1 << 40, " bytes")
    if input_range is not None:
        input_range = _pair(input_range)
    _validate.int_in(_OWNER, "samples", samples, 1, 1000, " images")
    flavour = ("builtin" if target == "tflite" else "custom") if flavour is None else flavour
    if target == "c" and flavour != "custom":
        raise ValueError(f"{_OWNER}: `flavour` must be 'custom' for target 'c'. Received: flavour={flavour!r}.")
    if packaging is not None and target != "c":
        raise ValueError(
            f"{_OWNER}: `packaging` must come with target 'c'. Received: packaging={packaging!r}, target={target!r}."
        )
    _check_core(target, core, limited=not (sram_bytes is None and flash_bytes is None))
    _check_writable(out_dir)
    _validate.one_of(_OWNER, "flavour", flavour, FLAVOURS)
    ir.lower(model)  # a model that cannot be exported is refused before data are read
    name = _file_name(model.name if name is None else name)
    packaging = "plain" if packaging is None else packaging
    check_packaging(_OWNER, packaging, name, firmware.identifier(name))
    representative_data, notes = as_array(representative_data)
    options = {"flavour": flavour, "input_range": input_range, "observation": observation}
    network = compile_network(model, representative_data, requantization=requantization, **options)
    data = flatbuffer.write(network)
    scratch = _scratch(network, needed=target != "tflite")
    files = firmware.c_files(network, name) if target == "c" else None
    taken = _memory(network, target, core, len(data), files, firmware.identifier(name))
    _check_limits(network, taken, flash_bytes, sram_bytes)
    arena = runner.measure_arena(data) if _wheel_is_there() and target != "c" else None
    notes = (*notes, *network.notes)
    accuracy = {}
    if evaluation_data is not None:
        contenders = {"tflm_accuracy": network}
        if requantization == "power-of-two":
            contenders["int8_accuracy_q31"] = compile_network(model, representative_data, **options)
        accuracy, more = _evaluate(model, contenders, evaluation_data, input_range)
        notes += more
    weight_bytes, constant_bytes = _constant_bytes(network)
    with atomic_folder(out_dir, last=REPORT) as folder:
        plans = None
        if target == "tflite":
            model_file = f"{name}.tflite"
            (folder / model_file).write_bytes(data)
        else:
            shown = firmware.Samples.of(network, representative_data[:samples])
            if target == "c":
                model_file = LAYOUTS[packaging].source(f"{firmware.identifier(name)}_data.c")
                plans, _ = firmware.write_c(network, name, shown, folder, packaging=packaging, files=files)
            else:
                model_file = f"{firmware.identifier(name)}.tflite"
                size = _arena_for_device(network, arena, scratch)
                firmware.write_tflm(network, name, data, size, shown, folder)
        report = Report(
            name=name,
            flavour=flavour,
            target=target,
            requantization=requantization,
            model_file=model_file,
            model_sha256=hashlib.sha256((folder / model_file).read_bytes()).hexdigest(),
            parameters=sum(s.constants.weights.size + s.constants.bias.size for s in network.steps if s.constants),
            weight_bytes=weight_bytes,
            constant_bytes=constant_bytes,
            core=core,
            flash_bytes=taken and taken.flash_bytes,
            ram_bytes=taken and taken.ram_bytes,
            memory=taken and taken.as_dict(),
            model_bytes=len(data),
            activation_bytes=arena and arena.head,
            arena_tail_host_bytes=arena and arena.tail,
            scratch_bytes=scratch and {version: max(sizes) for version, sizes in scratch.items()},
            plan_bytes=plans,
            operations=count_operations(network),
            notes=notes,
            files=tuple(sorted([path.name for path in folder.iterdir()] + [REPORT])),
            **accuracy,
        )
        (folder / REPORT).write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    return report


def _pair(value):
    low, high = (_validate.number_in(_OWNER, "input_range", v, -1e6, 1e6) for v in value)
    if not low < high:
        raise ValueError(f"{_OWNER}: `input_range` must be (low, high), low < high. Received: input_range={value}.")
    return low, high


def _file_name(name):
    if not name or any(not (c.isalnum() or c in "-_.") for c in name) or name.startswith("."):
        raise ValueError(f"{_OWNER}: `name` must be letters, digits, '-', '_' and '.'. Received: name={name!r}.")
    return name


def _check_writable(out_dir):
    """Before minutes of work, not after."""
    folder = pathlib.Path(out_dir)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"{_OWNER}: `out_dir` must be a folder that can be written. Received: out_dir={str(out_dir)!r}.")


def _check_core(target, core, limited):
    """Refuses a core that is not known, and limits where nothing is known of TFLite Micro."""
    memory.check(_OWNER, "tflm" if limited and target != "c" else "c", core)


def _memory(network, target, core, model_bytes, files, word):
    """The `Memory` that the export takes; None where nothing is known of it."""
    if target == "c":
        return footprint.measure_c(network, files[1], word, core)
    return footprint.model_tflm(network, model_bytes, core) if core in memory.tflm_cores() else None


def _check_limits(network, taken, flash_bytes, sram_bytes):
    """Refuses a network that does not fit."""
    scratch = [each.scratch(memory.CORES[taken.core].version) for each in footprint.operations_of(network)] if taken else ()
    for key, limit, what in (("flash_bytes", flash_bytes, "flash"), ("sram_bytes", sram_bytes, "RAM")):
        if limit is None:
            continue
        size, parts = (taken.flash_bytes, taken.flash) if what == "flash" else (taken.ram_bytes, taken.ram)
        if size > limit:
            where = "" if what == "flash" else f"; the most at layer '{plan.largest_step(network, scratch)[0]}'"
            raise ValueError(
                f"{_OWNER}: the network does not fit: on core '{taken.core}' it takes {size:,} bytes of {what} "
                f"({', '.join(f'{part} {bytes_:,}' for part, bytes_ in parts.items())}; {taken.how}{where}). `{key}` is "
                f"{limit:,}."
            )


def _scratch(network, needed):
    """Scratch of every step by version of the kernels; None where there is none, or no compiler to ask them with."""
    if network.flavour != "custom":
        return None
    try:
        return firmware.scratch_bytes(network)
    except FileNotFoundError:
        if needed:
            raise
        return None


# What the adapter keeps in the arena for each of our operators, and TFLite Micro for its scratch: saaug_ops.cc asserts the
# first, 112 bytes with alignment; the second is a handle of one pointer.
ADAPTER_BYTES = 128


def _arena_for_device(network, arena, scratch):
    """Bytes of a firmware project's tensor arena: measured on this host, where the kernels keep their own memory outside of
    it; so the hungriest version's scratch is added, and what the adapter allocates for each of our operators."""
    if arena is None:
        raise ImportError(f"{_OWNER}: target 'tflm' measures the arena in TFLite Micro itself: pip install 'saaug-keras[run]'.")
    most = max((max(sizes) for sizes in scratch.values()), default=0) if scratch else 0
    kept = ADAPTER_BYTES * sum(network.flavour == "custom" and flatbuffer.is_ours(step) for step in network.steps)
    return -(-(arena.head + arena.tail + most + kept + 512) // 1024) * 1024


def _wheel_is_there():
    try:
        runner.require_wheel()
    except ImportError:
        return False
    return True


def _constant_bytes(network):
    weights = other = 0
    for step in network.steps:
        if step.constants is None:
            continue
        channels = len(step.constants.bias)
        if network.flavour == "custom" and step.constants.operator.kernels:
            weights += flatbuffer.custom_layer(step).weights.nbytes
            other += 12 * channels
        else:
            weights += step.constants.weights.size
            other += 4 * channels
    return weights, weights + other


def _labelled(data, network, input_range):
    """Yields (float32 images, int8 images, classes) of evaluation data, batch by batch."""
    expected = ", ".join(map(str, network.input.shape))
    batches = (tuple, list) if isinstance(data, list) else tuple
    pair = isinstance(data, (tuple, list)) and not (data and isinstance(data[0], batches))
    if isinstance(data, np.ndarray) or not (pair or hasattr(data, "__iter__") or hasattr(data, "num_batches")):
        raise ValueError(
            f"{_OWNER}: `evaluation_data` must be (images, labels) or batches of them. Received: {type(data).__name__}."
        )
    if hasattr(data, "cardinality") and int(data.cardinality()) == -1:
        raise ValueError(f"{_OWNER}: `evaluation_data` must end. Received: a data set that repeats; take(...) of it.")
    for batch in [data] if pair else _iterate(data):
        if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3:
            raise ValueError(
                f"{_OWNER}: `evaluation_data` must be (images, labels) or batches of them. Received: a batch that is no "
                "such pair."
            )
        images, labels = np.asarray(_only(batch[0])), np.asarray(_only(batch[1]))
        if images.shape[1:] != network.input.shape or labels.ndim == 0 or len(labels) != len(images):
            raise ValueError(
                f"{_OWNER}: `evaluation_data` must be (images, labels), images of shape (N, {expected}). Received: shapes "
                f"{images.shape} and {labels.shape}."
            )
        names = {"owner": _OWNER, "name": "evaluation_data"}
        labels = ends.class_labels(labels, network.output.shape, **names)
        for start in range(0, len(images), 64):
            part = images[start : start + 64]
            source = network.input
            stored = ends.to_stored(part, source.scale, source.zero_point, **names)
            yield ends.to_float(part, input_range, **names), stored, labels[start : start + 64]


def _evaluate(model, contenders, data, input_range):
    """Compares networks with the Keras model on labelled data.

    Args:
        contenders: {"tflm_accuracy": the network} and others under their own names.
    Returns:
        (figures of the report, notes). The wheel runs the networks; without it the reference does.
    """
    run = {key: _runner_of(network) for key, network in contenders.items()}
    network = contenders["tflm_accuracy"]
    grid = network.output.scale, network.output.zero_point
    right = dict.fromkeys(("float_accuracy", *run), 0)
    images = same = known = pixels = 0
    notes = ()
    for batch, stored, labels in _labelled(data, network, input_range):
        if images >= MOST_EVALUATED:
            notes = (f"evaluation data: only the first {images:,} images were used.",)
            break
        expected = ends.classes_of(model.predict_on_batch(batch), *grid)
        counted = labels < max(network.output.shape[-1], 2)  # pixels of segmentation may belong to no class
        right["float_accuracy"] += int((expected == labels)[counted].sum())
        for key, classify in run.items():
            found = classify(stored)
            right[key] += int((found == labels)[counted].sum())
            same += int((found == expected).sum()) if key == "tflm_accuracy" else 0
        images, known, pixels = images + len(batch), known + int(counted.sum()), pixels + labels.size
    if not known:
        raise ValueError(f"{_OWNER}: `evaluation_data` must hold a labelled image at least. Received: {images} images.")
    return {"images": images, "agreement": same / pixels} | {key: count / known for key, count in right.items()}, notes


def _runner_of(network):
    """A function from int8 images to classes."""
    if _wheel_is_there():
        return runner.Interpreter(flatbuffer.write(network)).classify
    grid = network.output.scale, network.output.zero_point
    return lambda stored: ends.classes_of(reference.run(network, stored)[network.output.name], *grid)
