"""`saaug search`: from a data set and a device's limits to a trained network, its firmware folder and a page."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
import time

from saaug_keras._page import duration
from saaug_keras.cli import common

# Options of the plan that are plain numbers or names: (option, type, help, default shown by argparse from the plan).
_NUMBERS = (
    ("search", "--subnet-trials", int, "candidates of stage 1"),
    ("search", "--target-trials", int, "candidates of stage 2"),
    ("search", "--population-size", int, "candidates that count as alive"),
    ("search", "--top", int, "of those, how many become parents"),
    ("search", "--slack", float, "factor on flash, energy and operations in stage 1, whose blocks may go in stage 2"),
    ("search", "--calibration-images", int, "that set a candidate's batch norm"),
    ("search", "--held-out-images", int, "that judge a candidate"),
    ("training", "--supernet-epochs", int, "of the SuperNet"),
    ("training", "--supernet-rate", float, "its learning rate"),
    ("training", "--random-candidates", int, "drawn per step, beside the largest and the smallest"),
    ("training", "--adapt-epochs", int, "of the SubNet, to the operators of its blocks"),
    ("training", "--adapt-rate", float, "its learning rate"),
    ("training", "--epochs", int, "of the chosen network's augmented training"),
    ("training", "--learning-rate", float, "its learning rate"),
    ("training", "--aug-loss-weight", float, "of the augmented loss"),
    ("training", "--batch-size", int, "images per step"),
    ("training", "--validation-fraction", float, "of the training images"),
    ("training", "--seed", int, "of everything"),
)
_DEFAULTS = {
    "subnet_trials": 300,
    "target_trials": 150,
    "population_size": 50,
    "top": 10,
    "slack": 1.5,
    "calibration_images": 256,
    "held_out_images": 512,
    "supernet_epochs": 20,
    "supernet_rate": 0.1,
    "random_candidates": 1,
    "adapt_epochs": 4,
    "adapt_rate": 0.02,
    "epochs": 30,
    "learning_rate": 0.1,
    "aug_loss_weight": 1.0,
    "batch_size": 128,
    "validation_fraction": 0.1,
    "seed": 0,
}


def add_parser(subparsers):
    """The parser of `saaug search`."""
    parser = subparsers.add_parser(
        "search",
        help="find and train a network within a device's limits",
        description="Trains a SuperNet, searches it in two stages, trains the chosen network inside an augmented one "
        "and exports it. Writes report.html, report.json and firmware/ to the folder. A killed search goes on with "
        "--resume. Run it under KERASTUNER_TUNER_ID (chief, or a worker's name), KERASTUNER_ORACLE_IP and "
        "KERASTUNER_ORACLE_PORT on a shared folder to search with several machines.",
    )
    parser.add_argument("--dataset", required=True, help="digits, cifar10, cifar100, or folder for your own images in --data")
    parser.add_argument("--data", metavar="DIR", help="folder with the data set's files")
    parser.add_argument("--out", metavar="DIR", help="folder to write")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say the size of the space, the feasible share and the time it will take"
    )

    group = parser.add_argument_group("limits")
    group.add_argument("--device", help="a microcontroller's name, for example stm32f412")
    group.add_argument("--sram", type=common.size, metavar="BYTES", help="in place of the device's; 64k is 64 KiB")
    group.add_argument("--flash", type=common.size, metavar="BYTES", help="in place of the device's")
    common.add_core_option(group, default=None)
    group.add_argument("--max-energy", type=float, metavar="MJ", help="mJ an inference, of an Eyeriss-like accelerator")
    group.add_argument("--max-ops", type=float, metavar="N", help="operations an inference")

    groups = {name: parser.add_argument_group(name) for name in ("search", "training")}
    group = groups["search"]
    group.add_argument("--space", choices=("small", "tiny"), help="default: by the size of the images")
    group.add_argument("--widths", type=common.numbers, metavar="F,F,...", help="multipliers of all channels")
    group.add_argument("--resolutions", type=common.integers, metavar="N,N,...", help="pixels")
    group.add_argument(
        "--operators",
        default="shift",
        metavar="NAME,NAME",
        help="that blocks may have: conv, shift, "
        "shift5, shift-ps, shift5-ps, adder, binary, or mixed as adder/shift/adder (default: shift)",
    )
    group.add_argument(
        "--minimize",
        default="",
        metavar="NAME,NAME",
        help="costs ranked beside accuracy: ram_bytes, flash_bytes, operations, energy_mj (default: none, only limits)",
    )
    group.add_argument("--strategy", choices=("evolution", "random"), default="evolution", help="default: evolution")
    for where, option, kind, text in _NUMBERS:
        default = _DEFAULTS[option[2:].replace("-", "_")]
        groups[where].add_argument(option, type=kind, default=default, help=f"{text} (default: {default})")
    group = groups["training"]
    group.add_argument("--distill", action="store_true", help="in-place distillation in the SuperNet")
    group.add_argument(
        "--width",
        type=common.numbers,
        default=(1.0, 1.6, 2.2),
        metavar="F,F,...",
        help="width augmentation (default: 1,1.6,2.2)",
    )
    group.add_argument(
        "--expand",
        type=common.numbers,
        default=(1.0, 1.6, 2.2, 2.8),
        metavar="F,F,...",
        help="expand augmentation (default: 1,1.6,2.2,2.8)",
    )
    group.add_argument("--no-data-augmentation", action="store_true", help="no random shift and mirror of images")
    group.add_argument(
        "--baseline",
        choices=("both", "none", "ptq", "qat"),
        default="none",
        help="also train the multiplicative twin and quantize it to INT8: after training, aware of it, or both",
    )
    group = parser.add_argument_group("export")
    group.add_argument(
        "--target",
        choices=("c", "tflite", "tflm"),
        default="tflm",
        help="what firmware/ holds, and flash and RAM are counted for: plain C, the model alone, or a project with TFLite "
        "Micro (default: tflm)",
    )
    group.add_argument(
        "--exported-images",
        type=int,
        default=1000,
        metavar="N",
        help="test images that the exported network classifies (default: 1000)",
    )
    return parser


def make_plan(args):
    """The `Plan` that the arguments ask for."""
    from saaug_keras.search import Plan

    given = vars(args)
    same = {field.name: given[field.name] for field in dataclasses.fields(Plan) if field.name in given}
    return Plan(
        **same
        | {
            "operators": tuple(args.operators.split(",")),
            "minimize": tuple(name for name in args.minimize.split(",") if name),
            "target": "c" if args.target == "c" else "tflm",
            "augment_data": not args.no_data_augmentation,
            "widths": args.widths and tuple(args.widths),
            "resolutions": args.resolutions and tuple(args.resolutions),
        }
    )


def run(args) -> int:
    """Searches."""
    if args.out is None and not args.dry_run:
        raise ValueError("search: `--out` must be a folder, unless with --dry-run. Received: none.")
    common.load_keras()
    from saaug_keras import datasets
    from saaug_keras.search import Search

    data = datasets.load(args.dataset, data_dir=args.data)
    search = Search(make_plan(args), data, args.out or ".", say=lambda text: common.say(args, text))
    if args.dry_run:
        found = search.estimate()
        total = sum(value for key, value in found.items() if key.endswith("_seconds"))
        rows = [
            ("networks in the space", found["networks"]),
            ("chosen width, resolution", f"{found['width']:g}, {found['resolution']} pixels"),
            ("networks at that width and resolution", found["networks_in_subspace"]),
            ("of these within the limits", f"{found['feasible_share']:.0%}"),
            ("SuperNet", duration(found["supernet_seconds"])),
            ("search", duration(found["search_seconds"])),
            ("augmented training", duration(found["training_seconds"])),
            ("all together, about", duration(total)),
        ]
        title = f"{data.name}: nothing was written"
        common.show(args, {**found, "seconds": total}, title=title, rows=rows, columns=("", ""))
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # one line a trial; stdout is for the result
        report = search.run(resume=args.resume, callbacks=[make_reporter(args)], finish=lambda *parts: deploy(args, *parts))
    if report is None:
        return 0
    out = pathlib.Path(args.out)
    deployment = dict(report["deployment"])
    result = {
        "out": str(out),
        "page": str(out / "report.html"),
        "firmware": deployment.pop("firmware"),
        **{key: report[key] for key in ("inherited_accuracy", "validation_accuracy", "test_accuracy")},
        **report["costs"],
        **(
            {"deployed": deployment}
            if args.json
            else {f"deployed_{k}": v for k, v in deployment.items() if not isinstance(v, dict)}
        ),
    }
    common.show(args, result, title=f"{data.name}, {args.device or 'no device'}")
    return 0


def deploy(args, search, spec, report) -> dict:
    """Exports the trained network to firmware/ and, if asked to, measures its multiplicative twin as INT8 beside it."""
    import json

    import keras
    import numpy as np

    import tflm_export
    from saaug_keras import datasets, devices

    data, plan = search.data, search.plan
    model = keras.models.load_model(search.out / "training" / "target.keras")

    def resized(images):
        return np.concatenate(
            [batch.numpy() for batch in datasets.pipeline(images, batch_size=256, resolution=spec.input_shape[:2])]
        )

    count = min(len(data.x_test), args.exported_images)
    held = devices.limits(plan.device, sram=plan.sram, flash=plan.flash)
    exported = tflm_export.export(
        model,
        resized(search.fit_part[0][:256]),
        search.out / "firmware",
        flavour="custom",
        target=args.target,
        evaluation_data=(resized(data.x_test[:count]), data.y_test[:count]),
        name="network",
        core=plan.where["core"],
        sram_bytes=held.get("ram_bytes"),
        flash_bytes=held.get("flash_bytes"),
    )
    columns = ("", "accuracy", "of images", "parameters", "flash, bytes", "RAM, bytes", "model file, bytes")
    rows = [
        (
            f"this network, {spec.blocks[-1].operator}, as deployed",
            exported.tflm_accuracy,
            count,
            exported.parameters,
            exported.flash_bytes,
            exported.ram_bytes,
            exported.model_bytes,
        )
    ]
    shown = ("tflm_accuracy", "float_accuracy", "agreement", "flash_bytes", "ram_bytes", "model_bytes")
    result = {"firmware": str(search.out / "firmware"), **{key: getattr(exported, key) for key in shown}}
    if args.baseline != "none":
        from saaug_keras import baselines
        from tflm_export import runner

        common.say(args, "the multiplicative twin: its direct training and its quantization")
        methods = baselines.METHODS if args.baseline == "both" else (args.baseline,)
        twin = baselines.measure(
            spec,
            data,
            search.out / "baseline",
            methods=methods,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            validation_fraction=plan.validation_fraction,
            augment_data=plan.augment_data,
            seed=plan.seed,
            callbacks=[make_reporter(args)],
            measure_arena=lambda model: runner.measure_arena(model).head,
        )
        result["baseline"] = twin
        names = {"ptq": "INT8 after training", "qat": "INT8, quantization-aware"}
        for method in methods:
            found = twin[method]
            rows.append(
                (
                    f"multiplicative twin, {names[method]}",
                    found["accuracy"],
                    len(data.x_test),
                    twin["parameters"],
                    "-",
                    "-",
                    found["model_bytes"],
                )
            )
    taken = exported.memory
    note = f"Flash and RAM: everything, target {taken['target']} on core {taken['core']}, {taken['how']}. Test images."
    result["tables"] = [{"title": "As deployed, on TFLite Micro", "columns": columns, "rows": rows, "note": note}]
    return json.loads(json.dumps(result))


def make_reporter(args):
    """The callback that prints one line per epoch of any of the trainings."""
    import keras

    class Reporter(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.started, self.first = time.monotonic(), None

        def on_epoch_begin(self, epoch, logs=None):
            self.first = epoch if self.first is None else self.first

        def on_epoch_end(self, epoch, logs=None):
            epochs = self.params["epochs"]
            left = (time.monotonic() - self.started) / (epoch + 1 - self.first) * (epochs - epoch - 1)
            values = "  ".join(f"{key} {value:.4f}" for key, value in (logs or {}).items() if value is not None)
            what = "SuperNet" if "largest_accuracy" in (logs or {}) else "augmented training"
            common.say(args, f"{what}, epoch {epoch + 1}/{epochs}  {values}  {duration(left)} left")

    return Reporter()
