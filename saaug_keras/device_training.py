"""Training on one device of the JAX backend: the images stay there, and an epoch is one compiled loop.

`recipes.train` trains so where the device is an accelerator. Order, shifts and flips are drawn on the device by
`jax.random`, each a pure function of seed, epoch and step: they are other numbers than those of `datasets.pipeline`,
under the same rules. Models alike may train side by side: one program computes the steps of all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools

import keras
import numpy as np

from saaug_keras import _backend


def chosen(wanted: bool | None, image_shape, input_shape) -> bool:
    """Whether `fit` trains a network of `input_shape` on images of `image_shape`, both (H, W, C).

    Args:
        wanted: None for where it is faster: on the JAX backend, one accelerator, images of the network's own size.
    Raises:
        ValueError: it is wanted where it cannot be.
    """
    owner, fits = "device_training", tuple(image_shape[:2]) == tuple(input_shape[:2])
    if not wanted:
        return wanted is None and fits and _backend.name() == "jax" and _has_one_accelerator()
    _backend.need(owner, "jax")
    if not fits:
        raise ValueError(
            f"{owner}: images must have the size {tuple(input_shape[:2])} of the network, for they are not resized on "
            f"the device. Received: {tuple(image_shape[:2])}. Resize them first, `datasets.resize`."
        )
    return True


def _has_one_accelerator():
    import jax

    return _backend.is_accelerated() and jax.device_count() == 1


def epoch_order(seed, epoch, count):
    """The order of an epoch's images: int32 (count,)."""
    import jax

    return jax.random.permutation(_key(seed, epoch, 0), count)


def shift_and_flip(images, key, *, pad: int, flip: bool, fill=0):
    """Shifts each image by up to `pad` pixels in both directions and, with `flip`, mirrors half of them.

    Args:
        images: (N, H, W) or (N, H, W, C); key: of `jax.random`.
        fill: value of the pixels that come in.
    """
    import jax
    import jax.numpy as jnp

    count, height, width = images.shape[:3]
    keys = jax.random.split(key, 2)
    shift = jax.random.randint(keys[0], (2, count, 1), -pad, pad + 1)
    rows, columns = jnp.arange(height) + shift[0], jnp.arange(width)
    if flip:
        columns = jnp.where(jax.random.bernoulli(keys[1], shape=(count, 1)), width - 1 - columns, columns)
    columns = columns + shift[1]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    moved = images[jnp.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    inside = inside.reshape(inside.shape + (1,) * (moved.ndim - 3))
    return jnp.where(inside, moved, jnp.asarray(fill, moved.dtype))


def _key(seed, epoch, step):
    import jax

    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), step)


def fit(
    models,
    x,
    y,
    *,
    batch_size: int,
    epochs: int,
    seeds,
    initial_epochs,
    callbacks,
    augment: bool = False,
    flip: bool = True,
    pad: int | None = None,
    ignore_class: int = 0,
    validation_data=None,
    validation_epochs=(),
    verbose: int = 0,
) -> list:
    """`Model.fit` of one model or several alike, with everything but the callbacks on the device.

    A callback sees the variables as `Model.fit` would leave them at the beginning and end of an epoch and of an
    evaluation. Of an epoch's steps it sees the last one alone, or the first one whose loss is not finite. Models that
    train side by side may differ in their weights, their seeds and the highest learning rate of their schedule; the
    time that a callback sees is that of all.

    Args:
        models: `AugmentedModel`s, compiled, their optimizers built.
        x, y, batch_size, augment, flip, pad, ignore_class: as `datasets.pipeline`, shuffled and without remainder.
        epochs, verbose: as `Model.fit`.
        seeds, initial_epochs, callbacks: one a model: the seed of order and augmentation, the epochs that it has behind
            it, a list of Keras callbacks.
        validation_data: (x, y) as above, or None; validation_epochs: epochs, counted from 1, that end with it.
    Returns:
        One function (x, y) -> scores a model, which is `Model.evaluate` on the device; in its place, among several
        models, the ValueError of a callback that stopped that model alone.
    Raises:
        ValueError: the backend is not JAX, images of another size than the network's, models that are not alike, or
            whatever a callback raised for the only model.
    """
    chosen(True, x.shape[1:], models[0].spec.input_shape)
    batch_size = min(batch_size, len(x))
    steps = len(x) // batch_size
    pad = x.shape[1] // 8 if pad is None else pad
    program = _Program(models, x, y, batch_size, augment, flip, pad, ignore_class)
    held_out = validation_data and program.batches(*validation_data)
    runs = [_Run(model, each, epochs, steps, verbose, len(models) > 1) for model, each in zip(models, callbacks, strict=True)]
    try:
        for epoch in range(min(initial_epochs), epochs):
            # One that is further, or has stopped, keeps its weights.
            going = [run for run, first in zip(runs, initial_epochs, strict=True) if epoch >= first and not run.has_stopped]
            if not going:
                continue
            for run in going:
                run.model.reset_metrics()
                run.say("on_epoch_begin", epoch)
            logs = program.epoch(seeds, epoch, [run in going for run in runs])
            for run in going:
                values = logs[runs.index(run)]
                finite = np.isfinite(values["loss"])
                last = steps - 1 if finite.all() else int(np.argmin(finite))
                run.logs = {name: float(value[last]) for name, value in values.items()}
                run.say("on_train_batch_begin", last)
                run.say("on_train_batch_end", last, dict(run.logs))
            if held_out and epoch + 1 in validation_epochs:
                for run in going:
                    run.model.reset_metrics()
                    run.say("on_test_begin")
                logs = program.evaluate(models, held_out)
                for run in going:
                    values = logs[runs.index(run)]
                    run.say("on_test_end", dict(values))
                    run.logs |= {f"val_{name}": value for name, value in values.items()}
            for run in going:
                run.say("on_epoch_end", epoch, run.logs)
    finally:
        for run in runs:  # as `Model.fit`: an average of the weights takes their place
            run.model.optimizer.finalize_variable_values(run.model.trainable_variables)
    for run in runs:
        run.say("on_train_end", run.logs)
    return [run.error or functools.partial(program.scores, run.model) for run in runs]


