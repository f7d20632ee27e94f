"""The export itself: lower, calibrate, quantize, write, measure."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

from saaug_keras import _validate
from saaug_keras._files import atomic_folder
from tflm_export import firmware, flatbuffer, plan, quantize, reference, runner
from tflm_export import graph as ir
from tflm_export.power_of_two import requantize_by_shifts
from tflm_export.report import Report, count_operations

_OWNER = "tflm_export.export"
FLAVOURS = ("builtin", "custom")
TARGETS = ("tflite", "tflm", "c")
REQUANTIZATIONS = ("power-of-two", "q31")


def observe(model, representative_data, *, input_range=None) -> quantize.Observation:
    """What export needs to know of representative images: kept, it gives the same export again without them.

    Args: as `export`.
    """
    graph = ir.lower(model)
    return quantize.observe(graph, _images(representative_data, graph.shapes[graph.input], input_range))


def compile_network(
    model, representative_data, *, flavour="builtin", requantization="q31", input_range=None, observation=None
):
    """Keras model -> integer `quantize.Network`, without writing anything.

    Args: as `export`.
    """
    _validate.one_of(_OWNER, "flavour", flavour, FLAVOURS)
    _validate.one_of(_OWNER, "requantization", requantization, REQUANTIZATIONS)
    power_of_two = requantization == "power-of-two"
    if power_of_two and flavour != "custom":
        raise ValueError(
            f"{_OWNER}: `requantization` 'power-of-two' needs our kernels, flavour='custom'. Received: "
            f"flavour={flavour!r}."
        )
    graph = ir.lower(model)
    for op in graph.ops:
        if op.weights is not None:
            quantize.check_flavour(op, flavour)
    images = _images(representative_data, graph.shapes[graph.input], input_range)
    if observation is None:
        observation = quantize.observe(graph, images)
    else:
        quantize.check_observation(observation, graph)
    tensors = quantize.choose_tensors(graph, observation, input_range, power_of_two=power_of_two)
    network = quantize.quantize(graph, tensors, observation, flavour=flavour)
    return requantize_by_shifts(network, graph, images) if power_of_two else network


def _array(data):
    """An array, tf.data.Dataset or iterable of batches (or of (images, ...) tuples) as one array."""
    if hasattr(data, "as_numpy_iterator"):
        data = data.as_numpy_iterator()
    if not isinstance(data, np.ndarray) and hasattr(data, "__iter__") and not hasattr(data, "shape"):
        batches = [np.asarray(batch[0] if isinstance(batch, (tuple, list)) else batch) for batch in data]
        data = np.concatenate(batches) if batches else np.zeros(0, "float32")
    return np.asarray(data)


def _images(data, shape, input_range):
    """Representative images as float32 (N, H, W, C), checked."""
    images = _array(data)
    if images.dtype == np.uint8:
        images = images.astype("float32") / np.float32(255)
    if images.ndim != len(shape) + 1 or images.shape[1:] != tuple(shape) or len(images) == 0:
        raise ValueError(
            f"{_OWNER}: `representative_data` must be images (N, {', '.join(map(str, shape))}), at least one. "
            f"Received: shape {images.shape}."
        )
    images = images.astype("float32")
    low, high = (0.0, 1.0) if input_range is None else input_range
    if not (np.isfinite(images).all() and images.min() >= low - 1e-3 and images.max() <= high + 1e-3):
        raise ValueError(
            f"{_OWNER}: `representative_data` must lie in [{low:g}, {high:g}]; other inputs need "
            f"`input_range=(low, high)`. Received: values in [{images.min():g}, {images.max():g}]."
        )
    return images


def export(
    model, representative_data, out_dir, *, flavour=None, target="tflite", requantization="q31",
    evaluation_data=None, input_range=None, sram_bytes=None, flash_bytes=None, name=None, samples=4, observation=None,
) -> Report:  # fmt: skip
    """Writes a Keras model as an int8 model for TFLite Micro, and measures it.

    Args:
        model: functional keras.Model, one image in, one output; of an AugmentedModel, its export_target().
        representative_data: images as training saw them, float32 (N, H, W, C) in [0, 1] or uint8; an array, a
            tf.data.Dataset or an iterable of batches. A few hundred are plenty: they set the ranges of the tensors that
            training did not.
        out_dir: folder to write; made if missing. It gets report.json and what the target is, whole or not at all.
        flavour: "builtin" runs on any TFLite Micro: shift weights are int8 powers of two, add layers are refused.
            "custom" packs shift weights to 4 bits and needs our kernels. Default: builtin for target "tflite", else
            custom; target "c" knows no other.
        target: "tflite", the model alone, <name>.tflite; "tflm", a firmware project with TFLite Micro; "c", one of
            plain C calls and a static memory plan, without an interpreter.
        requantization: "q31", one multiplication per output; "power-of-two", a shift (custom flavour).
        evaluation_data: (images, labels) to compare the exported with the Keras model, or None.
        input_range: (low, high) of the model's inputs where they are not images in [0, 1].
        sram_bytes, flash_bytes: limits of the device; an export beyond them is refused.
        name: of the files; default: the model's.
        samples: how many of the representative images a firmware project carries, with their outputs.
        observation: what `observe` gave of this model, in place of observing `representative_data` anew.
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
    _check_writable(out_dir)
    representative_data = _array(representative_data)
    options = {"flavour": flavour, "input_range": input_range, "observation": observation}
    network = compile_network(model, representative_data, requantization=requantization, **options)
    evaluation = None if evaluation_data is None else _evaluation(evaluation_data, network)
    name = _file_name(model.name if name is None else name)
    data = flatbuffer.write(network)
    _check_limit("flash_bytes", flash_bytes, len(data), "the model file takes")
    scratch = _scratch(network, needed=target != "tflite")
    arena = runner.measure_arena(data) if _wheel_is_there() and target != "c" else None
    _check_sram(network, sram_bytes, arena, scratch)
    accuracy = {}
    if evaluation is not None:
        accuracy = _evaluate(model, network, data, evaluation)
        if requantization == "power-of-two":
            plain = compile_network(model, representative_data, **options)
            plain_accuracy = _evaluate(model, plain, flatbuffer.write(plain), evaluation)
            accuracy["int8_accuracy_q31"] = plain_accuracy["tflm_accuracy"]
    weight_bytes, constant_bytes = _constant_bytes(network)
    with atomic_folder(out_dir) as folder:
        plans = None
        if target == "tflite":
            (folder / f"{name}.tflite").write_bytes(data)
        else:
            shown = _images(representative_data[:samples], network.input.shape, input_range)
            shown = firmware.Samples.of(network, shown)
            if target == "c":
                plans = firmware.write_c(network, name, shown, folder)
            else:
                firmware.write_tflm(network, name, data, _arena_for_device(arena, scratch), shown, folder)
        report = Report(
            name=name, flavour=flavour, target=target, requantization=requantization,
            parameters=sum(s.constants.weights.size + s.constants.bias.size for s in network.steps if s.constants),
            weight_bytes=weight_bytes, constant_bytes=constant_bytes, flash_bytes=len(data),
            arena_bytes=arena and arena.head, arena_tail_host_bytes=arena and arena.tail,
            scratch_bytes=scratch and {version: max(sizes) for version, sizes in scratch.items()}, plan_bytes=plans,
            operations=count_operations(network), notes=network.notes,
            files=tuple(sorted([path.name for path in folder.iterdir()] + ["report.json"])), **accuracy,
        )  # fmt: skip
        (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n")
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


def _check_limit(key, limit, size, what):
    if limit is not None and size > limit:
        raise ValueError(f"{_OWNER}: the network does not fit: {what} {size:,} bytes, `{key}` is {limit:,}.")


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


def _check_sram(network, limit, arena, scratch):
    """Refuses a network whose activations cannot fit, whichever version of the kernels runs."""
    if limit is None:
        return
    fast = [sizes for version, sizes in (scratch or {}).items() if version != "reference"]
    least = min(fast, key=max) if fast else ()
    size, how = (arena.head, "as TFLite Micro places them") if arena else (
        plan.make_plan(network, least).arena_bytes, "in a static plan")  # fmt: skip
    if arena and fast:
        size += max(least)
    layer, _ = plan.largest_step(network, least)
    _check_limit("sram_bytes", limit, size, f"activations and scratch, {how}, the most at layer '{layer}', take")


def _arena_for_device(arena, scratch):
    """Bytes of a firmware project's tensor arena: measured on this host, the hungriest version's scratch added."""
    if arena is None:
        raise ImportError(
            f"{_OWNER}: target 'tflm' measures the arena in TFLite Micro itself: pip install 'saaug-keras[run]'."
        )
    most = max((max(sizes) for sizes in scratch.values()), default=0) if scratch else 0
    return -(-(arena.head + arena.tail + most + 512) // 1024) * 1024


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
        if network.flavour == "custom" and step.constants.operator != "conv":
            weights += flatbuffer.custom_layer(step).weights.nbytes
            other += 12 * channels
        else:
            weights += step.constants.weights.size
            other += 4 * channels
    return weights, weights + other


def _evaluation(data, network):
    images, labels = data
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype == np.uint8:
        images = images.astype("float32") / np.float32(255)
    if len(images) == 0 or images.shape[1:] != network.input.shape or len(labels) != len(images):
        raise ValueError(
            f"{_OWNER}: `evaluation_data` must be (images, labels), images of shape (N, "
            f"{', '.join(map(str, network.input.shape))}). Received: shapes {images.shape} and {labels.shape}."
        )
    return images.astype("float32"), labels


def _evaluate(model, network, data, evaluation):
    """Accuracies of the Keras model and of the exported one; the wheel runs the latter, without it the reference."""
    images, labels = evaluation
    expected = np.asarray(model.predict(images, batch_size=64, verbose=0)).argmax(axis=-1)
    if _wheel_is_there():
        found = runner.Interpreter(data).classify(network.input.quantize(images))
    else:
        found = []
        for start in range(0, len(images), 64):
            values = reference.run(network, network.input.quantize(images[start : start + 64]))
            found.append(values[network.output.name].argmax(axis=-1))
        found = np.concatenate(found)
    known = labels < network.output.shape[-1]  # pixels of segmentation may belong to no class
    return {
        "images": len(images),
        "float_accuracy": float((expected == labels)[known].mean()),
        "tflm_accuracy": float((found == labels)[known].mean()),
        "agreement": float((found == expected).mean()),
    }
