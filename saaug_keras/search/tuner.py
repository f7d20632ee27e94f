"""The tuner of the two-stage search: runs trials, alone or as one of many workers beside a chief.

Chief and workers are KerasTuner's: the environment variables KERASTUNER_TUNER_ID ("chief" for the chief),
KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT, and its gRPC protocol.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from concurrent import futures

import keras_tuner
from keras_tuner.engine import trial as trial_module

from saaug_keras import _files
from saaug_keras.search import oracle as oracle_module

Status = trial_module.TrialStatus
CHIEF_SECONDS = 40.0  # a worker that cannot reach its chief for so long ends
# Of keras_tuner.Tuner, and about the model that it would compile and fit in each trial.
_WITHOUT_EFFECT = {
    "distribution_strategy",
    "executions_per_trial",
    "hypermodel",
    "loss",
    "max_model_size",
    "metrics",
    "optimizer",
}
_PING_MS = 10_000  # between two signs of life on an idle connection


class TwoStageTuner(keras_tuner.Tuner):
    """Evaluates the candidates of an oracle; used like any KerasTuner tuner.

    A trial is one call of `evaluate`: nothing is trained or saved per trial, so that disk and memory stay bounded
    (one small JSON file a trial).

    Args:
        oracle: a `TwoStageOracle`, or another `keras_tuner.Oracle` whose objective is what `evaluate` returns.
        evaluate: callable: values -> the objective, or a dict of metrics. Values are those of the trial: the active
            genes, "stage", and in stage 2 the genes of the first stage's winner too. Optional attributes:
            `prepare(*args, **kwargs)`, called once with what `search` was given; `build_model(values)` -> a Keras
            model with the candidate's weights, for `get_best_models`.
        **kwargs: directory, project_name, overwrite, logger, tuner_id, as `keras_tuner.Tuner`.
    Raises:
        ValueError: an argument of `keras_tuner.Tuner` that has nothing to act on here, since no model is compiled or fitted
            per trial.
    """

    def __init__(self, oracle, evaluate, **kwargs):
        for name in sorted(_WITHOUT_EFFECT & set(kwargs)):
            if kwargs[name] not in (None, 1):
                raise ValueError(
                    f"TwoStageTuner: `{name}` must be left out: a trial is one call of `evaluate`, which decides that itself. "
                    f"Received: {name}={kwargs[name]!r}."
                )
        self.evaluate = evaluate
        self._own_oracle = oracle  # on a worker, `self.oracle` is a client of the chief's
        super().__init__(oracle, **kwargs)
        is_ours = isinstance(oracle, oracle_module.TwoStageOracle) and not self._is_worker()
        if is_ours and not kwargs.get("overwrite") and not os.path.exists(self._get_tuner_fname()):
            oracle.reload()  # killed before the tuner's own first file

    def run_trial(self, trial, *args, **kwargs):
        """Evaluates one candidate; also reports the seconds that it took."""
        begin = time.perf_counter()
        result = self.evaluate(dict(trial.hyperparameters.values))
        metrics = dict(result) if isinstance(result, dict) else {self.oracle.objective.name: float(result)}
        if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise keras_tuner.errors.FailedTrialError(f"{broken[0]} must be finite, not {metrics[broken[0]]}")
        return {**metrics, "seconds": time.perf_counter() - begin}

    def search(self, *args, **kwargs):
        """Runs trials until the oracle has no more. Arguments are handed to `evaluate.prepare`; `verbose` is 0 or 1.

        Under a chief's environment variables, the chief serves the oracle and returns when all workers are done.

        Raises:
            RuntimeError: the search cannot go on (too many failed trials in a row, no candidate within the limits).
            ValueError: a worker whose space, limits or version are not its chief's.
            ConnectionError: a worker whose chief cannot be reached for `CHIEF_SECONDS`.
        """
        chief = "KERASTUNER_ORACLE_IP" in os.environ and not self._is_worker()
        if not self._is_worker() and "verbose" in kwargs:
            self.oracle.verbose = kwargs.pop("verbose")
        kwargs.pop("verbose", None)
        if chief:
            self.save()
            serve(self.oracle)
            return
        with _Chief(self.oracle) if self._is_worker() else contextlib.nullcontext():
            self._work(*args, **kwargs)
        if getattr(self.oracle, "failure", None):
            raise RuntimeError(f"{type(self).__name__}: {self.oracle.failure}")

    def _work(self, *args, **kwargs):
        if self._is_worker():
            self._check_chief()
        if hasattr(self.evaluate, "prepare"):
            self.evaluate.prepare(*args, **kwargs)
        self.on_search_begin()
        pause = 0.05
        while True:
            self.pre_create_trial()
            trial = self.oracle.create_trial(self.tuner_id)
            if trial.status == Status.STOPPED:
                break
            if trial.status == Status.IDLE:
                time.sleep(pause)  # others are still at it, and one of their trials may come to us
                pause = min(2.0, 2 * pause)
                continue
            pause = 0.05
            self.on_trial_begin(trial)
            self._run(trial, *args, **kwargs)
            self.on_trial_end(trial)
        self.on_search_end()

    def _run(self, trial, *args, **kwargs):
        try:
            with self._heartbeat(trial):
                metrics = self.run_trial(trial, *args, **kwargs)
        except keras_tuner.errors.FailedTrialError as error:
            # The protocol carries no message: here is where it can be read.
            print(f"trial {trial.trial_id} failed: {error}", flush=True)
            trial.status, trial.message = Status.FAILED, str(error)
            return
        self.oracle.update_trial(trial.trial_id, metrics)
        trial.status = Status.COMPLETED

    @contextlib.contextmanager
    def _heartbeat(self, trial):
        """Tells the chief from time to time that this worker lives."""
        if not self._is_worker():
            yield
            return
        seconds = max(0.05, self._lease_seconds / 4)
        over = threading.Event()

        def beat():
            while not over.wait(seconds):
                with contextlib.suppress(ConnectionError):  # which the watch over the chief ends with
                    self.oracle.update_trial(trial.trial_id, {oracle_module.HEARTBEAT: 1.0})

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _check_chief(self):
        own = self._own_oracle
        self._lease_seconds = getattr(own, "lease_seconds", 120.0)
        if not isinstance(own, oracle_module.TwoStageOracle):
            return
        entry = [hp for hp in self.oracle.get_space().space if hp.name == "search_identity"]
        theirs = json.loads(entry[0].value) if entry else {}
        if theirs != own.identity:
            raise ValueError(oracle_module._difference("the chief's search", theirs, own.identity))

    def load_model(self, trial):
        """The candidate as a Keras model with its weights, by `evaluate.build_model`."""
        if not hasattr(self.evaluate, "build_model"):
            raise ValueError(
                f"{type(self).__name__}: `evaluate` must have a `build_model` method for get_best_models. "
                f"Received: evaluate={self.evaluate!r}."
            )
        return self.evaluate.build_model(dict(trial.hyperparameters.values))

    def save(self):
        """Writes the tuner's file; the oracle writes its own state whenever it changes."""
        if not os.path.exists(self._get_tuner_fname()):
            if not self._is_worker():
                self.oracle.save()
            _files.write_atomic(self._get_tuner_fname(), json.dumps(self.get_state()))

    def reload(self):
        """Reads the oracle's state back; the tuner itself has none."""
        if not self._is_worker():
            self.oracle.reload()