class _Run:
    """A model and its callbacks. Among others, what stops it does not stop them."""

    def __init__(self, model, callbacks, epochs, steps, verbose, among_others):
        self.model, self.logs, self.error, self._among_others = model, {}, None, among_others
        self._callbacks = keras.callbacks.CallbackList(
            callbacks, add_history=True, add_progbar=verbose != 0, verbose=verbose, epochs=epochs, steps=steps, model=model
        )
        model.stop_training = False
        self.say("on_train_begin")

    @property
    def has_stopped(self):
        return self.error is not None or self.model.stop_training

    def say(self, event, *args):
        if self.error is not None:
            return
        try:
            getattr(self._callbacks, event)(*args)
        except ValueError as error:
            if not self._among_others:
                raise
            self.error = error


class _Program:
    """The compiled functions. Their state is the values of every model's variables, stacked."""

    def __init__(self, models, x, y, batch_size, augment, flip, pad, ignore_class):
        import jax
        import jax.numpy as jnp

        self._models, self._batch_size = models, batch_size
        self._augment, self._flip, self._pad, self._ignore_class = augment, flip, pad, ignore_class
        self._x, self._y = jax.device_put(x), jax.device_put(np.asarray(y))
        for model in models:
            _build_metrics(model, self._y[:1])
        self._draws = jnp.stack([model.draws for model in models])
        rates = _relative_rates(models)
        self._rates = None if (rates == 1).all() else jnp.asarray(rates, "float32")
        self._trains = {}
        self._test = jax.jit(jax.vmap(self._scores, in_axes=(0, None, None)))
        self._stack = jax.jit(lambda states: jax.tree.map(lambda *values: jnp.stack(values), *states))
        self._unstack = jax.jit(lambda state: [jax.tree.map(lambda value, i=i: value[i], state) for i in range(len(models))])

    def epoch(self, seeds, epoch, going) -> list[dict]:
        """Trains for an epoch those models that are going; the logs of each as arrays (steps,)."""
        seeds = np.asarray(seeds, "uint32")
        state = self._read(_trained, self._models)
        logs, state = self._train(going)(state, seeds, self._draws, self._rates, np.uint32(epoch), self._x, self._y)
        self._write(_trained, state, going)
        logs = {name: np.asarray(value) for name, value in logs.items()}
        return [{name: value[i] for name, value in logs.items()} for i in range(len(self._models))]

    def _train(self, going):
        """The compiled epoch of models that go together; another one where none has an augmented network any more."""
        import jax

        (augmented,) = {model.is_augmented for model in itertools.compress(self._models, going)}
        if augmented not in self._trains:
            self._models[0].train_alone(not augmented)  # it is the one that is traced, whether it goes or not
            axes = (0, 0, 0, None if self._rates is None else 0, None, None, None)
            self._trains[augmented] = jax.jit(jax.vmap(self._epoch, in_axes=axes))
        return self._trains[augmented]

    def batches(self, x, y) -> list:
        """Images and labels on the device, in batches of one size where that is possible."""
        import jax

        y = np.asarray(y)
        size = next((size for size in range(512, 63, -1) if len(x) % size == 0), min(len(x), 512))
        return [
            (jax.device_put(x[start : start + size]), jax.device_put(y[start : start + size]))
            for start in range(0, len(x), size)
        ]

    def evaluate(self, models, batches) -> list[dict]:
        """What `Model.evaluate` gives, of every model."""
        state = self._read(_tested, models)
        for x, y in batches:
            logs, state = self._test(state, x, y)
        logs = {name: np.asarray(value) for name, value in logs.items()}
        return [{name: float(value[i]) for name, value in logs.items()} for i in range(len(models))]

    def scores(self, model, x, y) -> dict:
        """`evaluate` of one model on further data."""
        model.reset_metrics()
        return self.evaluate([model], self.batches(x, y))[0]

    def _epoch(self, state, seed, draws, rate, epoch, images, labels):
        import jax
        import jax.numpy as jnp

        count = len(images)
        steps = count // self._batch_size
        order = epoch_order(seed, epoch, count)[: steps * self._batch_size].reshape(steps, self._batch_size)

        def step(state, inputs):
            index, rows = inputs
            x, y = images[rows], labels[rows]
            if self._augment:
                key = _key(seed, epoch, index + 1)
                move = functools.partial(shift_and_flip, key=key, pad=self._pad, flip=self._flip)
                x, y = move(x), move(y, fill=self._ignore_class) if y.ndim == 3 else y
            with _traced_for(self._models[0], draws, rate) as model:
                logs, state = model.train_step(state, (_pixels(x), y))
            return state, logs

        state, logs = jax.lax.scan(step, state, (jnp.arange(steps), order))
        return logs, state

    def _scores(self, state, x, y):
        return self._models[0].test_step(state, (_pixels(x), y))

    def _read(self, variables_of, models):
        values = [tuple([each.value for each in part] for part in variables_of(model)) for model in models]
        return self._stack(values)

    def _write(self, variables_of, state, going):
        for model, values in itertools.compress(zip(self._models, self._unstack(state), strict=True), going):
            for variables, part in zip(variables_of(model), values, strict=True):
                for variable, value in zip(variables, part, strict=True):
                    variable.assign(value)


