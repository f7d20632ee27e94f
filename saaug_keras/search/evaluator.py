"""Candidates evaluated on a SuperNet's weights, which are trained once before each stage and shared by all workers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import socket
import threading
import time

import keras
import keras_tuner
import numpy as np

from saaug_keras import _errors, _files, _validate, datasets, recipes
from saaug_keras._checkpoint import RunFolder
from saaug_keras.callbacks import StopAtNonFinite

CLAIM_SECONDS = 60  # a claim without a sign of life for so long is anyone's


class SuperNetEvaluator:
    """Accuracy of candidates on held-out images with inherited weights; `evaluate` of a `TwoStageTuner`.

    `prepare` trains the SuperNet, or loads what was trained in `directory` before; the first candidate of stage 2 does
    the same for the SubNet's blocks and operators. Of several workers on the directory one trains and the others wait.

    Args:
        supernet: `SuperNet`.
        directory: where `supernet.npz` and `subnet-....npz` go; the same for all workers.
        calibration_images: training images that set each candidate's batch-norm statistics, int >= 1.
        held_out_images: validation images that judge it, int >= 1.
        batch_size: of these evaluations. Both counts are rounded down to its multiples.
    """

    def __init__(self, supernet, directory, *, calibration_images=256, held_out_images=512, batch_size=128):
        owner = "SuperNetEvaluator"
        self.supernet = supernet
        self.directory = pathlib.Path(directory)
        self.calibration_images = _validate.int_in(owner, "calibration_images", calibration_images, 1, 1 << 20)
        self.held_out_images = _validate.int_in(owner, "held_out_images", held_out_images, 1, 1 << 20)
        self.batch_size = _validate.int_in(owner, "batch_size", batch_size, 1, 1 << 20, " images")
        self._data = None

    def prepare(
        self,
        x,
        y,
        *,
        validation_data,
        recipe=None,
        epochs=10,
        learning_rate=0.1,
        adapt_epochs=2,
        adapt_rate=0.02,
        flip=True,
        callbacks=(),
        verbose=0,
    ):
        """What `tuner.search(x, y, validation_data=..., ...)` calls: data and training, once.

        Args:
            x, y: training images, uint8 (N, H, W, C), and labels (N,).
            validation_data: (x, y) that judge the candidates.
            recipe: `recipes.Recipe` whose optimizer, batch size, data augmentation and seed are those of both trainings; None
                for a recipe's defaults.
            epochs, learning_rate: of the SuperNet, with half a cosine to 0; adapt_epochs, adapt_rate: of the SubNet.
            flip: whether mirrored images may be trained on, too.
            callbacks: Keras callbacks of both; verbose: as `fit`.
        Raises:
            ValueError: a loss or weight was not finite, or the weights in `directory` are not usable.
        """
        self._data, self._flip = (x, y), flip
        self._recipe = recipes.Recipe() if recipe is None else recipe
        self._callbacks, self._verbose = list(callbacks), verbose
        self._adaptation = (adapt_epochs, adapt_rate)
        seed = self._recipe.seed
        calibration = np.random.default_rng(seed).permutation(len(x))[: self.calibration_images]
        self._calibration = self._whole_batches(x[np.sort(calibration)])
        self._held_out = self._whole_batches(validation_data[0][: self.held_out_images])
        self._labels = np.asarray(validation_data[1])[: len(self._held_out)]
        self._once("supernet", epochs, learning_rate)

    def _whole_batches(self, images):
        count = len(images) // self.batch_size * self.batch_size or len(images)
        return images[:count].astype("float32") / 255

    def _fit(self, name, epochs, learning_rate):
        recipe = self._recipe.replace(epochs=epochs, learning_rate=learning_rate, warmup_epochs=0)
        net, counter = self.supernet, datasets.EpochCounter()
        batches = recipes.training_batches(recipe, *self._data, counter, flip=self._flip)
        recipes.compile_model(recipe, net, len(batches))
        advice = f"Try a smaller learning rate (now {learning_rate:g}) for the {name.split('-')[0]}."
        folder = RunFolder(self.directory / f"{name}.training", "SuperNetEvaluator")
        folder.path.mkdir(exist_ok=True)
        checkpoint = folder.checkpoint(len(batches))
        net.fit(
            batches,
            epochs=epochs,
            initial_epoch=checkpoint.restore(net),
            verbose=self._verbose,
            shuffle=False,
            callbacks=[counter, StopAtNonFinite("SuperNetEvaluator", advice), *self._callbacks, checkpoint],
        )

    def _once(self, name, epochs, learning_rate):
        """Loads `name`.npz, after training it unless another worker has or is about to."""
        path = self.directory / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            with _claimed(self.directory / f"{name}.claim") as mine:
                if not mine:
                    time.sleep(0.5)
                elif not path.exists():
                    if epochs:
                        self._fit(name, epochs, learning_rate)
                    _write_arrays(path, _named(self.supernet.weights))
                    shutil.rmtree(self.directory / f"{name}.training", ignore_errors=True)
        _assign(self.supernet.weights, _read_arrays(path))

    def _enter_stage(self, values):
        if self._data is None:
            raise ValueError("SuperNetEvaluator: `prepare` must run before a candidate is evaluated.")
        subnet = None
        if values.get("stage", 1) == 2:
            subnet = {name: value for name, value in values.items() if name in self.supernet.space.genes}
        if subnet == self.supernet.subnet:
            return
        if self.supernet.subnet is not None:
            _assign(self.supernet.weights, _read_arrays(self.directory / "supernet.npz"))
        self.supernet.adapt_to(subnet)
        if subnet is not None:
            text = json.dumps(subnet, sort_keys=True) + self.supernet.space.identity
            self._once("subnet-" + hashlib.sha256(text.encode()).hexdigest()[:12], *self._adaptation)

    # One candidate

    def __call__(self, values: dict) -> float:
        """Fraction of the held-out images that a candidate classifies right.

        Raises:
            keras_tuner.errors.FailedTrialError: an output is not finite.
        """
        self._enter_stage(values)
        self.supernet.recalibrate(values, self._calibration, batch_size=self.batch_size)
        logits = self.supernet.logits(self._held_out, batch_size=self.batch_size)
        if not np.isfinite(logits).all():
            raise keras_tuner.errors.FailedTrialError("SuperNetEvaluator: a candidate's outputs must be finite.")
        return float((logits.argmax(-1) == self._labels).mean())

    def build_model(self, values: dict) -> keras.Model:
        """A candidate as a model by itself, its statistics recalibrated."""
        self._enter_stage(values)
        self.supernet.recalibrate(values, self._calibration, batch_size=self.batch_size)
        return self.supernet.build_model(values)


def _array(variable):
    return keras.ops.convert_to_numpy(variable)


def _named(variables):
    return {variable.name: _array(variable) for variable in variables}


def _assign(variables, arrays):
    for variable in variables:
        if variable.name not in arrays or arrays[variable.name].shape != tuple(variable.shape):
            raise ValueError(
                f"SuperNetEvaluator: the weights in `directory` must be of the same space; '{variable.name}' differs. "
                "Use another directory."
            )
        if not np.isfinite(arrays[variable.name]).all():
            raise ValueError(
                f"SuperNetEvaluator: the weights in `directory` must be finite; '{variable.name}' is not. Use another "
                "directory and a smaller learning rate."
            )
        variable.assign(arrays[variable.name])


def _write_arrays(path, arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    _files.write_atomic(path, data.getvalue())


def _read_arrays(path):
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except _errors.DAMAGED as error:
        raise ValueError(f"SuperNetEvaluator: {path} is damaged: {error}. Delete it; it will be trained again.") from error


@contextlib.contextmanager
def _claimed(path):
    """Yields whether this process may do the work that `path` stands for; of several one may, until it is gone."""
    me = f"{socket.gethostname()} {os.getpid()}"
    try:
        with open(path, "x") as file:
            file.write(me)
    except FileExistsError:
        if _is_abandoned(path):
            path.unlink(missing_ok=True)
        yield False
        return
    over = threading.Event()

    def live():
        while not over.wait(CLAIM_SECONDS / 6):
            os.utime(path)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _is_abandoned(path):
    try:
        age = time.time() - path.stat().st_mtime
        host, _, pid = path.read_text().partition(" ")
    except FileNotFoundError:
        return False
    if age > CLAIM_SECONDS:
        return True
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)  # asks only whether it lives
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
