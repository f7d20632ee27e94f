"""`saaug train`: trains a network, by default inside an augmented one, and writes the deployed network."""

from __future__ import annotations

import json
import pathlib
import time

from saaug_keras._page import duration
from saaug_keras.cli import common
from saaug_keras.recipes import Recipe

TRAINING = {
    "epochs": "how often every image is seen",
    "batch_size": "images per step",
    "learning_rate": "its peak; cosine decay to 0",
    "warmup_epochs": "linear rise before the peak",
    "optimizer": ("sgd with Nesterov momentum 0.9, or adamw", {"choices": ("adamw", "sgd")}),
    "weight_decay": "of kernels",
    "decay": (
        "whether momentum applies to the weight decay, as papers have it: coupled; or not, as Keras has it",
        {"choices": ("coupled", "decoupled")},
    ),
    "clip_adder_kernels": "clip add kernels to the range of their inputs after every step; needs --direct or --no-remap",
    "settle": "share of its way to the grid that a shift or binary kernel is drawn after every step of the last epoch, 3e-3 "
    "say",
    "settle_from": "share of training from which it rises to that",
    "label_smoothing": "in [0, 0.9]",
    "ema": "momentum of an average of the weights, which is evaluated and kept",
    "dtype": "Keras dtype policy, for example mixed_float16",
    "seed": "of weights, drawn widths and data order",
    "validation_fraction": "of the training images",
    "augment_data": ("no random shift and mirror of images", {"flag": "--no-data-augmentation"}),
}
NETWORK = {
    "resolution": "pixels; images are resized (default: the data's own)",
    "strides": "of the stem and the stages, in place of the backbone's own",
    "blocks": "keep only the first so many blocks",
    "width_multiplier": "of all channels",
}
AUGMENTATION = {
    "width": "factors of all channels",
    "expand": "factors inside the blocks",
    "aug_loss_weight": "of the augmented loss",
    "normalize_loss": "divide the sum of losses by 1 + aug-loss-weight",
    "distill_weight": "of the augmented network as a teacher",
    "width_until": "share of training after which the width stays 1",
    "expand_until": "share of training after which the factors inside the blocks stay 1; after both, the target trains alone",
    "drop_blocks": "residual blocks that are trained and then phased out: depth augmentation",
    "depth_span": "shares of training between which they go",
    "mutation_span": "shares of training between which blocks turn multiplication-free, one after another (default: they are "
    "so from the start)",
    "remap": "no Gaussian-to-Laplace remap of shared weights",
    "reorder": "no channel reorder after each epoch",
}
FIRST = {
    "start": "folder of a run whose weights this one starts from, of a layer of products for one of products: a shift network "
    "from its multiplicative twin, say",
    "teacher": "folder of a run whose network's outputs this one learns, too",
}
LESSON = {"teacher_weight": "of what the teacher says, in the loss", "teacher_temperature": "of the softmax of both"}


def add_parser(subparsers):
    """The parser of `saaug train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a network inside an augmented one",
        description="Trains a network and writes a folder: target.keras (the deployed network), recipe.json, "
        "history.json and history.csv (one row per epoch), result.json. A killed run goes on with --resume, to the "
        "numbers that it would have reached.",
    )
    common.add_fields(parser, Recipe, {"backbone": ("for example mcunet-in0, mobilenetv2-tiny", {"required": True})})
    common.add_operator_option(parser)
    parser.add_argument(
        "--dataset", required=True, help="digits, cifar10, cifar100, camvid, or folder for your own images in --data"
    )
    parser.add_argument("--data", metavar="DIR", help="folder with the data set's files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--test", action="store_true", help="evaluate the test images, once, at the end")

    common.add_fields(parser.add_argument_group("training"), Recipe, TRAINING)
    common.add_fields(parser.add_argument_group("network"), Recipe, NETWORK)
    group = parser.add_argument_group("augmentation")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--augment", dest="direct", action="store_false", help="train inside a larger multiplicative network (the default)"
    )
    which.add_argument("--direct", action="store_true", help="train the network alone")
    parser.set_defaults(direct=False)
    common.add_fields(group, Recipe, AUGMENTATION)
    group = parser.add_argument_group("networks trained before")
    for name, text in FIRST.items():
        group.add_argument(f"--{name}", metavar="RUN", help=text)
    common.add_fields(group, Recipe, LESSON)

    parser.add_argument("--tensorboard", metavar="DIR", help="write TensorBoard logs there")
    return parser


def make_recipe(args):
    """The `Recipe` that the arguments ask for."""
    # Directly there is no augmented loss, and the remap belongs to shared weights.
    alone = {"aug_loss_weight": 0.0, "distill_weight": 0.0, "remap": False} if args.direct else {}
    return common.from_fields(Recipe, args, **alone, **{name: run and recipe_of(name, run) for name, run in runs_of(args)})


def runs_of(args):
    """[(option, folder or None)] of the runs that this one builds on."""
    return [(name, getattr(args, name)) for name in FIRST]


def recipe_of(option, run) -> dict:
    """The recipe of a run's folder, as plain data."""
    try:
        return Recipe.from_dict(json.loads((pathlib.Path(run) / "recipe.json").read_text())).identity()
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"train: `--{option}` must be the folder of a run, as this command writes it. Received: {run}: {error}"
        ) from error