def _trained(model):
    return (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables)


def _tested(model):
    return model.trainable_variables, model.non_trainable_variables, model.metrics_variables


def _pixels(x):
    return x.astype("float32") / np.float32(255)


def _build_metrics(model, y):
    """Keras makes the variables of loss and metrics when they are first used."""
    outputs = keras.ops.zeros((*(y.shape if y.ndim == 3 else y.shape[:1]), model.spec.num_classes))
    model.compute_loss(None, y, outputs, training=False)
    model.compute_metrics(None, y, outputs)
    model.reset_metrics()


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor."""

    def __init__(self, schedule, factor):
        super().__init__()
        self._schedule, self._factor = schedule, factor

    def __call__(self, step):
        return self._schedule(step) * self._factor


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)  # LossScaleOptimizer


def _schedule(model):
    """A copy of the schedule of a model's learning rate; None where that is a number, which is one of the variables."""
    rate = _inner(model.optimizer).get_config()["learning_rate"]
    return keras.optimizers.schedules.deserialize(rate) if isinstance(rate, dict) else None


def _relative_rates(models):
    """The learning rate of every model, divided by the first one's.

    Raises:
        ValueError: the models differ in more than weights, seed and highest learning rate.
    """
    import jax

    if len(models) == 1:
        return np.ones(1)
    graphs = [_graph(model) for model in models]
    for name, value in graphs[0].items():
        for graph in graphs[1:]:
            if graph[name] != value:
                raise ValueError(
                    "device_training.fit: `models` must be alike but in weights, seed and highest learning rate. "
                    f"Received: {name}={value} and {graph[name]}. Train them one after another."
                )
    schedules = [_schedule(model) for model in models]
    if all(each is None for each in schedules):
        return np.ones(len(models))
    steps = np.unique(np.geomspace(1, 1e6, 25).astype("int32"))
    rates = np.stack([jax.jit(jax.vmap(each))(steps) if each else np.ones(len(steps)) for each in schedules])
    known = rates[0] > 0
    relative = rates[:, known] / rates[0, known]
    if not known.any() or rates[:, ~known].any() or np.ptp(relative, axis=1).max() > 1e-3 * relative.max():
        raise ValueError(
            "device_training.fit: `models` must have learning rates that are multiples of one another at every step. "
            f"Received: {', '.join(type(each).__name__ for each in schedules)}. Train them one after another."
        )
    return relative[:, np.argmax(rates[0, known])]


def _graph(model):
    """What the compiled program of a model depends on, by name."""
    optimizer = {k: v for k, v in _inner(model.optimizer).get_config().items() if k not in ("learning_rate", "name")}
    config = {key: value for key, value in model.get_config().items() if key not in ("seed", "name")}
    return {**config, "optimizer": (type(model.optimizer).__name__, optimizer), "loss": model.loss.get_config()}


@contextlib.contextmanager
def _traced_for(model, draws, rate):
    """The model with another one's table of widths and, unless `rate` is None, its learning rate times `rate`."""
    own, model.draws = model.draws, draws
    schedule = None if rate is None else _schedule(model)
    try:
        if schedule is not None:
            _inner(model.optimizer).learning_rate = _Scaled(schedule, rate)
        yield model
    finally:
        model.draws = own
        if schedule is not None:
            _inner(model.optimizer).learning_rate = schedule
