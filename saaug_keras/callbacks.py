"""Callbacks of the method: channel reorder, batch-norm recalibration, block-variant training, depth decay, schedule.

Every schedule is a function of the epoch alone or lives in the model's weights, so that a resumed run goes on as the
uninterrupted one would.
"""

from __future__ import annotations

import keras
import numpy as np

from saaug_keras import _backend, _validate
from saaug_keras.training import AugmentedModel


class _NetworkCallback(keras.callbacks.Callback):
    """A callback of an `AugmentedModel`."""

    @property
    def network(self):
        if not isinstance(self.model, AugmentedModel):
            raise TypeError(
                f"{type(self).__name__}: the model must be an AugmentedModel, as saaug_keras.augment returns. "
                f"Received: {type(self.model).__name__}."
            )
        return self.model.network


def _read(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


class ChannelReorder(_NetworkCallback):
    """Moves the important channels of every block into the target's slice at the end of an epoch.

    For each inverted residual the expanded channels are sorted by the l1 norm of the projection's latent rows, and the
    expansion's outputs, the depthwise kernel, squeeze-excite, the batch norms and the projection's inputs are permuted
    alike, with the optimizer's slots. A network whose operators all multiply computes the same function afterwards.
    Channels of the residual stream, stem and head stay where they are, and so do those of a block whose channels move
    (operator "channelshift"), each by its place.

    Args:
        every: int >= 1, epochs between reorders.
        until: last epoch (counted from 1) that reorders; None for all. Width augmentation's end is usual.
    Source: ShiftAddAug, arXiv:2407.02881, section 6; NetAug, arXiv:2110.08890.
    """

    def __init__(self, *, every: int = 1, until: int | None = None):
        super().__init__()
        self.every = _validate.int_in("ChannelReorder", "every", every, 1, 1 << 20, " epochs")
        self.until = until if until is None else _validate.int_in("ChannelReorder", "until", until, 1, 1 << 20)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 and (self.until is None or epoch < self.until):
            reorder_channels(self.network, self.model.optimizer)


def reorder_channels(network, optimizer=None) -> dict:
    """One reorder of a `HybridNetwork`; see `ChannelReorder`.

    Returns:
        {block index: permutation}, where new channel i was channel permutation[i].
    """
    permutations = {}
    for index in range(len(network.spec.blocks)):
        parts = [layer for layer in network.layer_specs if layer.block == index]
        inside = {layer.name for layer in parts if layer.scale == "expand"}
        if not inside:
            continue  # without an expansion the block works on the residual stream
        if any(layer.operator is not None and layer.operator.moves for layer in parts):
            continue  # where a channel moves to is its place's, not its own
        project = [layer for layer in parts if layer.inputs[0] in inside and layer.scale == "width"][0]
        importance = np.abs(_read(network.weighted[project.name].kernel)).sum(axis=(0, 1, 3))
        permutation = np.argsort(-importance, kind="stable")
        permutations[index] = permutation
        if (permutation == np.arange(len(permutation))).all():
            continue
        for layer in parts:
            _permute_layer(network, layer, layer.inputs[0] in inside, layer.name in inside, permutation, optimizer)
    return permutations


def _permute_layer(network, layer, inputs_move, outputs_move, permutation, optimizer):
    if layer.operator is not None:
        operation = network.weighted[layer.name]
        if layer.kind == "depthwise":
            _permute(operation.kernel, 2, permutation, optimizer)
        else:
            if inputs_move:
                _permute(operation.kernel, 2, permutation, optimizer)
            if outputs_move:
                _permute(operation.kernel, 3, permutation, optimizer)
        if layer.use_bias and outputs_move:
            _permute(operation.bias, 0, permutation, optimizer)
    if layer.batch_norm and outputs_move:
        norm = network.norms[layer.name]
        _permute(norm.gamma, 0, permutation, optimizer)
        _permute(norm.beta, 0, permutation, optimizer)
        for target, augmented in (
            (norm.moving_mean, norm.augmented_moving_mean),
            (norm.moving_variance, norm.augmented_moving_variance),
        ):
            # A channel that comes into the target from outside brings the only statistics that it has.
            known = _read(augmented)
            channels = target.shape[0]
            everything = known.copy()
            everything[:channels] = _read(target)
            target.assign(everything[permutation][:channels])
            augmented.assign(known[permutation])


def _permute(variable, axis, permutation, optimizer):
    for each in (variable, *optimizer_slots(optimizer, variable)):
        each.assign(np.take(_read(each), permutation, axis=axis))


def optimizer_slots(optimizer, variable) -> list:
    """The optimizer's variables that belong to `variable`: momenta, second moments, its moving average.

    Keras names a slot `<optimizer>/<path of the variable, / as _>_<slot>`.
    """
    if optimizer is None or not optimizer.built:
        return []
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # LossScaleOptimizer
    stem = variable.path.replace("/", "_") + "_"
    return [slot for slot in inner.variables if slot.name.startswith(stem) and slot.shape == variable.shape]


class _Schedule(_NetworkCallback):
    """A schedule over a span of training, given as shares of it: a pure function of the epoch."""

    def __init__(self, start, end, epochs):
        super().__init__()
        owner = type(self).__name__
        self.start = _validate.number_in(owner, "start", start, 0, 1, " of training")
        self.end = _validate.number_in(owner, "end", end, 0, 1, " of training")
        if not start < end:
            raise ValueError(f"{owner}: `end` must be greater than `start`. Received: start={start}, end={end}.")
        self.epochs = epochs if epochs is None else _validate.int_in(owner, "epochs", epochs, 1, 1 << 20, " epochs")

    def progress(self, epoch: int) -> float:
        """How far the span has gone at the beginning of an epoch (from 0): 0 before `start`, 1 from `end` on.

        The span closes at the last epoch at the latest, so that the final epoch trains the network that is deployed.
        """
        epochs = self.epochs or self.params["epochs"]
        first, last = self.start * epochs, min(self.end * epochs, epochs - 1)
        if epoch >= last:
            return 1.0
        return max(0.0, (epoch - first) / (last - first)) if last > first else 0.0


class DepthDecay(_Schedule):
    """Phases the blocks of depth augmentation out of the target: its gate falls linearly from 1 to 0.

    A block with `kept=False` computes x + gate * f(x) in the target pass and x + f(x) in the augmented pass; at gate 0
    the target is exactly the network without it, which `export_target` checks. Logged as "depth_gate".

    Args:
        start, end: shares of training in [0, 1] at which the gate begins to fall and reaches 0.
        epochs: length of training; default: that of `fit`.
    Raises:
        ValueError: `end` is not greater than `start`.
    """

    def __init__(self, *, start: float = 0.1, end: float = 0.5, epochs: int | None = None):
        super().__init__(start, end, epochs)

    def on_epoch_begin(self, epoch, logs=None):
        self.network.depth_gate.assign(1.0 - self.progress(epoch))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["depth_gate"] = float(_read(self.network.depth_gate))


class Settling(_Schedule):
    """Draws kernels towards the grid that they are rounded to, ever more: the share rises linearly from 0.

        k <- k - pull * (k - round(k))    after every step;  pull = strength * progress

    The gradient passes straight through the rounding, so it carries a weight to the edge between two powers of two and there
    back and forth; on so coarse a grid that is much noise for all other weights, and a smaller learning rate does not
    lessen it. Drawn inwards, a weight changes sides only where the gradient insists. Needs a model built with `settle=True`.
    Logged as "pull".

    Args:
        strength: of the last epoch, in (0, 1]; 3e-3 settles a kernel within some hundred steps.
        start: share of training in [0, 1) from which it rises.
        epochs: length of training; default: that of `fit`.
    Source: the dampening of Nagel et al. 2022, arXiv:2203.11086, as a step of its own in the place of a loss.
    """

    def __init__(self, strength: float = 3e-3, *, start: float = 0.4, epochs: int | None = None):
        super().__init__(start, 1.0, epochs)
        self.strength = _validate.number_in("Settling", "strength", strength, 1e-9, 1)

    def on_epoch_begin(self, epoch, logs=None):
        if not (self.network and self.model.settle):
            raise ValueError("Settling: the model must be built with settle=True, augment(..., settle=True).")
        self.model.pull.assign(self.strength * self.progress(epoch))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["pull"] = float(_read(self.model.pull))


class BlockMutation(_Schedule):
    """Block-variant training: the target starts multiplicative and its blocks turn multiplication-free, shallow first.

    Needs a model built with `mutable=True`. A block that turns starts with fresh batch-norm statistics of the target.
    Logged as "mutated_blocks"; stem and head count as blocks.

    Args:
        start, end: shares of training in [0, 1] between which the blocks turn, one after another.
        epochs: length of training; default: that of `fit`.
        schedule: function (progress in [0, 1]) -> share of blocks turned in [0, 1]; default: linear.
    Raises:
        ValueError: `end` is not greater than `start`, or the model is not mutable.
    """

    def __init__(self, *, start: float = 0.1, end: float = 0.6, epochs: int | None = None, schedule=None):
        super().__init__(start, end, epochs)
        self.schedule = schedule or (lambda progress: progress)
        self._turned = 0

    def on_epoch_begin(self, epoch, logs=None):
        network = self.network
        if not network.mutable:
            raise ValueError("BlockMutation: the model must be built with augment(..., mutable=True).")
        groups = mutation_groups(network)
        self._turned = int(np.floor(self.schedule(self.progress(epoch)) * len(groups) + 1e-9))
        for position, group in enumerate(groups):
            turned = position < self._turned
            for name in group:
                gate = network.weighted[name].gate
                if float(_read(gate)) != turned:
                    gate.assign(float(turned))
                    if turned and name in network.norms:
                        network.norms[name].reset_target_statistics()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["mutated_blocks"] = self._turned


def mutation_groups(network) -> list[list[str]]:
    """Names of the layers that turn together: stem, blocks, head, shallow to deep; layers without a gate left out."""
    groups, previous = [], object()
    for layer in network.layer_specs:
        if layer.operator is None or getattr(network.weighted[layer.name], "gate", None) is None:
            continue
        key = layer.block if layer.block is not None else ("before" if not groups else "after")
        if key != previous:
            groups.append([])
            previous = key
        groups[-1].append(layer.name)
    return groups


class AugmentationSchedule(_NetworkCallback):
    """NetAug's schedule: width and expand augmentation for the first part of training, expand alone after it.

    An augmentation that has ended stays at the smallest factor of its list, which therefore should be 1. Where both have
    ended, the augmented network would be the target once more: from there on the target trains alone, at direct cost and
    with the gradient of one loss.

    Args:
        width_until, expand_until: shares of training in [0, 1] at which each ends.
        epochs: length of training; default: that of `fit`.
    """

    def __init__(self, *, width_until: float = 0.5, expand_until: float = 1.0, epochs: int | None = None):
        super().__init__()
        owner = type(self).__name__
        self.width_until = _validate.number_in(owner, "width_until", width_until, 0, 1, " of training")
        self.expand_until = _validate.number_in(owner, "expand_until", expand_until, 0, 1, " of training")
        self.epochs = epochs if epochs is None else _validate.int_in(owner, "epochs", epochs, 1, 1 << 20, " epochs")

    def on_epoch_begin(self, epoch, logs=None):
        self.network  # noqa: B018 - the check of the model's class
        epochs = self.epochs or self.params["epochs"]
        width, expand = (epoch < until * epochs for until in (self.width_until, self.expand_until))
        self.model.width_enabled.assign(int(width))
        self.model.expand_enabled.assign(int(expand))
        self.model.train_alone(not (width or expand))


class BatchNormRecalibration(_NetworkCallback):
    """Measures the target's batch-norm statistics on training images before every evaluation and at the end.

    Shared weights move under both losses, so running averages lag; a fresh mean over some thousand images does not.

    Args:
        dataset: images, or batches of images or of (images, ...), as `model.fit` takes them.
        batches: int >= 1, how many batches to use.
        batch_size: int >= 1, used when `dataset` is one array.
    """

    def __init__(self, dataset, *, batches: int = 16, batch_size: int = 128):
        super().__init__()
        self.dataset = dataset
        self.batches = _validate.int_in("BatchNormRecalibration", "batches", batches, 1, 1 << 20, " batches")
        self.batch_size = _validate.int_in("BatchNormRecalibration", "batch_size", batch_size, 1, 1 << 20, " images")
        self._fresh = False
        self._statistics = None

    def on_train_batch_end(self, batch, logs=None):
        self._fresh = False

    def on_epoch_end(self, epoch, logs=None):
        self._fresh = False  # another callback of this moment may have moved channels

    def on_test_begin(self, logs=None):
        self._recalibrate()

    def on_train_end(self, logs=None):
        self._recalibrate()

    def _recalibrate(self):
        if not self._fresh:
            if self._statistics is None or self._statistics.model is not self.model:
                self._statistics = _Statistics(self.model)
            self._statistics.measure(self.dataset, self.batches, self.batch_size)
            self._fresh = True


class StopAtNonFinite(keras.callbacks.Callback):
    """Ends training with an error when a loss, or at the end of an epoch any log or weight, is not finite.

    Args:
        owner: whose error it is.
        advice: what to try, the end of the message.
    Raises:
        ValueError: at the end of the batch or epoch, with the first weight that is not finite.
    """

    def __init__(self, owner: str, advice: str):
        super().__init__()
        self.owner, self.advice = owner, advice
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if logs and not np.isfinite(logs["loss"]):
            self._fail(f"the loss must be finite. Received: loss={logs['loss']}", f", step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        self._epoch = epoch
        for name, value in (logs or {}).items():
            if not np.isfinite(value):
                self._fail(f"{name} must be finite. Received: {name}={value}")
        if first_not_finite(self.model) is not None:
            self._fail("all weights must be finite")

    def _fail(self, what, where=""):
        raise ValueError(
            f"{self.owner}: {what} in epoch {self._epoch + 1}{where}; first weight that is not finite: "
            f"{first_not_finite(self.model) or 'none'}. {self.advice}"
        )


def first_not_finite(model) -> str | None:
    """The path of the first variable of a model or its optimizer that holds NaN or infinity; None if there is none."""
    if not _backend.has_live_variables():
        model.jax_state_sync()
    optimizer = getattr(model, "optimizer", None)
    for variable in (*model.weights, *(optimizer.variables if optimizer else ())):
        if not np.isfinite(_read(variable).astype("float64")).all():
            return variable.path
    return None


def recalibrate(model: AugmentedModel, dataset, *, batches: int = 16, batch_size: int = 128, choice=None) -> None:
    """Sets batch-norm statistics to the exact mean and variance over the images, layer by layer of one network.

    Args:
        model: an `AugmentedModel`; nothing but its statistics changes, and those of frozen layers do not.
        dataset, batches, batch_size: as for `BatchNormRecalibration`.
        choice: None for the target, else the augmented network whose statistics are set.
    Raises:
        ValueError: the dataset gives no batch.
    """
    _Statistics(model, choice).measure(dataset, batches, batch_size)


class _Statistics:
    """`recalibrate` for one model and choice, traced and compiled once."""

    def __init__(self, model, choice=None):
        self.model = model
        self.norms = [norm for norm in model.network.norms.values() if norm.trainable]  # frozen ones keep theirs
        names = ("moving_mean", "moving_variance") if choice is None else ("augmented_moving_mean", "augmented_moving_variance")
        self.variables = [tuple(getattr(norm, name) for name in names) for norm in self.norms]
        self._step = self._make_step(choice)

    def measure(self, dataset, batches, batch_size):
        momenta = [norm.momentum for norm in self.norms]
        totals, images_seen = None, 0
        try:
            for norm in self.norms:
                norm.momentum = 0.0  # every batch leaves exactly its own statistics behind
            for images in _batches_of(dataset, batches, batch_size):
                self._step(images)
                size = len(images)
                # Sums of the first and second moment: the variance of the whole includes that between batches.
                part = []
                for mean, variance in self.variables:
                    mean, variance = _read(mean).astype("float64"), _read(variance).astype("float64")
                    part.append((mean * size, (variance + mean**2) * size))
                totals = part if totals is None else [(a + c, b + d) for (a, b), (c, d) in zip(totals, part, strict=True)]
                images_seen += size
        finally:
            for norm, momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum
        if totals is None:
            raise ValueError("recalibrate: `dataset` must give at least one batch of images. Received: none.")
        for (mean, variance), (first, second) in zip(self.variables, totals, strict=True):
            centre = first / images_seen
            mean.assign(centre.astype("float32"))
            variance.assign(np.maximum(second / images_seen - centre**2, 0).astype("float32"))

    def _make_step(self, choice):
        """A function of images that leaves their statistics in the norms; the momentum of 0 is traced in."""
        network = self.model.network

        def run(images):
            network(images, choice=choice, training=False, statistics=True)

        return self._compile(run)

    @_backend.portable
    def _compile(self, run):
        import tensorflow as tf

        return tf.function(run, reduce_retracing=True)

    @_compile.on("jax")
    def _compile_for_jax(self, run):
        import jax

        network = self.model.network
        changing = [variable for pair in self.variables for variable in pair]

        @jax.jit
        def compiled(values, images):
            with keras.StatelessScope(zip(network.variables, values, strict=True)) as scope:
                run(images)
                return [scope.get_current_value(variable) for variable in changing]

        def step(images):
            values = compiled([variable.value for variable in network.variables], images)
            for variable, value in zip(changing, values, strict=True):
                variable.assign(value)

        return step


def _batches_of(dataset, batches, batch_size):
    if hasattr(dataset, "shape"):
        for index in range(min(batches, -(-len(dataset) // batch_size))):
            yield np.asarray(dataset[index * batch_size : (index + 1) * batch_size], "float32")
        return
    for index, batch in enumerate(dataset):
        if index == batches:
            return
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield np.asarray(keras.ops.convert_to_numpy(images), "float32")
