"""`saaug run`: images through an exported model on TFLite Micro."""

from __future__ import annotations

import pathlib
import time

from saaug_keras._page import duration
from saaug_keras.cli import common


def add_parser(subparsers):
    """The parser of `saaug run`."""
    parser = subparsers.add_parser(
        "run",
        help="run an exported network on TFLite Micro",
        description="Runs a .tflite model, of either flavour, in the interpreter of TFLite Micro on this machine. With "
        "a data set it prints the accuracy, with image files the class of each.",
    )
    parser.add_argument("model", metavar="MODEL.tflite", help="as `saaug export` writes it")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", help="digits, cifar10, cifar100, camvid or folder")
    which.add_argument("--images", metavar="PATH", help="a folder of image files, or one file")
    parser.add_argument("--data", metavar="DIR", help="folder with the data set's files")
    parser.add_argument(
        "--part",
        default="test",
        choices=("train", "validation", "test"),
        help="of the data set: validation is what `saaug train` holds out (default: test)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--class-names", metavar="FILE", help="a name per line, for --images")
    return parser


def run(args) -> int:
    """Runs the images."""
    from saaug_keras import _validate

    if args.limit is not None:
        _validate.int_in("run", "--limit", args.limit, 1, 1 << 31, " images")
    path = pathlib.Path(args.model)
    if not path.is_file():
        raise FileNotFoundError(f"run: MODEL must be a .tflite file. Received: {path}.")
    common.load_keras()
    import tflm_export
    from saaug_keras import datasets
    from tflm_export import report

    report.check_model(path)
    interpreter = tflm_export.Interpreter(path)
    size, channels = interpreter.input_shape[:2], interpreter.input_shape[2]
    names = pathlib.Path(args.class_names).read_text().splitlines() if args.class_names else None
    if args.dataset:
        data = datasets.load(args.dataset, data_dir=args.data, resolution=size)
        images, labels = {
            "train": lambda: (data.x_train, data.y_train),
            "validation": lambda: data.split()[1],
            "test": lambda: (data.x_test, data.y_test),
        }[args.part]()
        images, labels = images[: args.limit], labels[: args.limit]
        if images.shape[-1] != channels or data.num_classes > interpreter.output_shape[-1]:
            raise ValueError(
                f"run: the model must fit {args.dataset}: {images.shape[-1]} channels, {data.num_classes} classes. It "
                f"has {channels} and {interpreter.output_shape[-1]}."
            )
    else:
        images, files = datasets.load_folder(args.images, resolution=size, channels=channels)
        images = images[: args.limit]
    images = datasets.resize(images, size)
    classes, seconds = classify(interpreter, images)
    result = {"model": str(path), "images": len(images), "seconds": seconds, "images_per_second": len(images) / seconds}
    if args.dataset:
        result |= data.score(classes, labels)
        common.show(args, result, title=f"{path.name} on TFLite Micro, {args.dataset} {args.part}")
        return 0
    result["classes"] = {file: describe(found, names) for file, found in zip(files, classes, strict=False)}
    rows = list(result["classes"].items())
    common.show(args, result, title=f"{path.name} on TFLite Micro", rows=rows, columns=("image", "class"))
    return 0


def classify(interpreter, images, every: int = 32):
    """The classes of images, with progress: (classes, seconds)."""
    import numpy as np

    progress, parts, start = common.Progress(), [], time.perf_counter()
    for first in range(0, len(images), every):
        parts.append(interpreter.classify(images[first : first + every]))
        done = min(first + every, len(images))
        speed = done / (time.perf_counter() - start)
        progress.update(f"{done}/{len(images)} images  {speed:,.0f} img/s  {duration((len(images) - done) / speed)} left")
    progress.clear()
    return np.concatenate(parts), time.perf_counter() - start


def describe(found, names):
    """A class by name or number; of a map of classes, the share of each."""
    import numpy as np

    if np.ndim(found) == 0:
        return names[found] if names and found < len(names) else int(found)
    pairs = zip(*np.unique(found, return_counts=True), strict=True)
    return {describe(value, names): round(float(count / found.size), 4) for value, count in pairs}
