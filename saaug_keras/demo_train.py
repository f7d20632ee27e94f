"""`make demo-train`: the main job, end to end, in minutes.

A small shift network learns 8x8 digits, once alone and once inside a larger multiplicative network; both are exported
and classify the held-out digits on TFLite Micro.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

from saaug_keras.cli import common


def make_recipe(direct: bool, epochs: int, seed: int):
    """The run of one arm; both arms differ in nothing else."""
    from saaug_keras.recipes import Recipe

    return Recipe(
        backbone="mobilenetv2-tiny",
        operator="shift",
        strides=(1, 2, 2, 1, 1),
        blocks=3,
        epochs=epochs,
        batch_size=64,
        learning_rate=0.1,
        aug_loss_weight=0.0 if direct else 1.0,
        remap=not direct,
        width=(1.0, 1.6),
        expand=(1.0, 1.6, 2.2),
        augment_data=False,
        evaluate_every=epochs,
        seed=seed,
    )


def main(argv=None) -> int:
    """Runs both arms, prints the table, writes OUT/report.json."""
    parser = argparse.ArgumentParser(prog="python -m saaug_keras.demo_train", description=__doc__)
    parser.add_argument("--out", default="demo-train", metavar="DIR", help="folder to write (default: demo-train)")
    parser.add_argument("--epochs", type=int, default=15, help="of each arm (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    common.add_common_options(parser)
    return common.run_plainly(run, parser.parse_args(argv))


def run_arm(recipe, data, out: pathlib.Path) -> dict:
    """Trains, exports and runs one network; returns its part of the report."""
    import tflm_export
    from saaug_keras import layers, recipes  # noqa: F401  the layers are registered for load_model
    from saaug_keras.cli.export import load_model

    recipes.train(recipe, data, out, resume=False)
    model = load_model(common.load_keras(), out)
    report = tflm_export.export(
        model, data.x_train[:256], out / "export", evaluation_data=(data.x_test, data.y_test), name="digits"
    )
    keys = ("float_accuracy", "tflm_accuracy", "agreement", "parameters", "flash_bytes", "ram_bytes")
    return {key: getattr(report, key) for key in keys}


def run(args) -> int:
    """The demo itself."""
    started = time.perf_counter()
    common.load_keras()
    import tflm_export.runner
    from saaug_keras import datasets
    from saaug_keras._files import write_atomic

    tflm_export.runner.require_wheel()  # before minutes of training
    data = datasets.load("digits")
    out = pathlib.Path(args.out)
    report = {}
    for arm in ("direct", "augmented"):
        common.say(args, f"training, {arm}: {args.epochs} epochs")
        report[arm] = run_arm(make_recipe(arm == "direct", args.epochs, args.seed), data, out / arm)
    report["seconds"] = time.perf_counter() - started
    write_atomic(out / "report.json", json.dumps(report, indent=1) + "\n")
    rows = [
        (label, *(report[arm][key] for arm in ("direct", "augmented")))
        for label, key in (
            ("accuracy, float", "float_accuracy"),
            ("accuracy, int8 on TFLite Micro", "tflm_accuracy"),
            ("same class in both", "agreement"),
            ("parameters", "parameters"),
            ("flash, TFLite Micro on a Cortex-M4, bytes", "flash_bytes"),
            ("RAM, bytes", "ram_bytes"),
        )
    ]
    title = f"{len(data.x_test)} held-out digits, shift network of {report['direct']['parameters']:,} parameters"
    common.show(args, report, title=title, rows=rows, columns=("", "direct", "augmented"))
    common.say(args, f"{report['seconds']:.0f} s; wrote {out / 'report.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