def run(args) -> int:
    """Trains."""
    keras = common.load_keras()
    from saaug_keras import datasets, recipes

    recipe = make_recipe(args)
    out = pathlib.Path(args.out)
    if (out / "recipe.json").exists() and not (args.resume or args.overwrite):
        raise ValueError(
            f"train: `--out` must be a new folder. Received: {out}, which holds a run. Pass --resume to go on or "
            "--overwrite to replace it."
        )
    data = datasets.load(args.dataset, data_dir=args.data, resolution=args.resolution)
    # Its errors come before anything is written.
    recipe.spec(data.image_shape, data.num_classes, per_pixel=data.y_train.ndim == 3)
    callbacks = [make_reporter(recipe, args)]
    if args.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(args.tensorboard))
    folders = {json.dumps(getattr(recipe, name)): pathlib.Path(run) for name, run in runs_of(args) if run}

    def first(of):
        folder = folders[json.dumps(of.identity())]
        recipes.train(of, data, folder)  # goes on, if it was not at its end
        return keras.models.load_model(folder / "target.keras", compile=False)

    result = recipes.train(recipe, data, out, resume=not args.overwrite, test=args.test, callbacks=callbacks, first=first)
    write_csv(out)
    common.show(args, {"out": str(out), **result}, title=f"{recipe.backbone}, {recipe.operator}, {data.name}")
    return 0


def write_csv(out: pathlib.Path):
    """history.csv beside history.json, for spreadsheets."""
    import csv
    import io
    import json

    from saaug_keras._files import write_atomic

    history = json.loads((out / "history.json").read_text())
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(history)
    write_atomic(out / "history.csv", text.getvalue())


def make_reporter(recipe, args):
    """The callback that prints one line per epoch, and on a terminal a line that moves within the epoch."""
    import keras

    class Reporter(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.started, self.progress, self.first_epoch = time.monotonic(), common.Progress(), None

        def on_epoch_begin(self, epoch, logs=None):
            self.first_epoch = epoch if self.first_epoch is None else self.first_epoch
            self.epoch, self.first_step_end = epoch, None

        def on_train_batch_end(self, batch, logs=None):
            now = time.monotonic()
            if self.first_step_end is None:  # the first step, which traces the graph, is not counted
                self.first_step_end = now
                return
            steps = self.params["steps"]
            self.speed = batch * recipe.batch_size / (now - self.first_step_end)
            left = ((recipe.epochs - self.epoch) * steps - batch - 1) * recipe.batch_size / self.speed
            self.progress.update(
                f"epoch {self.epoch + 1}/{recipe.epochs}  step {batch + 1}/{steps}  loss {logs['loss']:.3f}  "
                f"{self.speed:,.0f} img/s  {duration(left)} left"
            )

        def on_epoch_end(self, epoch, logs=None):
            elapsed = time.monotonic() - self.started
            left = elapsed / (epoch + 1 - self.first_epoch) * (recipe.epochs - epoch - 1)
            shown = (
                "loss",
                "target_loss",
                "augmented_loss",
                "accuracy",
                "mean_iou",
                "val_loss",
                "val_accuracy",
                "val_mean_iou",
            )
            values = "  ".join(f"{key} {logs[key]:.4f}" for key in shown if key in logs)
            speed = f"{self.speed:,.0f} img/s  " if self.params["steps"] > 1 else ""
            self.progress.clear()
            common.say(args, f"epoch {epoch + 1}/{recipe.epochs}  {values}  {speed}{duration(left)} left")

    return Reporter()
