"""A queue of small networks for a GPU that is there for a quarter of an hour: JAX, no TensorFlow, the best first.

    python benchmarks/gpu_queue.py pack --data-dir FOLDER --data PARTS      anywhere
    python benchmarks/gpu_queue.py train --data PARTS --out OUT --minutes 9  on the machine with the GPU
    python benchmarks/gpu_queue.py train --rehearse --out OUT               the same on a CPU, made small

`pack` writes a data set as .npz parts that travel one by one. `train` takes the groups of QUEUE in their order; the runs
of a group (seeds) train side by side. It stops at the end of an epoch before its minutes are over, and a later call with
the same OUT goes on. Then OUT/summary.json has every run's curve and speed, and OUT/results-NN.zip, of at most 15 MiB
each, the weights and checkpoints; unpacked over another OUT they are gone on with there.
"""

import argparse
import json
import os
import pathlib
import time
import zipfile

SHIFT, CONV = {"operator": "shift"}, {"operator": "conv"}
# Shift between the adds: it trains better than adds everywhere. Clipping needs kernels of their own.
MIXED = {"operator": "adder/shift/adder"}
CLIPPED = {"clip_adder_kernels": True}
DIRECT = {"aug_loss_weight": 0.0, "remap": False}
AUGMENTED = {"width": (2.0,), "expand": (1.0,), "normalize_loss": True}
# Learning rates: what validation chose for networks of this size after ten epochs.
SMALL, LARGE = {"backbone": "tiny32-44k"}, {"backbone": "tiny32-93k"}
QUEUE = {
    "44k-shift-direct": SMALL | SHIFT | DIRECT | {"learning_rate": 0.2},
    "44k-shift-augmented": SMALL | SHIFT | AUGMENTED | {"learning_rate": 0.2},
    "44k-conv-direct": SMALL | CONV | DIRECT | {"learning_rate": 0.2},
    "44k-add-direct": SMALL | MIXED | DIRECT | CLIPPED | {"learning_rate": 0.4},
    "44k-add-augmented": SMALL | MIXED | AUGMENTED | {"learning_rate": 0.2},
    "44k-conv-augmented": SMALL | CONV | AUGMENTED | {"learning_rate": 0.2},
    "93k-shift-direct": LARGE | SHIFT | DIRECT | {"learning_rate": 0.2},
    "93k-shift-augmented": LARGE | SHIFT | AUGMENTED | {"learning_rate": 0.2},
}
PART_BYTES, ZIP_BYTES = 15 << 20, 15 << 20
STARTING_SECONDS = 90  # of a group, to compile; with less left none is begun


def pack(args):
    import numpy as np

    from saaug_keras import datasets

    data = datasets.load(args.dataset, data_dir=args.data_dir)
    args.data.mkdir(parents=True, exist_ok=True)
    number = 0
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        count = max(1, PART_BYTES // x[0].nbytes)
        for start in range(0, len(x), count):
            rows = slice(start, start + count)
            np.savez_compressed(args.data / f"part-{number:02}.npz", **{f"x_{part}": x[rows], f"y_{part}": y[rows]})
            number += 1
    facts = {"name": data.name, "class_names": data.class_names, "mirror": data.mirror, "parts": number}
    (args.data / "facts.json").write_text(json.dumps(facts))
    print(f"{number} parts in {args.data}")


def read_parts(folder):
    import numpy as np

    from saaug_keras import datasets

    facts = json.loads((folder / "facts.json").read_text())
    files = sorted(folder.glob("part-*.npz"))
    if len(files) != facts["parts"]:
        raise SystemExit(f"gpu_queue: {folder} must hold {facts['parts']} parts. Received: {len(files)}.")
    arrays = {}
    for file in files:
        with np.load(file) as part:
            for name in part.files:
                arrays.setdefault(name, []).append(part[name])
    arrays = {name: np.concatenate(parts) for name, parts in arrays.items()}
    return datasets.Dataset(facts["name"], class_names=tuple(facts["class_names"]), mirror=facts["mirror"], **arrays)


def made_up():
    """Some images whose mean colour tells the class, for the rehearsal."""
    import numpy as np

    from saaug_keras import datasets

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 100, 640).astype("int32")
    images = (generator.integers(0, 155, (640, 32, 32, 3)) + labels[:, None, None, None]).astype("uint8")
    names = tuple(map(str, range(100)))
    return datasets.Dataset("made-up", images[:512], labels[:512], images[512:], labels[512:], names)


