"""Runs a study. What is to do follows from the files of finished runs alone: it may stop anywhere and go on later."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import platform
import signal
import statistics
import time
from dataclasses import dataclass
from multiprocessing import connection

from saaug_keras import _backend, _errors
from saaug_keras._budget import OutOfTime, end_with, share_cores
from saaug_keras._files import only_process, sweep, write_atomic
from saaug_keras._page import duration
from saaug_keras._version import __version__
from saaug_keras.recipes import Recipe
from saaug_keras.study.grid import Cell, Study


def run(
    study: Study,
    out,
    *,
    jobs: int = 1,
    only: str | None = None,
    say=print,
    trainer=None,
    data_dir=None,
    watch=None,
    prepare=None,
    until: float | None = None,
) -> Book:
    """Runs what is not finished yet of a study.

    Args:
        study: the grid.
        out: folder of the study; made if missing. `runs/` gets one JSON file per finished run, `training/` one folder
            per run with its checkpoint and its network.
        jobs: processes that train at a time.
        only: run only the cells that match, as `Study.cells`.
        say: called with one line per run.
        trainer: function (recipe, folder, test) -> (result, history) in place of `recipes.train` on the study's data.
        data_dir: as `datasets.load`.
        watch: called after every epoch of a run in this process with one line of text, and with "" at its end.
        prepare: called first in every further process, to import quietly what training needs, say.
        until: when to stop, as `time.time()` counts: no run begins after it, and one that is under way stops at the end
            of an epoch. The next call goes on, with the runs that have begun first.
    Returns:
        The study's `Book`.
    Raises:
        ValueError: nothing matches `only`, or a recipe that cannot run on the data.
        BlockingIOError: another process runs a study in this folder.
        ChildProcessError: a training process died; finished runs are kept.
    """
    cells = study.cells(only)
    book = Book(out, study)
    with only_process(book.out, f"study: another process is running a study in {book.out}."):
        sweep(book.out, "state.json")
        sweep(book.out / "runs", "*.json")
        if trainer is None:
            _check_recipes(study, cells, data_dir)
            callbacks = (_make_watcher(watch),) if watch and jobs == 1 else ()
            trainer = functools.partial(train, study.dataset, data_dir, callbacks=callbacks, until=until)
        progress, paused = _Progress(book, cells, jobs, say), set()
        make = _InProcess if jobs == 1 else _Processes
        with make(jobs, book, trainer, prepare) as workers:
            while True:
                ready, _ = tasks_left(book, cells)
                ready.sort(key=lambda task: not book.has_begun(task))
                for task in ready:
                    if task.digest not in paused and (until is None or time.time() < until):
                        workers.offer(task)
                if not workers.running:
                    if until is not None and ready:
                        say(f"study: the time is over; {progress.left()}. The same command goes on.")
                    return book
                for task in workers.wait():
                    book.read(task.digest)
                    if book.record(task) is None:
                        paused.add(task.digest)
                    else:
                        progress.line(task)


@dataclass(frozen=True)
class Task:
    """One training run: of stage 1 ("tune") or stage 2 ("final", with the test set)."""

    cell: Cell
    stage: str
    candidate: dict
    recipe: Recipe
    digest: str

    @property
    def name(self) -> str:
        """Readable, and unique by its hash: the name of the run's file and folder."""
        recipe = self.recipe
        return (
            f"{self.cell.arm}-{recipe.operator.replace('/', '+')}-{recipe.backbone}-{recipe.epochs}epochs-seed{recipe.seed}-"
            f"{self.digest}"
        )


