"""The two ends of a model: images on their way in, classes on their way out. One rule each, used by export, evaluation,
interpreter, command line and firmware alike.

Images that are integers hold pixels from 0 to 255, and these span the model's own input range: for a model of inputs in
[low, high], pixel p is the value low + p * (high - low) / 255. So it is p / 255 in [0, 1], p itself in [0, 255], and
p / 127.5 - 1 in [-1, 1]. The model's int8 grid has 256 steps in that range, and pixel p is stored as p - 128. Floats are
values in the units of training, and int8 is what is stored already.
"""

from __future__ import annotations

import numpy as np

UNIT = (0.0, 1.0)  # the input range where none is given


def to_float(images, input_range=None, *, owner, name) -> np.ndarray:
    """Images in the units of training, float32.

    Args:
        images: integers in [0, 255] of any type but int8, or floats.
        input_range: (low, high) of the model's inputs; None for [0, 1].
        owner, name: of the argument, for errors.
    Raises:
        TypeError: neither integers nor floats, or int8. ValueError: integers beyond 0 to 255, or a range without 0.
    """
    images = _checked(images, owner, name)
    if images.dtype.kind == "f":
        return images.astype("float32")
    if images.dtype == np.int8:
        raise TypeError(f"{owner}: `{name}` must be uint8 or float. Received: int8, which only an exported model takes.")
    low, high = UNIT if input_range is None else input_range
    if not low <= 0 <= high:
        raise ValueError(
            f"{owner}: `{name}` of integers must have an `input_range` that holds 0. Received: input_range={input_range}. "
            "Give floats in the units of training."
        )
    return (low + images.astype("float64") * (high - low) / 255).astype("float32")


def to_stored(images, scale, zero_point, *, owner, name) -> np.ndarray:
    """Images on the int8 grid of a model's input.

    Args:
        images: integers in [0, 255], floats in the units of training, or int8, which is stored already.
        scale, zero_point: of the grid.
        owner, name: of the argument, for errors.
    Raises:
        TypeError: neither integers nor floats. ValueError: integers beyond 0 to 255, or floats that are not finite.
    """
    images = _checked(images, owner, name)
    if images.dtype == np.int8:
        return images
    if images.dtype.kind != "f":
        return (images.astype("int16") - 128).astype("int8")
    if not np.isfinite(images).all():
        raise ValueError(f"{owner}: `{name}` must be finite. Received: NaN or infinity.")
    stored = np.round(images.astype("float32") / np.float32(scale)) + zero_point
    return np.clip(stored, -128, 127).astype("int8")


def _checked(images, owner, name):
    images = np.asarray(images)
    if images.dtype.kind not in "iufV" or images.dtype.kind == "V" and images.dtype.name != "bfloat16":
        raise TypeError(f"{owner}: `{name}` must be uint8, float or int8. Received: {images.dtype.name}.")
    if images.dtype.kind == "V":
        images = images.astype("float32")
    if images.dtype.kind in "iu" and images.dtype not in (np.uint8, np.int8) and images.size:
        if images.min() < 0 or images.max() > 255:
            raise ValueError(
                f"{owner}: `{name}` of integers must be pixels in [0, 255]. Received: values in "
                f"[{images.min()}, {images.max()}]."
            )
    return images


def classes_of(outputs, scale=None, zero_point=0) -> np.ndarray:
    """The class of every image (N,), or of every pixel (N, H, W).

    Several outputs: the largest. A single one is a logit, and class 1 is what is above 0; or, where the grid is that of
    probabilities, 0 to 1, above one half.

    Args:
        outputs: (N, K) or (N, H, W, K): int8, or floats in real units.
        scale, zero_point: of the model's int8 output.
    """
    outputs = np.asarray(outputs)
    if outputs.shape[-1] > 1:
        return outputs.argmax(axis=-1)
    values = outputs[..., 0]
    if outputs.dtype == np.int8:
        values = (values.astype("int32") - zero_point) * float(scale)
    return (values > (0.5 if _is_probability(scale, zero_point) else 0.0)).astype("int64")


def _is_probability(scale, zero_point):
    return zero_point == -128 and np.float32(scale) in (np.float32(1 / 255), np.float32(1 / 256))


def class_labels(labels, output_shape, *, owner, name) -> np.ndarray:
    """Labels in any form that `keras.Model.evaluate` takes as int64 classes, (N,) or (N, H, W).

    Args:
        labels: whole numbers (N,), (N, 1), or (N, K) of a one-hot or smoothed kind; of a map of classes (N, H, W),
            (N, H, W, 1) or (N, H, W, K). A single output has the classes 0 and 1.
        output_shape: (K,) or (H, W, K) of the model.
        owner, name: of the argument, for errors.
    Raises:
        ValueError: another shape; or values that are no classes. Pixels of a map may belong to no class: K or more.
    """
    labels = np.asarray(labels)
    *place, outputs = output_shape
    classes = max(outputs, 2)
    form = f"whole numbers in [0, {classes - 1}], as many as outputs, or one-hot"
    if labels.ndim == len(output_shape) + 1 and labels.shape[-1] == classes:
        labels = labels.argmax(axis=-1)
    elif labels.ndim == len(output_shape) + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.ndim != len(output_shape) or list(labels.shape[1:]) != place:
        raise ValueError(f"{owner}: `{name}` must have labels that are {form}. Received: labels of shape {labels.shape}.")
    if labels.dtype.kind not in "iubf" or not (np.isfinite(labels).all() and (labels == np.floor(labels)).all()):
        raise ValueError(f"{owner}: `{name}` must have labels that are {form}. Received: others, of {labels.dtype.name}.")
    if labels.size and (labels.min() < 0 or (not place and labels.max() >= classes)):
        raise ValueError(
            f"{owner}: `{name}` must have labels that are {form}. Received: labels in [{labels.min()}, {labels.max()}]."
        )
    return labels.astype("int64")
