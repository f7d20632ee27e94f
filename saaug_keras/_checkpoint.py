"""The folder of a training run: its history, the checkpoint that it goes on from, and the hashes that vouch for both."""

from __future__ import annotations

import hashlib
import json
import pathlib
import time

import numpy as np

from saaug_keras import _backend
from saaug_keras._budget import OutOfTime
from saaug_keras._files import atomic_file, write_atomic

CHECKPOINT_SECONDS = 300  # of training within an epoch, at most, are lost when a run is killed
MANIFEST = "manifest.json"  # hashes of what a run is resumed from
_REMEDY = (
    "Put it back from a copy, or train anew: resume=False, `saaug train --overwrite`; in a search, delete the folder, in "
    "a study also the record of its name in runs/."
)


class RunFolder:
    """What a run leaves in its folder while it goes on, for it to go on from.

    Args:
        path: the folder.
        owner: who trains, for messages.
    """

    def __init__(self, path, owner: str):
        self.path, self.owner = pathlib.Path(path), owner

    def seal(self, history, names, within=None):
        """Writes the manifest: what the files are that the run can be resumed from.

        Args:
            within: of an epoch that goes on: its finished batches, their seconds and the variables of their metrics.
        """
        files = {name: hashlib.sha256((self.path / name).read_bytes()).hexdigest() for name in names}
        manifest = {"epoch": len(history), "history": _digest_of(history), "files": files}
        write_atomic(self.path / MANIFEST, json.dumps(manifest | ({"within": within} if within else {}), indent=1))

    def manifest(self) -> dict | None:
        """The manifest, None where there is none: before the first epoch's end, or of an earlier version."""
        if not (self.path / MANIFEST).exists():
            return None
        manifest = self.read(MANIFEST, dict)
        if set(manifest) - {"within"} != {"epoch", "history", "files"}:
            raise ValueError(f"{self.owner}: {self.path / MANIFEST} is damaged. {_REMEDY}")
        return manifest

    def read(self, name, kind):
        """The JSON value of a file, which must be of a kind."""
        path = self.path / name
        try:
            value = json.loads(path.read_text())
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{self.owner}: {path} is missing or damaged: {error}. {_REMEDY}") from error
        if not isinstance(value, kind):
            raise ValueError(f"{self.owner}: {path} is damaged. {_REMEDY}")
        return value

    def history(self, epoch, manifest=None) -> list:
        """The rows of the first epochs. A run that was killed may have written one more."""
        rows = self.read("history.json", list)[:epoch]
        if len(rows) != epoch or (manifest is not None and _digest_of(rows) != manifest["history"]):
            path = self.path / "history.json"
            raise ValueError(f"{self.owner}: {path} is damaged: it must hold the {epoch} epochs of the run. {_REMEDY}")
        return rows

    def check(self, name, manifest):
        """Raises ValueError for a file that is not the one in the manifest."""
        path = self.path / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none, the file is missing"
        if digest != manifest["files"].get(name):
            raise ValueError(
                f"{self.owner}: {path} is damaged: its SHA-256 must be {manifest['files'].get(name)}. Received: {digest}. "
                f"{_REMEDY}"
            )

    def checkpoint(self, steps, until=None):
        """The callback, last in the list, that keeps the state of the run, and stops in time.

        It keeps the state after each epoch, and on the TensorFlow backend every `CHECKPOINT_SECONDS` within one. A run that
        goes on within an epoch reads the epoch's first batches again and passes over them, so that batches keep their numbers.
        """
        import keras

        folder, out = self, self.path

        class Checkpoint(keras.callbacks.Callback):
            def __init__(self):
                super().__init__()
                self.history = []
                self.within = None  # what the manifest says of the epoch in which the run goes on

            @property
            def train_seconds(self):
                return sum(row["seconds"] for row in self.history)

            def paths(self):
                return sorted(out.glob("checkpoint-*.weights.h5"), key=_epoch_of)

            def restore(self, model) -> int:
                manifest = folder.manifest()
                if manifest is None:  # nothing yet, or a run of an earlier version
                    paths = [path for path in self.paths() if path.name == _name_of(_epoch_of(path))]
                    name = paths[-1].name if paths else None
                    epoch = _epoch_of(paths[-1]) if paths else 0
                else:
                    epoch, self.within = manifest["epoch"], manifest.get("within")
                    name = _name_of(epoch, self.within["batches"] if self.within else 0)
                    folder.check(name, manifest)
                if epoch:
                    self.history = folder.history(epoch, manifest)
                if name is not None:
                    model.load_weights(out / name)
                return epoch

            def remove(self):
                for path in self.paths():
                    path.unlink()

            def keep(self, name, within=None):
                with atomic_file(out / name) as path:
                    self.model.save_weights(path)
                folder.seal(self.history, [name], within)  # from here on this is the checkpoint
                for path in self.paths():
                    if path.name != name:
                        path.unlink()
                self.kept = time.monotonic()

            def on_epoch_begin(self, epoch, logs=None):
                self.started = self.kept = time.monotonic()
                self.before = 0.0  # seconds of this epoch before the run was stopped within it
                needed = min(self.history[-1]["seconds"], CHECKPOINT_SECONDS) if self.history else 0
                if until is not None and time.time() + needed > until:
                    raise OutOfTime(f"{folder.owner}: {out} has {epoch} finished epochs; the same call goes on.")
                if self.within:
                    self.before = self.within["seconds"]
                    self.pass_over(self.within["batches"])

            def pass_over(self, batches):
                """The next batches are read and not trained on."""
                train, left = self.model.train_function, batches

                def passing(iterator):
                    nonlocal left
                    next(iterator)
                    left -= 1
                    if not left:
                        self.model.train_function = train
                    return {}

                self.model.train_function = passing

            def on_train_batch_end(self, batch, logs=None):
                if self.within and batch < self.within["batches"]:
                    return
                if self.within:  # the metrics, which have variables by now, start from those of the batches passed over
                    for variable, value in zip(self.model.metrics_variables, self.within["metrics"], strict=True):
                        variable.assign_add(np.asarray(value, variable.dtype))
                    self.within = None
                self.seconds = self.before + time.monotonic() - self.started  # without the evaluation that follows
                if batch == steps - 1 or not _backend.has_live_variables():
                    return
                over = until is not None and time.time() > until
                if over or time.monotonic() - self.kept >= CHECKPOINT_SECONDS:
                    metrics = [variable.numpy().tolist() for variable in self.model.metrics_variables]
                    within = {"batches": batch + 1, "seconds": self.seconds, "metrics": metrics}
                    write_atomic(out / "history.json", json.dumps(self.history, indent=1))
                    self.keep(_name_of(len(self.history), batch + 1), within)
                if over:
                    raise OutOfTime(f"{folder.owner}: {out} is within epoch {len(self.history) + 1}; the same call goes on.")

            def on_epoch_end(self, epoch, logs=None):
                values = {key: float(value) for key, value in (logs or {}).items()}
                self.history.append({"epoch": epoch + 1, "seconds": self.seconds, **values})
                write_atomic(out / "history.json", json.dumps(self.history, indent=1))
                self.keep(_name_of(epoch + 1))

        return Checkpoint()


def _digest_of(history) -> str:
    return hashlib.sha256(json.dumps(history).encode()).hexdigest()


def _name_of(epoch, batch=0) -> str:
    """The checkpoint's file after so many epochs and so many batches of the next one."""
    return f"checkpoint-{epoch}{f'-{batch}' if batch else ''}.weights.h5"


def _epoch_of(path) -> int:
    return int(path.name.removeprefix("checkpoint-").removesuffix(".weights.h5").split("-")[0])
