"""Weight files: a network's deployed weights in a NumPy .npz of a few hundred kilobytes.

Shift kernels are powers of two and add kernels points of their inputs' grid, a byte each, which is what the network
computes with; they come back exactly. Multiplicative kernels keep 8 significant bits (bfloat16), all else is float32.
"""

from __future__ import annotations

import io
import math
import zipfile

import keras
import numpy as np

from saaug_keras import ops
from saaug_keras._errors import DAMAGED
from saaug_keras._files import write_atomic
from saaug_keras.operators.adder_layers import AdderWeights

_HEADER = 1024  # bytes that an array's name, shape and type take at most
_CALIBRATION = 4 << 20  # bytes of a calibration; those of the zoo take 0.2 million at most


def deploy(model):
    """Rounds a model's kernels to what a weight file holds, in place; its outputs change by rounding alone.

    Weights of an add layer beyond its inputs' range move to the end of that range, and what the distance to every
    input loses by that, the same number, moves into the mean of the batch norm that follows.

    Raises:
        ValueError: an add layer with weights out of range that no batch norm follows.
    """
    for layer, kernel in _kernels(model):
        if not hasattr(layer, "quantized_kernel"):
            kernel.assign(_from_bfloat16(_to_bfloat16(np.asarray(kernel, "float32"))))
            continue
        value = np.asarray(layer.quantized_kernel(), "float32")
        if (grid := _grid(layer)) is not None:
            step, lowest, highest = grid
            codes = np.round(value / step)
            inside = np.clip(codes, lowest, highest)
            value = inside.astype("float32") * step
            _move_mean(layer, np.abs(codes - inside).astype("float64") * float(step))
        kernel.assign(value)


def _move_mean(layer, excess):
    """Adds what an add layer's outputs no longer lose, a sum over `excess`'s taps, to the mean of its batch norm."""
    if not excess.any():
        return
    followers = [node.operation for node in layer._outbound_nodes]
    if len(followers) != 1 or not isinstance(followers[0], keras.layers.BatchNormalization):
        raise ValueError(f"zoo: the layer {layer.name} has weights beyond its inputs' range: a batch norm must follow.")
    by_channel = excess.reshape(-1, *excess.shape[2:]).sum(axis=0)
    if not isinstance(layer, keras.layers.DepthwiseConv2D):
        by_channel = by_channel.sum(axis=0)
    mean = followers[0].moving_mean
    mean.assign((np.asarray(mean, "float64") + by_channel.reshape(-1)).astype("float32"))


def write(model, file):
    """Writes the weights of a model that `deploy` has rounded."""
    arrays, kernels = {}, {id(kernel): layer for layer, kernel in _kernels(model)}
    for variable in model.weights:
        value, layer = np.asarray(variable, "float32"), kernels.get(id(variable))
        codec = _codec(layer)
        if codec == "grid":
            step, lowest, _ = _grid(layer)
            value = (np.round(value / step) - lowest).astype("uint8")
        elif codec == "bfloat16":
            value = _planes(_to_bfloat16(value))
        arrays[f"{variable.path}:{codec}"] = value
    write_arrays(arrays, file)


def read_into(model, file):
    """Gives a model the weights of a file: all of them or, if anything is wrong, none.

    Raises:
        ValueError: the file is damaged, or of another network.
    """
    arrays = read_arrays(file, sum(4 * math.prod(variable.shape) + _HEADER for variable in model.weights))
    kernels = {id(kernel): layer for layer, kernel in _kernels(model)}
    # A kernel on a grid needs the grid, an input range: plain arrays first.
    values = {}
    for variable in model.weights:
        found = [key for key in arrays if key.rpartition(":")[0] == variable.path]
        if len(found) != 1:
            raise ValueError(f"zoo.load: {file} holds another network: it must hold the weight {variable.path} once.")
        codec, array = found[0].rpartition(":")[2], arrays.pop(found[0])
        if codec != (wanted := _codec(kernels.get(id(variable)))):
            raise ValueError(
                f"zoo.load: {file} holds another network: {variable.path} must be stored as {wanted}. Received: {codec!r}."
            )
        if codec == "bfloat16":
            array = _joined(array, variable.path, file)
        elif codec == "grid" and array.dtype != np.uint8:
            raise ValueError(f"zoo.load: {file} is damaged: {variable.path} must be bytes.")
        if tuple(array.shape) != tuple(variable.shape):
            raise ValueError(
                f"zoo.load: {file} holds another network: {variable.path} must have the shape {tuple(variable.shape)}. "
                f"Received: {tuple(array.shape)}."
            )
        values[id(variable)] = (variable, codec, array)
    if arrays:
        raise ValueError(f"zoo.load: {file} holds another network: it has the weight {next(iter(arrays))}, too.")
    for variable, codec, array in values.values():
        if codec == "bfloat16":
            array = _from_bfloat16(array)
        if not np.isfinite(array).all():
            raise ValueError(f"zoo.load: {file} is damaged: {variable.path} must hold finite numbers.")
        if codec != "grid":
            variable.assign(array)
    for variable, codec, array in values.values():
        if codec == "grid":
            step, lowest, _ = _grid(kernels[id(variable)])
            variable.assign((array + np.float32(lowest)) * step)