class _Chief:
    """A worker's connection to its chief, in the place of KerasTuner's own, which waits an hour for one that is gone.

    A context: while it is open, a thread watches the connection. When it is lost for `CHIEF_SECONDS`, the call that waits
    for the chief, or whatever else the main thread does, ends in a ConnectionError. A chief that comes back in time, and
    one that thinks for long, are waited for.

    Args:
        client: KerasTuner's client of the chief's oracle.
    """

    def __init__(self, client):
        import grpc
        from keras_tuner.src import protos

        self.address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
        self.channel = grpc.insecure_channel(
            self.address,
            options=[
                ("grpc.keepalive_time_ms", _PING_MS),
                ("grpc.keepalive_timeout_ms", _PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self.stub = protos.get_service_grpc().OracleStub(self.channel)
        self.over = threading.Event()
        self.lost = None  # the error that says so
        client.stub = self

    def __getattr__(self, name):
        import grpc

        method = getattr(self.stub, name)

        def call(request, **_):  # KerasTuner's own patience is not asked
            while True:
                self._reach()
                try:
                    return method(request)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise

        return call

    def _reach(self):
        """Waits for the connection, as long as the watch does."""
        while not self._is_ready(0.5):
            if self.lost is not None:
                raise self.lost

    def _is_ready(self, seconds):
        import grpc

        ready = grpc.channel_ready_future(self.channel)
        try:
            ready.result(timeout=seconds)
        except grpc.FutureTimeoutError:
            ready.cancel()
            return False
        return True

    def _watch(self, main):
        while not self.over.wait(1):
            if self._is_ready(CHIEF_SECONDS) or self.over.is_set():
                continue
            self.lost = ConnectionError(
                f"TwoStageTuner: the chief at {self.address} cannot be reached for {CHIEF_SECONDS:g} s. Start it again, "
                "then this worker; the search goes on."
            )
            if main is not None:
                signal.pthread_kill(main, signal.SIGUSR1)
            return

    def _end(self, *_):
        raise self.lost

    def __enter__(self):
        main = threading.main_thread().ident if threading.current_thread() is threading.main_thread() else None
        # Not SIGINT, which shells have background jobs ignore.
        self.before = None if main is None else signal.signal(signal.SIGUSR1, self._end)
        threading.Thread(target=self._watch, args=(main,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.before is not None:
            signal.signal(signal.SIGUSR1, self.before)


def serve(oracle, *, poll_seconds: float = 0.2):
    """Serves an oracle to workers, at KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT, until the search is over.

    Raises:
        OSError: the address cannot be used.
        RuntimeError: the search failed; the message says why.
    """
    import grpc
    from keras_tuner.src import protos  # the protocol has no public name
    from keras_tuner.src.distribute import oracle_chief

    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=4),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS // 2),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    servicer = _Servicer(oracle, oracle_chief.OracleServicer(oracle))
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"TwoStageTuner: the chief cannot listen at {address}. Is another search there?") from error
    server.start()
    try:
        while not oracle.is_over():
            if servicer.error is not None:
                raise servicer.error
            time.sleep(poll_seconds)
        if oracle.failure is not None:
            raise RuntimeError(f"TwoStageTuner: {oracle.failure}")
    finally:
        server.stop(grace=1.0).wait()


class _Servicer:
    """KerasTuner's servicer; an OSError (a full disk) ends the chief too, not only the worker that met it."""

    def __init__(self, oracle, inner):
        self.oracle = oracle
        self.inner = inner
        self.error = None

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        def call(request, context):
            try:
                return method(request, context)
            except OSError as error:
                self.error = error
                raise

        return call
