"""`saaug export`: a trained Keras model to an int8 model for TFLite Micro."""

from __future__ import annotations

import pathlib

from saaug_keras import _errors
from saaug_keras.cli import common


def add_parser(subparsers):
    """The parser of `saaug export`."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained network for TFLite Micro",
        description="Quantizes a Keras model to int8 and writes a folder with NAME.tflite and report.json.",
    )
    parser.add_argument("model", metavar="MODEL", help="a .keras file, or the folder of a `saaug train` run")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--flavour",
        choices=("builtin", "custom"),
        help="builtin: any TFLite Micro runs it; custom: "
        "4-bit weights, for the kernels of tflm_export (default: builtin for tflite, else custom)",
    )
    parser.add_argument(
        "--target",
        default="tflite",
        choices=("tflite", "tflm", "c"),
        help="the model alone, a firmware project with TFLite Micro, or one of plain C (default: tflite)",
    )
    common.add_packaging_option(parser)
    add_requantization_option(parser, ", which needs --flavour custom")
    add_input_range_option(parser)
    parser.add_argument("--name", help="of the files (default: the model's)")
    common.add_core_option(parser)
    parser.add_argument("--sram-bytes", type=common.size, metavar="N", help="refuse if it takes more RAM; 64k is 64 KiB")
    parser.add_argument("--flash-bytes", type=common.size, metavar="N", help="refuse if it takes more flash")

    group = add_image_options(parser, required=True)
    group.add_argument("--evaluate", action="store_true", help="compare both models on the data set's test images")
    return parser


def run(args) -> int:
    """Exports."""
    keras = common.load_keras()
    import tflm_export
    from saaug_keras import datasets

    check_image_options("export", args)
    if args.evaluate and not args.dataset:
        raise ValueError("export: `--evaluate` must come with --dataset, which has labels.")
    model = load_model(keras, args.model)
    images, data = load_images(args, model)
    evaluation = (datasets.resize(data.x_test, model.input_shape[1:3]), data.y_test) if args.evaluate else None
    report = tflm_export.export(
        model,
        images,
        args.out,
        flavour=args.flavour,
        target=args.target,
        requantization=args.requantization,
        evaluation_data=evaluation,
        sram_bytes=args.sram_bytes,
        flash_bytes=args.flash_bytes,
        core=args.core,
        name=args.name,
        packaging=args.packaging,
        input_range=None if args.input_range is None else tuple(args.input_range),
    )
    show_report(args, report)
    return 0


def show_report(args, report):
    """Prints what an export reports, and where its files are."""
    if args.json:
        common.show(args, report.as_dict())
    else:
        print(report)
        common.say(args, f"wrote {', '.join(report.files)} into {args.out}")


def add_requantization_option(parser, condition=""):
    """`--requantization`; a shift may have a condition."""
    parser.add_argument(
        "--requantization",
        default="q31",
        choices=("q31", "power-of-two"),
        help=f"one multiplication per output, or a shift{condition} (default: q31)",
    )


def add_input_range_option(parser):
    """`--input-range`."""
    parser.add_argument(
        "--input-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="of the model's inputs, which "
        "the pixels' 0 to 255 span: 0 255 for a model that begins with Rescaling (default: 0 1)",
    )


def add_image_options(parser, *, required):
    """`--dataset` or `--images`, `--data`, `--count`; returns their group."""
    group = parser.add_argument_group("images that set the quantization ranges")
    which = group.add_mutually_exclusive_group(required=required)
    which.add_argument("--dataset", help="training images of digits, cifar10, cifar100, camvid or folder")
    which.add_argument("--images", metavar="DIR", help="a folder of image files")
    group.add_argument("--data", metavar="DIR", help="folder with the data set's files")
    group.add_argument("--count", type=int, default=256, help="how many images (default: 256)")
    return group


def check_image_options(owner, args):
    """Refuses a count that is none."""
    from saaug_keras import _validate

    _validate.int_in(owner, "--count", args.count, 1, 1 << 20, " images")


def load_images(args, model):
    """(images of a model's size that the options choose, the data set or None)."""
    import numpy as np

    from saaug_keras import datasets

    size, data = tuple(model.input_shape[1:3]), None
    if args.dataset:
        data = datasets.load(args.dataset, data_dir=args.data, resolution=size)
        chosen = np.random.default_rng(0).permutation(len(data.x_train))[: args.count]
        images = data.x_train[np.sort(chosen)]
    else:
        images, _ = datasets.load_folder(args.images, resolution=size, channels=model.input_shape[-1])
        images = images[: args.count]
    return datasets.resize(images, size), data


def load_model(keras, path, owner="export"):
    """The Keras model of a .keras file or of a run's folder."""
    import zipfile

    from saaug_keras import layers  # noqa: F401  registers the layers that the file names

    path = pathlib.Path(path)
    file = path / "target.keras" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{owner}: MODEL must be a .keras file or the folder of a finished `saaug train` run. Received: {path}."
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{owner}: MODEL must be a .keras file. Received: {file}, which is damaged or something else.")
    try:
        return keras.models.load_model(file, compile=False)
    except _errors.DAMAGED as error:
        raise ValueError(
            f"{owner}: {file} is damaged, or has layers that this package does not know: {_errors.one_line(error)}"
        ) from error
