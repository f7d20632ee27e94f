"""`saaug profile`: instructions of every layer of a network on an emulated microcontroller core."""

from __future__ import annotations

import pathlib

from saaug_keras.cli import common
from saaug_keras.cli.export import (
    add_image_options,
    add_input_range_option,
    add_requantization_option,
    check_image_options,
    load_images,
    load_model,
)


def add_parser(subparsers):
    """The parser of `saaug profile`."""
    from tflm_export import emulator

    *others, last = emulator.CORES
    parser = subparsers.add_parser(
        "profile",
        help="instructions of every layer on a microcontroller core",
        description="Exports a network as plain C, builds it for a core, runs it in QEMU and counts what every layer takes: "
        "instructions, not cycles. The output must be the reference interpreter's.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a .keras file, the folder of a `saaug train` run, or an entry of the zoo"
    )
    parser.add_argument(
        "--core", default="m4", metavar="CORE,...", help=f"{', '.join(others)} or {last}, or several of them (default: m4)"
    )
    parser.add_argument("--out", metavar="FILE", help="also write a picture, FILE.svg, or a page, FILE.html")
    add_requantization_option(parser)
    add_input_range_option(parser)
    add_image_options(parser, required=False)
    return parser


def run(args) -> int:
    """Counts."""
    from saaug_keras import zoo
    from tflm_export import emulator

    cores = tuple(args.core.split(","))
    emulator.cores_of("profile", cores, "--core")
    check_image_options("profile", args)
    out = None if args.out is None else pathlib.Path(args.out)
    if out is not None and out.suffix not in (".html", ".svg"):
        raise ValueError(f"profile: `--out` must be a file of suffix .svg or .html. Received: {out}.")
    in_zoo = not pathlib.Path(args.model).exists()
    if in_zoo and args.model not in zoo.list():
        raise FileNotFoundError(
            "profile: MODEL must be a .keras file, the folder of a finished `saaug train` run, or an entry that `saaug zoo "
            f"list` shows. Received: {args.model}."
        )
    if not in_zoo and not (args.dataset or args.images):
        raise ValueError("profile: a MODEL that is no entry of the zoo must come with --dataset or --images.")
    keras = common.load_keras()
    import tflm_export
    from saaug_keras import datasets
    from saaug_keras._files import write_atomic
    from tflm_export import profile_page

    if in_zoo:
        entry = zoo.Entry.read(args.model)
        model, observation = zoo.load(args.model), entry.observation()
        images = datasets.resize(zoo.samples(args.model).x_test[:1], entry.spec().input_shape[:2])
    else:
        model, observation = load_model(keras, args.model, "profile"), None
        images, _ = load_images(args, model)
    profiles = tflm_export.profile(
        model,
        images,
        cores=cores,
        requantization=args.requantization,
        input_range=None if args.input_range is None else tuple(args.input_range),
        observation=observation,
    )
    name = args.model if in_zoo else pathlib.Path(args.model).name
    if out is not None:
        make = profile_page.page if out.suffix == ".html" else profile_page.picture
        write_atomic(out, make(name, profiles))
    result = {"model": args.model, "cores": {profile.core: profile.as_dict() for profile in profiles}}
    if args.json:
        common.show(args, result)
        return 0
    operators = {layer.operator for profile in profiles for layer in profile.layers}
    if products := sorted(operators & {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}):
        common.say(args, f"{', '.join(products)}: in plain C here; a board's own library is faster at products.")
    for profile in profiles:
        rows = [tuple(profile_page.cells(row)) for row in profile_page.rows(profile)]
        common.show(args, result, title=profile_page.title(name, profile), rows=rows, columns=profile_page.COLUMNS)
    if out is not None:
        common.say(args, f"wrote {out}")
    return 0
