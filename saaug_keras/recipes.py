"""Everything that one training run needs, as data, and the one function that runs it.

`saaug train`, the study and the zoo all train by `train(recipe, data, out)`: a run that is killed goes on from its last
finished epoch to the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import time
from dataclasses import dataclass

import numpy as np

from saaug_keras import _validate, backbones
from saaug_keras._checkpoint import MANIFEST, RunFolder
from saaug_keras._files import atomic_file, only_process, sweep, write_atomic

_LATER = {"later": True}
_OWNER = "recipes.train"
_PATIENCE = 5  # seconds between looks at a network that another process trains
_RESULTS = ("target.keras", "augmented.weights.h5", "result.json")
_WRITTEN = ("recipe.json", "history.*", "result.json", MANIFEST, "target.keras", "*.weights.h5")


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Args:
        backbone, operator, resolution, strides, width_multiplier, operator_policy: the network, as `backbones.spec`;
            resolution is one number of pixels, None for the data's own. `blocks` keeps only the first so many blocks.
            No backbone: the network is yet to come, as of a search.
        network: plain data of a `NetSpec` (`as_dict`), which then is the network whatever those say; of a search.
        epochs, batch_size, learning_rate, warmup_epochs: the learning rate rises linearly over the warm-up, then
            follows a half cosine to 0.
        optimizer: "sgd" (Nesterov momentum 0.9) or "adamw".
        weight_decay: of kernels; batch norms, biases, add kernels and the statistics of quantizers have none.
        decay: "decoupled", Keras's: w <- w - rate * weight_decay * w, past the momentum. "coupled", of "sgd" alone:
            weight_decay * w is added to the gradient, so that momentum applies to it. This is the number that papers
            quote; at momentum 0.9 the decoupled one has to be ten times it for the same effect, 5e-3 for 5e-4.
        clip_adder_kernels: as `augment`; it needs add kernels that are not remapped.
        label_smoothing, ema: of the loss; momentum of an average of the weights that is evaluated, None for none.
        dtype: Keras dtype policy.
        width, expand, aug_loss_weight, normalize_loss, distill_weight, remap: as `augment`. aug_loss_weight 0 is
            direct training.
        width_until, expand_until: shares of training after which the width and the factors inside the blocks stay 1; after
            both the target trains alone, see `callbacks.AugmentationSchedule`.
        reorder: channel reorder after every epoch of width augmentation.
        drop_blocks: blocks that are depth augmentation, phased out between the shares of training `depth_span`.
        mutation_span: shares of training between which blocks turn multiplication-free; None for none.
        layer_options: as `augment`.
        recalibrate_batches: training batches that set the batch-norm statistics before evaluation.
        augment_data: random pad-and-crop and flip.
        segmentation: arguments of `NetSpec.with_segmentation`, used where the labels are per pixel.
        validation_fraction, evaluate_every: share of the training images held out; epochs between evaluations.
        seed: of the initial weights, the drawn widths and the data's order. The split does not depend on it.
        settle, settle_from: share of its way to the grid that a kernel of a shift or binary layer is drawn after every step of
            the last epoch, 0 for none, and the share of training from which it rises to that; see `callbacks.Settling`. A
            network without such layers trains as without it, so that a study can ask it of all.
        start: the recipe, as plain data, of a network that is trained first: this one's layers start from the weights of
            those of the same name and shape, as `HybridNetwork.start_from`.
        teacher: the recipe of a network that is trained first, for images of the same shape and the same classes, whose
            outputs the target learns, too: teacher_weight and teacher_temperature as `AugmentedModel.learn_from`.
    """

    backbone: str | None = None
    operator: str = "shift"
    resolution: int | None = None
    strides: tuple[int, ...] | None = None
    width_multiplier: float = 1.0
    operator_policy: dict = dataclasses.field(default_factory=dict)
    blocks: int | None = None
    network: dict | None = None
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup_epochs: float = 1.0
    optimizer: str = "sgd"
    weight_decay: float = 4e-5
    label_smoothing: float = 0.0
    ema: float | None = None
    dtype: str = "float32"
    width: tuple[float, ...] = (1.0, 1.6, 2.2)
    expand: tuple[float, ...] = (1.0, 1.6, 2.2, 2.8)
    aug_loss_weight: float = 1.0
    normalize_loss: bool = False
    distill_weight: float = 0.0
    remap: bool = True
    width_until: float = 1.0
    reorder: bool = True
    drop_blocks: tuple[int, ...] = ()
    depth_span: tuple[float, float] = (0.1, 0.5)
    mutation_span: tuple[float, float] | None = None
    layer_options: dict = dataclasses.field(default_factory=dict)
    recalibrate_batches: int = 16
    augment_data: bool = True
    segmentation: dict = dataclasses.field(default_factory=dict)
    validation_fraction: float = 0.1
    evaluate_every: int = 1
    seed: int = 0
    # Later fields: at their default a recipe is what it was without them. Names of runs rest on that.
    decay: str = dataclasses.field(default="decoupled", metadata=_LATER)
    clip_adder_kernels: bool = dataclasses.field(default=False, metadata=_LATER)
    start: dict | None = dataclasses.field(default=None, metadata=_LATER)
    teacher: dict | None = dataclasses.field(default=None, metadata=_LATER)
    teacher_weight: float = dataclasses.field(default=1.0, metadata=_LATER)
    teacher_temperature: float = dataclasses.field(default=2.0, metadata=_LATER)
    settle: float = dataclasses.field(default=0.0, metadata=_LATER)
    settle_from: float = dataclasses.field(default=0.4, metadata=_LATER)
    expand_until: float = dataclasses.field(default=1.0, metadata=_LATER)

    def __post_init__(self):
        owner = "Recipe"
        if self.network is None and self.backbone is not None:
            _validate.one_of(owner, "backbone", self.backbone, backbones.NAMES)
        _validate.int_in(owner, "epochs", self.epochs, 1, 100_000, " epochs")
        _validate.int_in(owner, "batch_size", self.batch_size, 1, 1 << 20, " images")
        _validate.number_in(owner, "learning_rate", self.learning_rate, 1e-8, 1e3)
        _validate.number_in(owner, "warmup_epochs", self.warmup_epochs, 0, self.epochs, " epochs")
        _validate.one_of(owner, "optimizer", self.optimizer, ("adamw", "sgd"))
        _validate.number_in(owner, "weight_decay", self.weight_decay, 0, 1)
        _validate.one_of(owner, "decay", self.decay, ("coupled", "decoupled"))
        if self.decay == "coupled" and self.optimizer != "sgd":
            raise ValueError(
                f"{owner}: `decay` must be 'decoupled' with optimizer {self.optimizer!r}. Received: decay='coupled'."
            )
        _validate.one_of(owner, "clip_adder_kernels", self.clip_adder_kernels, (True, False))
        _validate.number_in(owner, "settle", self.settle, 0, 1)
        _validate.number_in(owner, "settle_from", self.settle_from, 0, 1, " of training")
        _validate.number_in(owner, "label_smoothing", self.label_smoothing, 0, 0.9)
        _validate.number_in(owner, "width_until", self.width_until, 0, 1, " of training")
        _validate.number_in(owner, "expand_until", self.expand_until, 0, 1, " of training")
        _validate.number_in(owner, "validation_fraction", self.validation_fraction, 0, 0.9)
        _validate.int_in(owner, "evaluate_every", self.evaluate_every, 1, 100_000, " epochs")
        for name in ("strides", "width", "expand", "drop_blocks", "depth_span", "mutation_span"):
            value = getattr(self, name)
            if value is not None:  # lists come from TOML
                kind = int if name in ("strides", "drop_blocks") else float  # 1 and 1.0 are the same recipe
                values = value if isinstance(value, (list, tuple)) else (value,)
                same = all(isinstance(each, (int, float)) and each == kind(each) for each in values)
                object.__setattr__(self, name, tuple(map(kind, values)) if same else tuple(values))
        for name in ("depth_span", "mutation_span"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 2:
                raise ValueError(
                    f"{owner}: `{name}` must be two shares of training, start and end. Received: {name}={getattr(self, name)}."
                )
        for name in ("start", "teacher"):
            if (first := getattr(self, name)) is not None:
                if not isinstance(first, dict):
                    raise ValueError(f"{owner}: `{name}` must be a recipe as plain data, or None. Received: {name}={first!r}.")
                try:
                    object.__setattr__(self, name, Recipe.from_dict(first).identity())
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{owner}: `{name}`: {error}") from error

    @classmethod
    def from_dict(cls, data: dict) -> Recipe:
        """A recipe from plain data, as of TOML or JSON.

        Raises:
            ValueError: an unknown key, or a value out of range.
        """
        known = sorted(field.name for field in dataclasses.fields(cls))
        for key in data:
            _validate.one_of("Recipe", "key", key, known)
        return cls(**data)

    def as_dict(self) -> dict:
        """Plain data; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    def identity(self) -> dict:
        """`as_dict` without the fields that came later and are at their default: what a run is recognised by."""
        later = [field for field in dataclasses.fields(self) if field.metadata.get("later")]
        unchanged = {field.name for field in later if getattr(self, field.name) == field.default}
        return {key: value for key, value in self.as_dict().items() if key not in unchanged}

    def replace(self, **changes) -> Recipe:
        """The same recipe with other values; unknown keys as in `from_dict`."""
        return Recipe.from_dict({**self.as_dict(), **changes})

    @property
    def epochs_in_all(self) -> int:
        """Epochs of this network and of the one that it starts from."""
        return self.epochs + (Recipe.from_dict(self.start).epochs_in_all if self.start else 0)

    @property
    def is_direct(self) -> bool:
        """Whether the target is trained alone."""
        return self.aug_loss_weight == 0 and self.distill_weight == 0

    def spec(self, input_shape, num_classes: int, *, per_pixel: bool = False) -> backbones.NetSpec:
        """The network for images of `input_shape` (H, W, C); `per_pixel` for segmentation."""
        if self.network is not None:
            return backbones.NetSpec.from_dict(self.network)
        _validate.one_of("Recipe", "backbone", self.backbone, backbones.NAMES)
        height, width, channels = input_shape
        size = (self.resolution, self.resolution) if self.resolution else (height, width)
        spec = backbones.spec(
            self.backbone,
            input_shape=(*size, channels),
            num_classes=num_classes,
            operator="conv",
            strides=self.strides,
            width=self.width_multiplier,
        )
        if self.blocks is not None:
            _validate.int_in("Recipe", "blocks", self.blocks, 1, len(spec.blocks), " blocks")
            spec = dataclasses.replace(spec, blocks=spec.blocks[: self.blocks])
        for index in self.drop_blocks:
            _validate.int_in("Recipe", "drop_blocks", index, 0, len(spec.blocks) - 1)
        spec = dataclasses.replace(
            spec,
            blocks=tuple(
                dataclasses.replace(block, kept=index not in self.drop_blocks) for index, block in enumerate(spec.blocks)
            ),
        )
        if per_pixel:
            spec = spec.with_segmentation(**self.segmentation)
        return spec.with_operator(self.operator, **self.operator_policy)


def make_model(recipe: Recipe, spec: backbones.NetSpec):
    """The `AugmentedModel` of a recipe, with its weights from the recipe's seed."""
    import keras

    from saaug_keras.training import augment

    keras.utils.set_random_seed(recipe.seed)
    direct = recipe.is_direct and not recipe.drop_blocks
    model = augment(
        spec,
        width=(1.0,) if direct else recipe.width,
        expand=(1.0,) if direct else recipe.expand,
        aug_loss_weight=recipe.aug_loss_weight,
        normalize_loss=recipe.normalize_loss,
        distill_weight=recipe.distill_weight,
        remap=recipe.remap,
        mutable=recipe.mutation_span is not None,
        layer_options=recipe.layer_options,
        clip_adder_kernels=recipe.clip_adder_kernels,
        settle=recipe.settle > 0 and _settles(spec),
        seed=recipe.seed,
        dtype=recipe.dtype,
    )
    return model


def _settles(spec):
    """Whether a network has layers that settle."""
    return any(layer.operator is not None and layer.operator.settles for layer in backbones.lower(spec, all_blocks=True))


def make_optimizer(recipe: Recipe, steps_per_epoch: int):
    """The optimizer of a recipe with its learning-rate schedule."""
    import keras

    from saaug_keras.training import CoupledSGD

    steps, warmup = recipe.epochs * steps_per_epoch, int(recipe.warmup_epochs * steps_per_epoch)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else recipe.learning_rate,
        max(1, steps - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    options = {"use_ema": recipe.ema is not None}
    if recipe.ema is not None:
        options |= {"ema_momentum": recipe.ema, "ema_overwrite_frequency": None}
    if recipe.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay, **options)
    options |= {"momentum": 0.9, "nesterov": True}
    if recipe.decay == "coupled":
        return CoupledSGD(rate, l2=recipe.weight_decay, **options)
    return keras.optimizers.SGD(rate, weight_decay=recipe.weight_decay or None, **options)


def compile_model(recipe: Recipe, model, steps_per_epoch: int, **options):
    """Compiles a model with the optimizer of a recipe, which is built; weight decay leaves out the model's
    `variables_without_decay`. `options` are further arguments of `compile`."""
    model.compile(make_optimizer(recipe, steps_per_epoch), **options)
    if excluded := model.variables_without_decay:
        # Under mixed_float16 it is the optimizer inside that decays.
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        optimizer.exclude_from_weight_decay(var_list=excluded)
    model.optimizer.build(model.trainable_variables)


def training_batches(recipe: Recipe, images, labels, epoch, **options):
    """`datasets.pipeline` of a recipe's training images; `epoch` is its `EpochCounter`."""
    from saaug_keras import datasets

    return datasets.pipeline(
        images,
        labels,
        batch_size=min(recipe.batch_size, len(images)),
        shuffle=True,
        augment=recipe.augment_data,
        seed=recipe.seed,
        epoch=epoch,
        drop_remainder=True,
        **options,
    )


def make_callbacks(recipe: Recipe, recalibration_images) -> list:
    """The callbacks of the method that a recipe asks for."""
    from saaug_keras import callbacks

    made = []
    if min(recipe.width_until, recipe.expand_until) < 1:
        spans = {"width_until": recipe.width_until, "expand_until": recipe.expand_until}
        made.append(callbacks.AugmentationSchedule(**spans, epochs=recipe.epochs))
    if recipe.drop_blocks:
        made.append(callbacks.DepthDecay(start=recipe.depth_span[0], end=recipe.depth_span[1], epochs=recipe.epochs))
    if recipe.mutation_span:
        made.append(callbacks.BlockMutation(start=recipe.mutation_span[0], end=recipe.mutation_span[1], epochs=recipe.epochs))
    if recipe.settle:
        made.append(callbacks.Settling(recipe.settle, start=recipe.settle_from, epochs=recipe.epochs))
    if recipe.reorder and not recipe.is_direct:
        # The last epochs keep their channels: what was learned after the last move is what is deployed.
        made.append(callbacks.ChannelReorder(until=max(1, math.ceil(recipe.width_until * recipe.epochs) - 1)))
    if recipe.recalibrate_batches:
        made.append(
            callbacks.BatchNormRecalibration(
                recalibration_images, batches=recipe.recalibrate_batches, batch_size=recipe.batch_size
            )
        )
    return made


def train(
    recipe: Recipe,
    data,
    out,
    *,
    resume: bool = True,
    test: bool = False,
    callbacks=(),
    verbose: int = 0,
    device_resident: bool | None = None,
    until: float | None = None,
    first=None,
) -> dict:
    """Runs a recipe and writes its folder.

    The folder gets `recipe.json`, `history.json` (one record per epoch), `target.keras` (the deployed network),
    `result.json`, and `manifest.json` last, with the SHA-256 of the others; until then it also holds the checkpoint of
    the last finished epoch or, where an epoch takes more than five minutes on the TensorFlow backend, of a moment within
    one. A run goes on, and a finished one is returned, only from files that are what was written.

    Args:
        recipe: the run.
        data: `datasets.Dataset`.
        out: folder; made if missing. A folder of a finished run of the same recipe returns its result at once.
        resume: go on from a checkpoint of the same recipe, if there is one; else start anew.
        test: also evaluate the test set, once, at the end.
        callbacks: further Keras callbacks.
        verbose: as `model.fit`.
        device_resident: whether `device_training.fit` trains in the place of `Model.fit`: on the JAX backend, at the
            data's own resolution. None for where that is possible and the device is an accelerator. Order and
            augmentation are drawn by other generators, so a run that goes on should go on in the same way.
        until: no epoch begins that would, by the last one's time, end later than this, as `time.time()` counts; one of
            more than five minutes ends within, where it has a checkpoint there.
        first: function of a recipe (`start` or `teacher`) that gives its trained network, a Keras model. Default:
            `network_of` in `out`.
    Returns:
        {"epochs", "train_seconds", "images_per_second", "val_accuracy", "val_loss", "train_accuracy" (of as many training
        images, as they are: not much above that of validation where a network underfits), "test_accuracy" (with `test`),
        "parameters"}: accuracies as fractions. Where labels are per pixel, "mean_iou" stands in the place of accuracy.
    Raises:
        OutOfTime: `until` has come; the same call goes on.
        ValueError: the folder holds another recipe's run, or a file that is damaged (with the remedy); a loss, a score
            or a weight was not finite (with the step and what to try). The run has failed then and has no result.
        BlockingIOError: another process trains in the folder.
        OSError: the folder cannot be written.
    """
    with contextlib.closing(_run(recipe, data, out, resume, test, callbacks, device_resident, until, first)) as run:
        try:
            model, on_device, fitting, further = next(run)
        except StopIteration as finished:
            return finished.value
        if on_device:
            from saaug_keras import device_training

            each = {name: [value] for name, value in further.items()}
            (evaluate,) = device_training.fit([model], **each, **fitting, verbose=verbose)
        else:
            model.fit(**fitting, verbose=verbose)
            evaluate = None
        return _finish(run, evaluate)


def train_side_by_side(
    recipes, data, outs, *, resume: bool = True, test: bool = False, callbacks=None, verbose: int = 0
) -> list:
    """`train(..., device_resident=True)` of recipes that differ in `seed` and `learning_rate` alone, at the same time.

    One program computes the steps of all, which fills an accelerator that one small network leaves idle. Each run has
    its own folder, goes on by itself and gets the numbers that it would get alone, within float error; its seconds are
    those of all.

    Args:
        recipes, outs: the runs and their folders.
        callbacks: one list of further Keras callbacks a run.
        data, resume, test, verbose: as `train`.
    Returns:
        The runs' results as `train` gives them; for a run whose loss became NaN, the ValueError that says so.
    Raises:
        ValueError: recipes that differ in more; a folder that holds another recipe's run; the backend is not JAX.
        OSError: a folder cannot be written.
    """
    from saaug_keras import device_training

    for recipe in recipes:
        if recipe.replace(seed=0, learning_rate=1.0) != recipes[0].replace(seed=0, learning_rate=1.0):
            raise ValueError(
                "recipes.train_side_by_side: `recipes` must differ in `seed` and `learning_rate` alone. Received: "
                f"{recipes[0]} and {recipe}. Train them one after another."
            )
    results, ready = {}, {}
    with contextlib.ExitStack() as stack:  # a run that is closed lets go of its folder
        runs = [
            stack.enter_context(contextlib.closing(_run(recipe, data, out, resume, test, each, True)))
            for recipe, out, each in zip(recipes, outs, callbacks or [()] * len(recipes), strict=True)
        ]
        for run in runs:
            try:
                ready[run] = next(run)
            except StopIteration as finished:
                results[run] = finished.value
        if ready:
            models, _, fittings, further = zip(*ready.values(), strict=True)
            each = {name: [one[name] for one in further] for name in further[0]}
            fitted = device_training.fit(list(models), **each, **fittings[0], verbose=verbose)
            for run, evaluate in zip(ready, fitted, strict=True):
                results[run] = evaluate if isinstance(evaluate, ValueError) else _finish(run, evaluate)
        return [results[run] for run in runs]


def network_of(recipe: Recipe, data, folder, *, until: float | None = None):
    """The deployed network of a recipe, a Keras model. It is trained in a subfolder of `folder`, unless it is there.

    Where another process trains it, it is waited for. Arguments and errors as `train`.
    """
    import keras

    from saaug_keras import layers  # noqa: F401 - registered for load_model

    out = _folder_of_first(recipe, data.name, folder)
    while True:
        try:
            train(recipe, data, out, until=until, first=functools.partial(network_of, data=data, folder=folder, until=until))
            return keras.models.load_model(out / "target.keras", compile=False)
        except BlockingIOError:
            time.sleep(_PATIENCE)


def seconds_before(recipe: Recipe, dataset: str, folder) -> float:
    """Seconds that `network_of` in `folder` trained what a recipe names, and what that names in its turn."""
    seconds = 0.0
    for each in (recipe.start, recipe.teacher):
        if each is not None:
            first = Recipe.from_dict(each)
            result = RunFolder(_folder_of_first(first, dataset, folder), _OWNER).read("result.json", dict)
            seconds += result["train_seconds"] + seconds_before(first, dataset, folder)
    return seconds


def _folder_of_first(recipe, dataset, folder):
    text = json.dumps({"dataset": dataset, **recipe.identity()}, sort_keys=True)
    return pathlib.Path(folder) / f"first-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _finish(run, evaluate):
    try:
        run.send(evaluate)
    except StopIteration as finished:
        return finished.value
    raise AssertionError("a run is fitted once")


def _run(recipe, data, out, resume, test, callbacks, device_resident, until=None, first=None):
    """A generator that stops once, where its model is to be fitted, and returns the result of the run.

    Yields:
        (model, whether the device fits it, arguments of the fit, those of them that each of several models has), and
        takes what `device_training.fit` returned for the model, or None.
    """
    import keras

    from saaug_keras import datasets, device_training
    from saaug_keras.callbacks import StopAtNonFinite

    out = pathlib.Path(out)
    if (finished := _finished(out, recipe, resume)) is not None:
        return finished
    if test and not len(data.x_test):
        raise ValueError(f"recipes.train: `data` must have test images, since test=True. '{data.name}' has none.")
    training, held_out = (data.x_train, data.y_train), None
    if recipe.validation_fraction or data.x_validation is not None:
        training, held_out = data.split(recipe.validation_fraction)
    per_pixel = data.y_train.ndim == 3
    spec = recipe.spec(data.image_shape, data.num_classes, per_pixel=per_pixel)
    device_resident = device_training.chosen(device_resident, data.image_shape, spec.input_shape)
    first = first or functools.partial(network_of, data=data, folder=out, until=until)
    start, teacher = (each and first(Recipe.from_dict(each)) for each in (recipe.start, recipe.teacher))
    model = make_model(recipe, spec)
    if start is not None:  # a checkpoint will replace its weights
        model.network.start_from(start)
    if teacher is not None:
        model.learn_from(teacher, weight=recipe.teacher_weight, temperature=recipe.teacher_temperature)
    steps = max(1, len(training[0]) // recipe.batch_size)
    loss, metric = _make_loss(recipe, data, per_pixel)
    compile_model(recipe, model, steps, loss=loss, metrics=[metric])
    score = metric if isinstance(metric, str) else metric.name
    counter = datasets.EpochCounter()
    batch_size = min(recipe.batch_size, len(training[0]))

    def labels_of(labels):
        return np.eye(data.num_classes, dtype="float32")[labels] if recipe.label_smoothing else labels

    def batches_of(images, labels, **options):
        resolution = spec.input_shape[:2]
        return datasets.pipeline(images, labels_of(labels), batch_size=batch_size, resolution=resolution, **options)

    batches = training_batches(
        recipe,
        training[0],
        labels_of(training[1]),
        counter,
        flip=data.mirror,
        resolution=spec.input_shape[:2],
        ignore_class=data.ignore_class or 0,
    )
    evaluation = held_out and batches_of(*held_out)
    calibration = batches_of(*training, shuffle=True, epoch=0)
    method = make_callbacks(recipe if model.settle else recipe.replace(settle=0.0), calibration)
    if recipe.ema is not None:
        method.insert(0, keras.callbacks.SwapEMAWeights())
    advice = f"Try a smaller learning_rate (now {recipe.learning_rate:g}), a longer warm-up, or normalize_loss=True."
    finite = StopAtNonFinite("recipes.train", advice)
    # Whatever is wrong with the recipe has been said by now; from here on the folder is written.
    with only_process(out, f"recipes.train: another process is training in {out}. Wait for it, or choose another folder."):
        if (finished := _finished(out, recipe, resume)) is not None:
            return finished
        _claim(out, recipe, resume)
        folder = RunFolder(out, _OWNER)
        checkpoint = folder.checkpoint(steps, until)
        first_epoch = checkpoint.restore(model)
        evaluated = [e for e in range(1, recipe.epochs + 1) if e % recipe.evaluate_every == 0] + [recipe.epochs]
        everyone = [counter, finite, *method, *callbacks, checkpoint]
        if device_resident:
            fitting = {
                "x": training[0],
                "y": labels_of(training[1]),
                "batch_size": batch_size,
                "augment": recipe.augment_data,
                "flip": data.mirror,
                "ignore_class": data.ignore_class or 0,
                "validation_epochs": evaluated,
                "validation_data": held_out and (held_out[0], labels_of(held_out[1])),
                "epochs": recipe.epochs,
            }
            each = {"seeds": recipe.seed, "initial_epochs": first_epoch, "callbacks": everyone}
            on_device = yield model, True, fitting, each
        else:
            fitting = {
                "x": batches,
                "validation_data": evaluation,
                "validation_freq": evaluated,
                "epochs": recipe.epochs,
                "initial_epoch": first_epoch,
                "callbacks": everyone,
                "shuffle": False,  # the pipeline shuffles
            }
            on_device = yield model, False, fitting, {}

        def scores_of(images, labels, batches):
            if on_device is None:
                return model.evaluate(batches, verbose=0, return_dict=True)
            return on_device(images, labels_of(labels))

        result = {
            "epochs": recipe.epochs,
            "train_seconds": checkpoint.train_seconds,
            "images_per_second": recipe.epochs * steps * recipe.batch_size / max(checkpoint.train_seconds, 1e-9),
            "parameters": backbones.count_parameters(spec),
        }
        if evaluation is not None:
            scores = scores_of(*held_out, evaluation)
            result |= {f"val_{score}": scores[score], "val_loss": scores["loss"]}
            some = np.random.default_rng(0).permutation(len(training[0]))[: len(held_out[0])]
            some = (training[0][some], training[1][some])
            result[f"train_{score}"] = scores_of(*some, batches_of(*some))[score]
        if test:
            scores = scores_of(data.x_test, data.y_test, batches_of(data.x_test, data.y_test))
            result |= {f"test_{score}": scores[score], "test_loss": scores["loss"]}
        finite.on_epoch_end(recipe.epochs - 1, result)  # the last statistics came after the last epoch
        with atomic_file(out / "target.keras") as path:
            model.export_target().save(path)
        with atomic_file(out / "augmented.weights.h5") as path:
            model.save_weights(path)
        write_atomic(out / "result.json", json.dumps(result, indent=1))
        folder.seal(checkpoint.history, _RESULTS)
        checkpoint.remove()
        return result


def _make_loss(recipe, data, per_pixel):
    """The loss and the metric of a data set."""
    import keras

    if per_pixel:
        if recipe.label_smoothing:
            raise ValueError(
                "Recipe: `label_smoothing` must be 0 where labels are per pixel. Received: "
                f"label_smoothing={recipe.label_smoothing}."
            )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=data.ignore_class)
        return loss, keras.metrics.MeanIoU(
            data.num_classes, ignore_class=data.ignore_class, sparse_y_pred=False, name="mean_iou"
        )
    if recipe.label_smoothing:
        smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
        return smoothed, "accuracy"
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True), "accuracy"