def write_arrays(arrays, file):
    """Writes {key: array} as .npz; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key, value in arrays.items():
            entry = zipfile.ZipInfo(key.replace("/", "|") + ".npy")  # of a fixed date
            entry.compress_type = zipfile.ZIP_DEFLATED
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(value), allow_pickle=False)
            archive.writestr(entry, part.getvalue())
    write_atomic(file, buffer.getvalue())


def read_arrays(file, most: int) -> dict:
    """The arrays of a file of the zoo.

    Args:
        most: bytes that the arrays may take; nothing of a file that would inflate to more is read.
    Raises:
        ValueError: the file is damaged, or holds more.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = {}
            if (size := sum(info.file_size for info in archive.infolist())) > most:
                raise ValueError(f"its arrays must take at most {most:,} bytes. Received: {size:,}")
            for info in archive.infolist():
                with archive.open(info) as stream:
                    data = stream.read(info.file_size)  # no more is inflated, whatever follows
                # Arrays alone: a pickled object would be code.
                value = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
                arrays[info.filename.removesuffix(".npy").replace("|", "/")] = value
            return arrays
    except DAMAGED as error:
        raise ValueError(f"zoo: {file} must be an .npz file of the zoo; it is damaged: {error}.") from error


def write_observation(observation, file):
    """Writes a `tflm_export` observation: the calibration of an entry's export."""
    arrays = {f"range:{name}": np.array(values, "float64") for name, values in observation.ranges.items()}
    write_arrays(arrays | {f"channels:{name}": values for name, values in observation.channels.items()}, file)


def read_observation(file):
    """The observation in a file of `write_observation`; whether it fits a network is for the export to say."""
    from tflm_export.quantize import Observation

    parts = {"range": {}, "channels": {}}
    for key, values in read_arrays(file, _CALIBRATION).items():
        kind, _, name = key.partition(":")
        if kind not in parts or values.dtype != np.float64 or (kind == "range" and values.shape != (2,)):
            raise ValueError(f"zoo: {file} must be a calibration file of the zoo. Received: the array {key!r}.")
        parts[kind][name] = values
    return Observation({name: (float(low), float(high)) for name, (low, high) in parts["range"].items()}, parts["channels"])


def _kernels(model):
    """(layer, its kernel) of every layer that has one; DeepShift-PS's signs and exponents stay as they are."""
    for layer in model.layers:
        if getattr(layer, "variant", "q") == "ps":
            continue
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            kernel = getattr(layer, "depthwise_kernel", None)
        if kernel is not None:
            yield layer, kernel


def _codec(layer):
    """How the kernel of a layer is stored; of None, any other weight."""
    if layer is None:
        return "float32"
    return "grid" if _grid(layer) is not None else "bfloat16"


def _grid(layer):
    """(step, lowest and highest multiple of it) of the grid of an add layer's inputs; else, and without one, None."""
    if not isinstance(layer, AdderWeights) or layer.activation_bits is None:
        return None
    _, _, step, zero = ops.nudged_range(*np.asarray(layer.input_range), layer.activation_bits)
    lowest = -zero - 2 ** (layer.activation_bits - 1)
    return step, lowest, lowest + 2**layer.activation_bits - 1


def _to_bfloat16(value):
    """float32 -> uint16, to nearest, ties to even."""
    bits = np.ascontiguousarray(value, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _from_bfloat16(value):
    return (value.astype("<u4") << 16).view("<f4").astype("float32")


def _planes(value):
    """16-bit numbers as (2, ...) bytes, low ones first: each plane packs better alone."""
    return np.stack([(value.view("<u2") & 0xFF), value.view("<u2") >> 8]).astype("uint8")


def _joined(planes, path, file):
    if planes.dtype != np.uint8 or planes.ndim < 1 or len(planes) != 2:
        raise ValueError(f"zoo.load: {file} is damaged: {path} must be two planes of bytes.")
    return planes[0].astype("<u2") | (planes[1].astype("<u2") << 8)
