"""`make demo`: a pretrained network from the zoo to TFLite Micro, in a minute.

A shift network of the zoo classifies a sheet of images, once in Keras and once, exported, in the real interpreter of
TFLite Micro; the sheet is written as a picture, the model as a file for a board. The images are bundled drawings or,
where the data set is at hand, one test image of every class.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

from saaug_keras.cli import common

ENTRY = "mobilenetv2-tiny-shift-cifar100"  # the most accurate one
LARGEST_SHEET = 100  # images


def main(argv=None) -> int:
    """Runs the demo; writes OUT/sheet.png, OUT/report.json and OUT/model/."""
    parser = argparse.ArgumentParser(prog="python -m saaug_keras.demo", description=__doc__)
    parser.add_argument("--entry", default=ENTRY, metavar="NAME", help=f"of the zoo (default: {ENTRY})")
    parser.add_argument(
        "--data", metavar="DIR", help="folder with the data set's files: its test images in place of the bundled ones"
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder to write (default: demo)")
    common.add_common_options(parser)
    return common.run_plainly(run, parser.parse_args(argv))


def run(args) -> int:
    """The demo itself."""
    started = time.perf_counter()
    from saaug_keras import zoo

    entry = zoo.Entry.read(args.entry)
    common.load_keras()
    import tflm_export
    from saaug_keras import datasets
    from saaug_keras._files import write_atomic
    from saaug_keras.zoo import making

    model = zoo.load(args.entry)
    images, labels, names, kind = choose_images(entry, args.data)
    sized = datasets.resize(images, entry.spec().input_shape[:2])
    out = pathlib.Path(args.out)
    flavour = making.flavours_of(entry)[0]
    exported = tflm_export.export(
        model, sized[:4], out / "model", flavour=flavour, name=args.entry, observation=entry.observation()
    )
    in_keras = model.predict(datasets.pipeline(sized, batch_size=64), verbose=0).argmax(axis=-1)
    on_board = tflm_export.Interpreter(out / "model" / exported.model_file).classify(sized)
    draw_sheet(images, labels, on_board, names, out / "sheet.png")
    right = int((on_board == labels).sum())
    measured = entry.measured
    report = {
        "entry": args.entry,
        "images": len(images),
        "kind": kind,
        "right_in_keras": int((in_keras == labels).sum()),
        "right_on_tflm": right,
        "same_class": int((in_keras == on_board).sum()),
        "test_accuracy_float": measured["float_accuracy"],
        "test_accuracy_tflm": measured["tflm_accuracy"],
        "parameters": exported.parameters,
        "core": exported.core,
        "flash_bytes": exported.flash_bytes,
        "ram_bytes": exported.ram_bytes,
        "seconds": time.perf_counter() - started,
    }
    write_atomic(out / "report.json", json.dumps(report, indent=1) + "\n")
    rows = [
        (f"{len(images)} {kind}, right in Keras, float", report["right_in_keras"]),
        (f"{len(images)} {kind}, right on TFLite Micro, int8", right),
        ("same class in both", report["same_class"]),
        (f"all {measured['test_images']:,} test images, float, as recorded", measured["float_accuracy"]),
        (f"all {measured['test_images']:,} test images, int8 on TFLite Micro, as recorded", measured["tflm_accuracy"]),
        ("parameters", exported.parameters),
        (f"flash, TFLite Micro on a Cortex-M4, {flavour} operators, bytes", exported.flash_bytes),
        ("RAM, bytes", exported.ram_bytes),
    ]
    common.show(args, report, title=f"{args.entry}: {entry.title}", rows=rows, columns=("", ""))
    common.say(args, f"{report['seconds']:.0f} s; wrote {out / 'sheet.png'}, {out / 'model'}/, {out / 'report.json'}")
    return 0


def choose_images(entry, data_dir):
    """(images, labels, class names, what they are): bundled ones, or the data set's, one of every class."""
    import numpy as np

    from saaug_keras import datasets, zoo

    if data_dir is None:
        data, kind = zoo.samples(entry.name), "bundled digits" if entry.dataset == "digits" else "bundled drawings"
        rows = np.arange(min(LARGEST_SHEET, len(data.x_test)))
    else:
        data, kind = datasets.load(entry.dataset, data_dir=data_dir), "test images"
        rows = np.unique(data.y_test, return_index=True)[1][:LARGEST_SHEET] if data.y_test.ndim == 1 else ()
    if data.y_test.ndim != 1:
        raise ValueError(f"demo: `--entry` must be a network that classifies images. Received: {entry.name}.")
    return data.x_test[rows], data.y_test[rows], data.class_names, kind


def draw_sheet(images, labels, found, names, file):
    """Writes the images as one picture, each under the class that was found: green if right, else red.

    Args:
        images: uint8 (N, H, W, C); labels, found: (N,) classes.
        names: of the classes.
        file: .png to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from saaug_keras._files import atomic_file

    columns = min(10, len(images))
    lines = -(-len(images) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(1.25 * columns, 1.45 * lines + 0.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, answer in zip(axes.flat, images, labels, found, strict=False):
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        right = answer == label
        name = names[answer].replace("_", " ")
        axis.set_title(name, fontsize=8, color="#00734f" if right else "#b3261e", pad=3)
    count = int((found == labels).sum())
    figure.suptitle(f"{count} of {len(images)} right; the class found on TFLite Micro stands above its image", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    with atomic_file(file) as path:
        figure.savefig(path, dpi=100, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