def _is_mine(out, recipe, resume):
    """Whether the folder holds this recipe's run, to go on with.

    Raises:
        ValueError: it holds another one.
    """
    path = out / "recipe.json"
    if not (resume and path.exists()):
        return False
    try:
        theirs = Recipe.from_dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"recipes.train: {path} is damaged, or of a later version: {error} Choose another folder, or pass "
            "resume=False to replace the run in this one."
        ) from error
    if _plain(theirs) != _plain(recipe):
        raise ValueError(
            f"recipes.train: `out` must be a new folder or one of the same recipe. Received: {out}, which holds another "
            "recipe's run. Choose another folder, or pass resume=False to replace it."
        )
    return True


def _plain(recipe):
    """As JSON gives it back, with lists in the place of tuples: fields that a file lacks are at their default."""
    return json.loads(json.dumps(recipe.as_dict()))


def _claim(out, recipe, resume):
    """Makes the folder this recipe's, and clears away what a run that was killed was writing."""
    sweep(out, *_WRITTEN)
    if not _is_mine(out, recipe, resume):
        for pattern in _WRITTEN:
            for old in out.glob(pattern):
                old.unlink()
        write_atomic(out / "recipe.json", json.dumps(recipe.as_dict(), indent=1))


def _finished(out, recipe, resume):
    """The result that the folder holds of this recipe, None while there is none.

    Raises:
        ValueError: it is another recipe's folder, or damaged.
    """
    if not (_is_mine(out, recipe, resume) and (out / "result.json").exists()):
        return None
    folder = RunFolder(out, _OWNER)
    manifest = folder.manifest()
    if manifest is not None:  # an earlier version wrote none
        if "result.json" not in manifest["files"]:
            return None  # killed between the two: the last epoch's checkpoint is still there
        folder.history(manifest["epoch"], manifest)
        for name in _RESULTS:
            if name == "result.json" or (out / name).exists():  # networks may have been moved elsewhere
                folder.check(name, manifest)
    result = folder.read("result.json", dict)
    broken = [key for key, value in result.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise ValueError(
            f"recipes.train: {out} holds a run that failed: {broken[0]} must be finite. Received: "
            f"{broken[0]}={result[broken[0]]}. Choose another recipe and folder, or pass resume=False to train anew."
        )
    return result