class Book:
    """The finished runs of a study, and what follows from them: measured speeds and choices.

    Args:
        out: the study's folder.
        study: the grid.
    """

    def __init__(self, out, study: Study):
        self.out = pathlib.Path(out)
        self.study = study
        self.records: dict[str, dict] = {}
        for path in sorted((self.out / "runs").glob("*.json")):
            self._add(path)
        state = self.out / "state.json"
        self._ratios = _read(state, "compute_ratios")["compute_ratios"] if state.exists() else {}

    def _add(self, path):
        record = _read(path, "digest", "recipe", "status")
        if record["status"] == "finished" and (broken := _not_finite(record)):
            record |= {"status": "failed", "message": broken}
        # Two arms may come to the same recipe; what has been tested stands.
        if "test_accuracy" not in self.records.get(record["digest"], {}):
            self.records[record["digest"]] = record

    def read(self, digest: str):
        """Takes in the file of a run that has just ended."""
        for path in (self.out / "runs").glob(f"*-{digest}.json"):
            self._add(path)

    def task(self, cell: Cell, stage: str, candidate: dict, *, seed: int, ratio: float) -> Task:
        """The run of these coordinates."""
        recipe = self.study.make_recipe(cell, candidate, seed=seed, tuning=stage == "tune", ratio=ratio)
        return Task(cell, stage, candidate, recipe, digest_of(self.study.dataset, recipe))

    def has_begun(self, task: Task) -> bool:
        """Whether a run has been trained for some epochs."""
        return (self.out / "training" / task.name / "history.json").exists()

    def record(self, task: Task) -> dict | None:
        """The record of a run, or None while it is to be run."""
        record = self.records.get(task.digest)
        waits = record is not None and task.stage == "final" and record["status"] == "finished"
        return None if waits and "test_accuracy" not in record else record

    def tuning_tasks(self, cell: Cell, ratio: float = 1.0) -> list[Task]:
        """The runs of stage 1, one per candidate; none where there is nothing to choose or measure."""
        if not self.study.is_tuned(cell):
            return []
        return [
            self.task(cell, "tune", candidate, seed=self.study.tuning_seed, ratio=ratio)
            for candidate in self.study.candidates_of(cell)
        ]

    def final_tasks(self, cell: Cell, candidate: dict, ratio: float) -> list[Task]:
        """The runs of stage 2, one per seed."""
        return [self.task(cell, "final", candidate, seed=seed, ratio=ratio) for seed in self.study.seeds]

    def ratio(self, cell: Cell) -> float | None:
        """The factor of a cell's epochs, or None while it cannot be known.

        A measured one is written down when it is first known, and stays.
        """
        arm = self.study.arm(cell.arm)
        needed = self.study.needed_for(cell)
        if not needed:
            return arm.compute_ratio or 1.0
        tasks = [self.tuning_tasks(other) for other in needed]
        key = f"{cell}: {' '.join(task.digest for task in [*tasks[0], *tasks[1]])}"
        if key not in self._ratios:
            own, other = (self._seconds_per_epoch(each) for each in tasks)
            if own is None or other is None:
                return None
            self._ratios[key] = round(other / own, 4)
            state = {"compute_ratios": self._ratios}
            write_atomic(self.out / "state.json", json.dumps(state, indent=1) + "\n")
        return self._ratios[key]

    def _seconds_per_epoch(self, tasks):
        """The fastest of the finished runs: what else the machine did meanwhile only slows. None until all ended."""
        records = [self.records.get(task.digest) for task in tasks]
        if None in records:
            return None
        return min((r["seconds_per_epoch"] for r in records if r["status"] == "finished"), default=None)

    def is_stopped(self, cell: Cell) -> bool:
        """Whether stage 1 of a cell has ended without a run that could be used."""
        ratio = self.ratio(cell)
        records = [] if ratio is None else [self.record(task) for task in self.tuning_tasks(cell, ratio)]
        return bool(records) and all(record is not None and record["status"] == "failed" for record in records)

    def choice(self, cell: Cell, ratio: float) -> dict | None:
        """The candidate with the best validation accuracy, the first of equals; None if none is known yet."""
        tasks = self.tuning_tasks(cell, ratio)
        if not tasks:
            return self.study.candidates_of(cell)[0]
        records = [self.record(task) for task in tasks]
        if None in records:
            return None
        finished = [(r["val_accuracy"], t) for r, t in zip(records, tasks, strict=True) if r["status"] == "finished"]
        return max(finished, key=lambda pair: pair[0])[1].candidate if finished else None


