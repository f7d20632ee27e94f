"""`saaug search`: from a data set and a device's limits to a trained network, its firmware folder and a page."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time

from saaug_keras._page import duration
from saaug_keras.cli import common
from saaug_keras.recipes import Recipe
from saaug_keras.search.plan import Plan

LIMITS = {
    "device": "a microcontroller's name, for example stm32f412",
    "sram": ("in place of the device's; 64k is 64 KiB", {"type": common.size, "metavar": "BYTES"}),
    "flash": ("in place of the device's", {"type": common.size, "metavar": "BYTES"}),
    "max_energy": ("mJ an inference, of an Eyeriss-like accelerator", {"metavar": "MJ"}),
    "max_ops": ("operations an inference", {"metavar": "N"}),
}
SEARCH = {
    "space": ("tiny or small (default: by the size of the images)", {"choices": ("small", "tiny")}),
    "widths": "multipliers of all channels",
    "resolutions": "pixels",
    "operators": "that blocks may have: conv, shift, shift5, shift-ps, shift5-ps, adder, binary, or mixed as adder/shift/adder",
    "minimize": "costs ranked beside accuracy: ram_bytes, flash_bytes, operations, energy_mj (default: none, only limits)",
    "strategy": ("how candidates are proposed", {"choices": ("evolution", "random")}),
    "subnet_trials": "candidates of stage 1",
    "target_trials": "candidates of stage 2",
    "population_size": "candidates that count as alive",
    "top": "of those, how many become parents",
    "slack": "factor on flash, energy and operations in stage 1, whose blocks may go in stage 2",
    "calibration_images": "that set a candidate's batch norm",
    "held_out_images": "that judge a candidate",
}
SUPERNET = {
    "supernet_epochs": "of the SuperNet",
    "supernet_rate": "its learning rate",
    "random_candidates": "drawn per step, beside the largest and the smallest",
    "distill": "in-place distillation in the SuperNet",
    "adapt_epochs": "of the SubNet, to the operators of its blocks",
    "adapt_rate": "its learning rate",
}
TRAINING = {
    "epochs": "of the chosen network's augmented training",
    "learning_rate": "its learning rate",
    "width": "width augmentation",
    "expand": "expand augmentation",
    "aug_loss_weight": "of the augmented loss",
    "batch_size": "images per step",
    "validation_fraction": "of the training images",
    "seed": "of everything",
    "augment_data": ("no random shift and mirror of images", {"flag": "--no-data-augmentation"}),
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
    common.add_fields(group, Plan, LIMITS)
    common.add_core_option(group, default=None)
    common.add_fields(parser.add_argument_group("search"), Plan, SEARCH)
    group = parser.add_argument_group("training")
    common.add_fields(group, Plan, SUPERNET)
    common.add_fields(group, Recipe, TRAINING)
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
    target = "c" if args.target == "c" else "tflm"
    return common.from_fields(Plan, args, target=target, recipe=common.from_fields(Recipe, args))


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
            epochs=plan.recipe.epochs,
            batch_size=plan.recipe.batch_size,
            learning_rate=plan.recipe.learning_rate,
            validation_fraction=plan.recipe.validation_fraction,
            augment_data=plan.recipe.augment_data,
            seed=plan.recipe.seed,
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