def train(args):
    os.environ["KERAS_BACKEND"] = "jax"
    # What one call compiled, and one model of a group, the others take from here.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(args.out.resolve() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if args.rehearse:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import keras

    from saaug_keras import recipes

    class OutOfTime(Exception):
        pass

    class Deadline(keras.callbacks.Callback):
        """Stops before an epoch that would end too late: by then every run has its checkpoint."""

        epoch_seconds, began = 0.0, None

        def on_epoch_begin(self, epoch, logs=None):
            now = time.monotonic()
            if self.began is not None:
                self.epoch_seconds = now - self.began
            self.began = now
            if now + 1.2 * self.epoch_seconds > deadline:
                raise OutOfTime

        def on_epoch_end(self, epoch, logs=None):
            if self.speaks:
                shown = {name: round(float(value), 4) for name, value in logs.items() if name in SHOWN}
                print(f"  epoch {epoch + 1}: {time.monotonic() - self.began:.1f} s {shown}", flush=True)

        def __init__(self, speaks):
            super().__init__()
            self.speaks = speaks

    started = time.monotonic()
    deadline = started + 60 * args.minutes
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, Keras {keras.__version__}", flush=True)
    data = read_parts(args.data) if args.data else made_up()
    images = len(data.split(0.1)[0][0]) // args.batch_size * args.batch_size
    queue = [name for name in QUEUE if not args.only or name in args.only]
    summary = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "dtype": args.dtype}
    for name in queue:
        runs = [
            recipes.Recipe.from_dict(
                {
                    **QUEUE[name],
                    "epochs": args.epochs,
                    "batch_size": args.batch_size,
                    "seed": seed,
                    "dtype": args.dtype,
                    "evaluate_every": max(1, args.epochs // 20),
                    "warmup_epochs": min(3, args.epochs / 4),
                }
            )
            for seed in range(args.seeds)
        ]
        outs = [args.out / name / f"seed{seed}" for seed in range(args.seeds)]
        done = all((out / "result.json").exists() for out in outs)
        if not done and deadline - time.monotonic() < STARTING_SECONDS:
            print(f"{name}: not begun, {deadline - time.monotonic():.0f} s are left", flush=True)
            break
        print(f"{name}: {'is finished' if done else 'trains'}", flush=True)
        try:
            recipes.train_side_by_side(
                runs, data, outs, test=True, callbacks=[[Deadline(index == 0)] for index in range(len(runs))]
            )
        except OutOfTime:
            print(f"{name}: stopped at the deadline", flush=True)
            break
        finally:
            summary["runs"] = [facts for each in QUEUE if (facts := facts_of(args.out / each, images))]
            (args.out / "summary.json").write_text(json.dumps(summary, indent=1))
    write_zips(args.out)
    for group in summary["runs"]:
        print(json.dumps({key: value for key, value in group.items() if key != "curves"}))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


SHOWN = ("loss", "accuracy", "val_accuracy")


def facts_of(folder, images):
    """What is known of a group: its runs' curves and results, and images per second of all its runs together, of
    epochs of so many images."""
    import statistics

    found = {"group": folder.name, "epochs": {}, "results": {}, "curves": {}}
    seconds = []
    for history in sorted(folder.glob("*/history.json")):
        seed, rows = history.parent.name, json.loads(history.read_text())
        recipe = json.loads((history.parent / "recipe.json").read_text())
        found["epochs"][seed], found["curves"][seed] = f"{len(rows)} of {recipe['epochs']}", rows
        seconds += [row["seconds"] for row in rows[1:]]  # the first one compiles
        if (history.parent / "result.json").exists():
            found["results"][seed] = json.loads((history.parent / "result.json").read_text())
    if not found["epochs"]:
        return None
    if seconds:
        found["images_per_second"] = len(found["epochs"]) * images / statistics.median(seconds)
    return found


def write_zips(out):
    """The runs' files, smallest first, in archives that stay below ZIP_BYTES where no single file is larger."""
    for old in out.glob("results-*.zip"):
        old.unlink()
    files = sorted(
        (file for file in out.glob("*/*/*") if file.is_file() and file.parts[-3] in QUEUE), key=lambda file: file.stat().st_size
    )
    number, size, archive = 0, 0, None
    for file in files:
        if archive is None or size + file.stat().st_size > ZIP_BYTES:
            if archive is not None:
                archive.close()
            archive, number, size = zipfile.ZipFile(out / f"results-{number:02}.zip", "w", zipfile.ZIP_DEFLATED), number + 1, 0
        archive.write(file, file.relative_to(out))
        size += file.stat().st_size
    if archive is not None:
        archive.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--dataset", default="cifar100")
    packing.add_argument("--data-dir", type=pathlib.Path)
    packing.add_argument("--data", type=pathlib.Path, required=True)
    packing.set_defaults(run=pack)
    training = commands.add_parser("train")
    training.add_argument("--data", type=pathlib.Path)
    training.add_argument("--out", type=pathlib.Path, required=True)
    training.add_argument("--minutes", type=float, default=9.0, help="of this call; no part of it takes longer")
    training.add_argument("--epochs", type=int, default=60)
    training.add_argument("--seeds", type=int, default=3)
    training.add_argument("--batch-size", type=int, default=128)
    training.add_argument("--dtype", default="float32", help='or "mixed_bfloat16": activations in bfloat16')
    training.add_argument("--only", nargs="+", choices=list(QUEUE))
    training.add_argument("--rehearse", action="store_true", help="made-up images, two epochs, two seeds")
    training.set_defaults(run=train)
    args = parser.parse_args()
    if getattr(args, "rehearse", False):
        args.epochs, args.seeds, args.only = 2, 2, args.only or ["44k-shift-direct", "44k-shift-augmented"]
    elif args.run is train and args.data is None:
        parser.error("train needs --data or --rehearse")
    args.run(args)


if __name__ == "__main__":
    main()