def _read(path, *keys) -> dict:
    """A JSON file of the study that holds at least `keys`."""
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"study: {path} is damaged: {error}. Delete it and start the study again.") from error
    if not (isinstance(data, dict) and set(keys) <= set(data)):
        raise ValueError(f"study: {path} is damaged. Delete it and start the study again.")
    return data


def _not_finite(record) -> str | None:
    """What is said of a run with a figure, at its end or of an epoch, that is not finite; None if all are."""
    last = len(record["history"]), record
    for epoch, row in (*((row["epoch"], row) for row in record["history"]), last):
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{key} must be finite. Received: {key}={value} in epoch {epoch}."
    return None


def digest_of(dataset: str, recipe: Recipe) -> str:
    """Ten hex digits that stand for a recipe on a data set."""
    text = json.dumps({"dataset": dataset, **recipe.identity()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def tasks_left(book: Book, cells) -> tuple[list[Task], list[Task]]:
    """What is to do, from the finished runs alone.

    Returns:
        (runs that can start now, in order, without repeats; stand-ins for the runs that wait for those: of the right
        number and cell, with a candidate that may become another).
    """
    study, tune, final, later = book.study, {}, [], []
    for cell in dict.fromkeys((*(n for c in cells for n in study.needed_for(c)), *cells)):
        ratio = book.ratio(cell)
        if ratio is None:
            if not any(book.is_stopped(other) for other in study.needed_for(cell)):
                first = study.candidates_of(cell)[0]
                later += book.tuning_tasks(cell) + book.final_tasks(cell, first, 1.0) * (cell in cells)
            continue
        tasks = book.tuning_tasks(cell, ratio)
        waiting = {task.digest: task for task in tasks if book.record(task) is None}
        tune |= waiting
        candidate = book.choice(cell, ratio)
        if cell in cells and waiting:
            later += book.final_tasks(cell, study.candidates_of(cell)[0], ratio)
        elif cell in cells and candidate is not None:
            final += [task for task in book.final_tasks(cell, candidate, ratio) if book.record(task) is None]
    final.sort(key=lambda task: study.seeds.index(task.recipe.seed))  # every arm's first seed before the second
    ready = list((tune | {task.digest: task for task in final if task.digest not in tune}).values())
    return ready, later


def _check_recipes(study, cells, data_dir):
    """Every recipe against the data, before the first hour of training is spent."""
    from saaug_keras import recipes

    data = _load(study.dataset, data_dir)
    if data.y_train.ndim != 1:
        raise ValueError(
            "study: `dataset` must have one label per image, since arms are compared by accuracy. Received: "
            f"dataset={study.dataset!r}, which has one per pixel; `saaug train` trains on it."
        )
    for cell in cells:
        for candidate in study.candidates_of(cell):
            for tuning in (True, False):
                recipe = study.make_recipe(cell, candidate, seed=study.seeds[0], tuning=tuning)
                try:
                    recipe.spec(data.image_shape, data.num_classes)
                    recipes.make_callbacks(recipe, data.x_train)
                except (ValueError, TypeError) as error:
                    raise type(error)(f"study [arms.{cell.arm}]: {error}") from error


@functools.cache
def _load(dataset, data_dir):
    from saaug_keras import datasets

    return datasets.load(dataset, data_dir=data_dir)


def train(
    dataset: str, data_dir, recipe: Recipe, folder, test: bool, callbacks=(), until: float | None = None
) -> tuple[dict, list]:
    """`recipes.train` on a data set by name; returns its result and its history."""
    import keras

    from saaug_keras import recipes

    keras.utils.clear_session()
    data = _load(dataset, data_dir)
    # What several runs start from or learn from is trained once.
    first = functools.partial(recipes.network_of, data=data, folder=folder.parent, until=until)
    result = recipes.train(recipe, data, folder, test=test, callbacks=callbacks, until=until, first=first)
    before = recipes.seconds_before(recipe, data.name, folder.parent)
    result = {**result, "train_seconds": result["train_seconds"] + before}
    if test and "test_accuracy" not in result:  # a run of stage 1, trained to the end already and now chosen
        result = {**result, "test_accuracy": _test(folder / "target.keras", data)}
    return result, json.loads((folder / "history.json").read_text())


def _test(path, data) -> float:
    """Test accuracy of a deployed network, as a fraction."""
    import keras

    from saaug_keras import datasets, layers  # noqa: F401 - the network's layers must be known to Keras

    model = keras.saving.load_model(path)
    batches = datasets.pipeline(data.x_test, batch_size=256, resolution=model.input_shape[1:3])
    return float((model.predict(batches, verbose=0).argmax(-1) == data.y_test).mean())


def execute(out: pathlib.Path, dataset: str, task: Task, trainer):
    """Trains one run and writes its record, whole or not at all; none of a run whose time is over.

    Whatever is the run's own fault makes it a failed one, and others go on: figures that are not finite, a recipe that
    cannot run, a network too large for the memory. What concerns them all, as a full disk or a mistake in the program,
    is raised.
    """
    try:
        result, history = trainer(task.recipe, out / "training" / task.name, task.stage == "final")
        epochs = [row["seconds"] for row in history]
        outcome = {
            "status": "finished",
            **result,
            # The first epoch also builds the graph.
            "seconds_per_epoch": statistics.median(epochs[1:] or epochs),
            "history": history,
        }
        if broken := _not_finite(outcome):
            outcome = {"status": "failed", "message": broken}
    except OutOfTime:
        return
    except _errors.of_a_run() as error:
        outcome = {"status": "failed", "message": _errors.one_line(error)}
    record = {
        "name": task.name,
        "digest": task.digest,
        "arm": task.cell.arm,
        "dataset": dataset,
        **outcome,
        "recipe": task.recipe.as_dict(),
        "machine": _machine(),
    }
    write_atomic(out / "runs" / f"{task.name}.json", json.dumps(record, indent=1) + "\n")


def _machine() -> dict:
    import keras

    return {
        "saaug_keras": __version__,
        "python": platform.python_version(),
        "keras": keras.version(),
        "backend": _backend.name(),
        "device": ", ".join(_backend.device_names()),
        "cpus": os.cpu_count(),
    }


def _make_watcher(watch):
    """A callback that tells how far the run is."""
    import keras

    class Watcher(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            shown = ("loss", "accuracy", "val_loss", "val_accuracy")
            values = "  ".join(f"{key} {logs[key]:.4f}" for key in shown if key in (logs or {}))
            watch(f"epoch {epoch + 1}/{self.params['epochs']}  {values}")

        def on_train_end(self, logs=None):
            watch("")

    return Watcher()


class _InProcess:
    """Trains here, one run at a time."""

    def __init__(self, jobs, book, trainer, prepare):
        self.book, self.trainer = book, trainer
        self.running: list[Task] = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def offer(self, task):
        """Takes the task, if there is room and it is not running already."""
        if not self.running:
            self.running.append(task)

    def wait(self) -> list[Task]:
        """Blocks until a run has ended; the runs that have."""
        task = self.running.pop()
        execute(self.book.out, self.book.study.dataset, task, self.trainer)
        return [task]


class _Processes:
    """The same in processes of their own, each with its share of the cores."""

    def __init__(self, jobs, book, trainer, prepare):
        self.jobs, self.book, self.trainer, self.prepare = jobs, book, trainer, prepare
        self.running: dict[connection.Connection, Task] = {}
        self._idle: list[connection.Connection] = []
        self._processes: dict[connection.Connection, multiprocessing.Process] = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join()

    def offer(self, task):
        """Takes the task, if there is room and it is not running already."""
        if len(self.running) < self.jobs and task.digest not in {other.digest for other in self.running.values()}:
            pipe = self._idle.pop() if self._idle else self._start()
            pipe.send(task)
            self.running[pipe] = task

    def _start(self):
        share_cores(self.jobs)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = (there, os.getpid(), self.book.out, self.book.study.dataset, self.trainer, self.prepare)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        there.close()  # so that the end of the process is the end of the pipe
        self._processes[here] = process
        return here

    def wait(self) -> list[Task]:
        """Blocks until a run has ended; the runs that have.

        Raises:
            ChildProcessError: a process died.
            OSError: a record could not be written.
        """
        ended = []
        for pipe in connection.wait(list(self.running)):
            task = self.running.pop(pipe)
            try:
                error = pipe.recv()
            except EOFError as end:
                process = self._processes[pipe]
                process.join()
                cause = (
                    f"was killed by signal {-process.exitcode}, perhaps for want of memory (then use fewer --jobs)"
                    if process.exitcode < 0
                    else "failed; its message stands above"
                )
                raise ChildProcessError(
                    f"study: the process that trained {task.name} {cause}. Finished runs are kept: start the same "
                    "study again to go on."
                ) from end
            if error is not None:
                raise error
            self._idle.append(pipe)
            ended.append(task)
        return ended


def _serve(pipe, parent, out, dataset, trainer, prepare):
    """Trains what comes through the pipe, until it ends or its study does."""
    end_with(parent)
    if prepare is not None:
        prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study's own process says when to stop
    with contextlib.suppress(EOFError):
        while True:
            task = pipe.recv()
            try:
                execute(out, dataset, task, trainer)
            except OSError as error:
                pipe.send(error)
            else:
                pipe.send(None)


class _Progress:
    """One line per run that ends, with the time left by the speeds seen so far."""

    def __init__(self, book, cells, jobs, say):
        self.book, self.cells, self.jobs, self.say = book, cells, jobs, say
        self.done = 0
        self.started = time.perf_counter()

    def line(self, task):
        self.done += 1
        record = self.book.record(task)
        ready, later = tasks_left(self.book, self.cells)
        left = [*ready, *later]
        cell, recipe = task.cell, task.recipe
        chosen = " ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in task.candidate.items()
        )
        if record["status"] == "failed":
            outcome = f"failed: {record['message']}"
        else:
            outcome = f"val {100 * record['val_accuracy']:5.1f} %"
            if task.stage == "final":
                outcome += f"  test {100 * record['test_accuracy']:5.1f} %"
            outcome += f"  {duration(record['train_seconds'])}"
        width = max(len(str(each)) for each in self.cells)
        self.say(
            f"{self.done:>3}/{self.done + len(left)}  {task.stage:<5}  {str(cell):<{width}}  seed {recipe.seed}  "
            f"{recipe.epochs} epochs  {chosen}  {outcome}  {self._time_left(left)}"
        )

    def left(self) -> str:
        """How many runs there are still to make, and how long they will take."""
        ready, later = tasks_left(self.book, self.cells)
        return f"{len(ready) + len(later)} runs are left, {self._time_left([*ready, *later])}"

    def _time_left(self, left):
        if not left:
            return "done"
        known = {}  # whose -> [(seconds before the first full-speed epoch, seconds per epoch)]
        for record in self.book.records.values():
            if record["status"] == "finished":
                speed = record["seconds_per_epoch"]
                start = max(0.0, record["train_seconds"] - record["epochs"] * speed)
                for key in ((record["arm"], record["recipe"]["operator"]), record["arm"], None):
                    known.setdefault(key, []).append((start, speed))
        if not known:
            return ""
        seconds = 0.0
        for task in left:
            keys = ((task.cell.arm, task.recipe.operator), task.cell.arm, None)
            starts, speeds = zip(*next(known[key] for key in keys if key in known), strict=True)
            seconds += statistics.mean(starts) + task.recipe.epochs * statistics.mean(speeds)
        seconds /= self.jobs
        return f"about {duration(seconds)} left, until {time.strftime('%a %H:%M', time.localtime(time.time() + seconds))}"
