"""The oracle of the two-stage search: trials, workers and a state that survives anything. What to try is `evolution`'s.

It speaks KerasTuner's protocol (create_trial, update_trial, end_trial, get_space, ...), so its chief and workers serve
it unchanged. It does not use the base class's implementation of those calls: that one keeps its lock after an
exception, writes its state in place, and waits for ever for a worker that is gone.
"""

from __future__ import annotations

import functools
import json
import pathlib
import threading
import time
import warnings

import keras_tuner
import numpy as np
from keras_tuner.engine import trial as trial_module

from saaug_keras import _files, _validate
from saaug_keras._page import duration
from saaug_keras._version import __version__
from saaug_keras.search.evolution import Evolution

Status = trial_module.TrialStatus
HEARTBEAT = "heartbeat"


def _locked(method):
    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with self._lock:
            return method(self, *args, **kwargs)

    return wrapped


class TwoStageOracle(keras_tuner.Oracle):
    """Steady-state ageing evolution under limits, in one or two stages.

    Stage 1 searches `space`; its best trial makes the space of stage 2 (`space.second_stage`), if there is one. In
    each stage the first `population_size` trials are random; after that a proposal is a mutation or a crossover, with
    equal chances, of the `top` best among the `population_size` trials that finished last. There is no barrier
    between generations: a slow or lost worker holds nobody up.

    "Best" is NSGA-II's order on the objective and the costs in `minimize`, feasible trials before infeasible ones. A
    candidate beyond a limit is rejected before it becomes a trial, and counted by reason in `evolution.rejects`; so is one of
    stage 1 that is beyond the limits of stage 2 without all the layers that may go there.

    Every draw depends on `seed` and the number of proposals so far, and on finished trials, on nothing else: so a
    killed search goes on with the same proposals.

    Args:
        space: `GeneSpace` of the first stage.
        stage_trials: trials of stage 1 and of stage 2, ints in [1, 1000000]; one int for a search of one stage.
        limits: cost name -> largest allowed value; the names are in `space.cost_names`.
        slack: cost name -> factor >= 1 on that limit in stage 1, whose winner loses layers in stage 2.
        minimize: costs to be kept small beside the objective being kept large.
        strategy: "evolution" or "random" (the same space, limits and rejection without learning: the baseline).
        population_size, top: trials that count as alive, and those that become parents.
        mutation_probability: per gene, in [0, 1].
        reject_infeasible: False lets candidates beyond the limits become trials, ranked behind the feasible ones.
        attempts: draws for one proposal; after them the last draw is shrunk, gene by gene, until it fits.
        lease_seconds: a trial whose worker sends no sign of life for so long goes to another worker.
        lost_leases: a trial lost so often counts as failed.
        max_consecutive_failed_trials: after so many failures in a row the search ends with an error.
        objective: metric that the tuner reports, to be kept large.
        seed: int.
    Raises:
        ValueError: an unknown cost, a number out of range, or a limit that no candidate meets (with what the smallest
            candidate needs).
    Source: ageing evolution, Real et al. 2018, arXiv:1802.01548; ranking, Deb et al. 2002; numbers, ShiftAddNAS.
    """

    def __init__(
        self,
        space,
        stage_trials=(500, 500),
        *,
        limits=None,
        slack=None,
        minimize=(),
        strategy="evolution",
        population_size=50,
        top=10,
        mutation_probability=0.2,
        reject_infeasible=True,
        attempts=200,
        lease_seconds=120.0,
        lost_leases=3,
        max_consecutive_failed_trials=3,
        objective="val_accuracy",
        seed=0,
    ):
        owner = "TwoStageOracle"
        stages = (stage_trials,) if isinstance(stage_trials, int) else tuple(stage_trials)
        for number in stages:
            _validate.int_in(owner, "stage_trials", number, 1, 1_000_000, " trials")
        self.stage_trials = stages
        self.evolution = Evolution(
            owner,
            space.cost_names,
            len(stages),
            limits=limits,
            slack=slack,
            minimize=minimize,
            strategy=strategy,
            population_size=population_size,
            top=top,
            mutation_probability=mutation_probability,
            reject_infeasible=reject_infeasible,
            attempts=attempts,
        )
        self.lease_seconds = _validate.number_in(owner, "lease_seconds", lease_seconds, 0.1, 86400, " s")
        super().__init__(
            objective=keras_tuner.Objective(objective, "max"),
            max_trials=sum(stages),
            hyperparameters=space.hyperparameters(),
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        self.seed = _validate.int_in(owner, "seed", seed, 0, 2**63 - 1)  # after super, which turns 0 into a random one
        self.space = space
        self.lost_leases = lost_leases
        self.stage = 1
        self.subnet = None  # values of the first stage's winner
        self.failure = None  # why the search cannot go on; the tuner raises it
        self.clock = time.monotonic
        self._spaces = {1: space}
        self._lock = threading.RLock()
        self._exhausted = False  # the last stage has no candidate left
        self._proposals = 0
        self._facts = {}  # trial id -> {"values", "stage", "costs"}
        self._leases = {}  # trial id -> (tuner id, end of the lease)
        self._seen = {}  # tuner id -> when it last spoke
        self._losses = {}  # trial id -> expired leases
        self._display = TrialLines(self)
        self.evolution.check_limits(space, 1)

    # Space and limits

    @property
    def identity(self) -> dict:
        """What must be equal for a state or a worker to belong to this search."""
        return {
            "version": __version__,
            "space": self.space.identity,
            "stages": len(self.stage_trials),
            "limits": self.evolution.limits,
            "slack": self.evolution.slack,
            "minimize": list(self.evolution.minimize),
            "objective": self.objective.name,
        }

    def stage_space(self, stage: int):
        """The `GeneSpace` of a stage that has begun."""
        if stage not in self._spaces:
            self._spaces[stage] = self.space.second_stage(self.subnet)
        return self._spaces[stage]

    # Proposals

    def populate_space(self, trial_id):
        """The next candidate: {"status", "values"}. Never raises for lack of one: `failure` then says why."""
        if self.failure is not None:
            return {"status": Status.STOPPED}
        if self._started(self.stage) >= self.stage_trials[self.stage - 1]:
            if self.ongoing_trials or self._retry_queue:
                return {"status": Status.IDLE}
            if self.stage == len(self.stage_trials) or not self._begin_next_stage():
                return {"status": Status.STOPPED}
        ended = [i for i in self.end_order if self._facts[i]["stage"] == self.stage and self._is_scored(self.trials[i])]
        parents = self.evolution.parents(self._candidates(ended), self.stage_trials[self.stage - 1])
        rng = np.random.default_rng([self.seed, self._proposals])
        values = self.evolution.propose(self.stage_space(self.stage), self.stage, parents, rng)
        if values is None:
            # Exhausted: every candidate that fits was tried. What is ongoing still counts.
            if self.ongoing_trials or self._retry_queue:
                return {"status": Status.IDLE}
            if self.stage < len(self.stage_trials) and self._begin_next_stage():
                return self.populate_space(trial_id)
            self._exhausted = True
            return {"status": Status.STOPPED}
        return {"status": Status.RUNNING, "values": values}

    def _started(self, stage):
        return sum(facts["stage"] == stage for facts in self._facts.values())

    def _begin_next_stage(self):
        within = [t for t in self.ranked(self.stage) if self._violation_of(t) == 0]
        if not within:
            self.failure = f"stage {self.stage} ended without one finished trial within the limits."
            return False
        # Where candidates beyond the limits become trials, the best one may be too large without its optional layers, too.
        space, facts = self.stage_space(self.stage), [self._facts[t.trial_id]["values"] for t in within]
        self.subnet = dict(next((v for v in facts if self.evolution.has_descendant(space, self.stage, v)), facts[0]))
        if self.space.second_stage(self.subnet) is None:
            return False
        self.stage += 1
        try:
            self.evolution.check_limits(self.stage_space(self.stage), self.stage)
        except ValueError as error:
            self.failure = f"{error} All of the first stage's networks are too large even without their optional layers."
            return False
        return True

    # Ranking

    @staticmethod
    def _is_scored(trial):
        return trial.status == Status.COMPLETED and trial.score is not None

    def _violation_of(self, trial):
        facts = self._facts[trial.trial_id]
        return self.evolution.violation(facts["stage"], facts["costs"])

    def _candidates(self, trial_ids):
        """Scored trials as `Evolution` ranks them."""
        return [{**self._facts[i], "score": self.trials[i].score} for i in trial_ids]

    def _scored(self, stage):
        stage = stage or self.stage
        return [t for i, t in self.trials.items() if self._facts[i]["stage"] == stage and self._is_scored(t)]

    @_locked
    def ranked(self, stage=None):
        """Finished trials of a stage (default: the current one): feasible ones first, then by score, best first."""
        return sorted(self._scored(stage), key=lambda t: (self._violation_of(t), -t.score))

    @_locked
    def pareto_front(self, minimize=None, stage=None):
        """The feasible trials that no other dominates, by falling score.

        Args:
            minimize: costs beside the objective. Default: the oracle's, or all of the space's if it has none.
            stage: 1 or 2. Default: the stage reached.
        """
        trials = self._scored(stage)
        candidates = self._candidates([trial.trial_id for trial in trials])
        return [trials[index] for index in self.evolution.front(candidates, minimize)]

    @_locked
    def get_best_trials(self, num_trials=1):
        """The best trials of the stage reached, feasible ones first; of the first if the second has none yet."""
        return (self.ranked() or self.ranked(1))[:num_trials]

    @_locked
    def candidate(self, trial_id) -> dict:
        """{"stage", "values", "costs", "feasible"} of a trial."""
        facts = self._facts[trial_id]
        return {**facts, "feasible": self._violation_of(self.trials[trial_id]) == 0}

    @_locked
    def history(self) -> list[dict]:
        """One plain row for every finished trial, in the order of finishing."""
        rows = []
        for trial_id in self.end_order:
            trial = self.trials[trial_id]
            seconds = trial.metrics.get_last_value("seconds") if trial.metrics.exists("seconds") else None
            rows.append(
                {
                    "trial": trial_id,
                    "status": trial.status,
                    "score": trial.score,
                    "seconds": None if seconds is None else float(seconds),
                    **self.candidate(trial_id),
                }
            )
        return rows

    # KerasTuner's protocol

    @_locked
    def get_space(self):
        """The space with one more entry, which says whose search this is."""
        space = self.space.hyperparameters()
        space.Fixed("search_identity", json.dumps(self.identity, sort_keys=True))
        return space

    @_locked
    def create_trial(self, tuner_id):
        """The next trial for a tuner, or an empty one that says IDLE or STOPPED."""
        self.tuner_ids.add(tuner_id)
        self._seen[tuner_id] = self.clock()
        if tuner_id in self.ongoing_trials:
            return self.ongoing_trials[tuner_id]
        self.expire_leases()
        if self._retry_queue and self.failure is None:
            trial = self.trials[self._retry_queue.pop(0)]
            trial.status = Status.RUNNING
        else:
            trial_id = f"{self._proposals:0{len(str(self.max_trials))}d}"
            response = self.populate_space(trial_id)
            if response["status"] != Status.RUNNING:
                if response["status"] == Status.STOPPED:
                    self.tuner_ids.discard(tuner_id)
                    self.save()
                return trial_module.Trial(self._hyperparameters({}), trial_id, response["status"])
            trial = self._new_trial(trial_id, self.stage, response["values"])
        self._leases[trial.trial_id] = (tuner_id, self.clock() + self.lease_seconds)
        self.ongoing_trials[tuner_id] = trial
        self.save()
        self._display.on_trial_begin(trial)
        return trial

    def _hyperparameters(self, values):
        # Values without the space: it is the same for every trial, and would be most of every file.
        hyperparameters = keras_tuner.HyperParameters()
        hyperparameters.values = dict(values)
        return hyperparameters

    def _new_trial(self, trial_id, stage, values):
        values = {"stage": stage, **(self.subnet if stage > 1 else {}), **values}
        trial = trial_module.Trial(self._hyperparameters(values), trial_id, Status.RUNNING)
        self._proposals += 1
        self.trials[trial_id] = trial
        self.start_order.append(trial_id)
        self._remember(trial)
        return trial

    def _remember(self, trial):
        values = dict(trial.hyperparameters.values)
        stage = values.pop("stage")
        space = self.stage_space(stage)
        values = {name: value for name, value in values.items() if name in space.genes}
        self._facts[trial.trial_id] = {
            "stage": stage,
            "values": values,
            "costs": {n: float(c) for n, c in space.costs(values).items()},
        }
        self.evolution.tried.add(self.evolution.key(values))

    @_locked
    def update_trial(self, trial_id, metrics, step=0):
        """Records a worker's metrics; metrics of which one is "heartbeat" only renew the lease."""
        trial = self._known(trial_id)
        lease = self._leases.get(trial_id)
        if lease is not None:
            self._leases[trial_id] = (lease[0], self.clock() + self.lease_seconds)
            self._seen[lease[0]] = self.clock()
        if HEARTBEAT in metrics:
            return trial
        if self.objective.name not in metrics:
            raise ValueError(f"TwoStageOracle: `metrics` must hold '{self.objective.name}'. Received: metrics={dict(metrics)}.")
        if trial.status not in (Status.COMPLETED, Status.FAILED):  # a lost worker's late word changes nothing
            for name, value in metrics.items():
                if not trial.metrics.exists(name):
                    trial.metrics.register(name, direction="max" if name == self.objective.name else "min")
                trial.metrics.update(name, value, step=step)
        return trial

    def _known(self, trial_id):
        if trial_id not in self.trials:
            raise ValueError(
                f"TwoStageOracle: `trial_id` must be one of this search's {len(self.trials)} trials. "
                f"Received: trial_id={trial_id!r}; does the worker belong to another search?"
            )
        return self.trials[trial_id]

    @_locked
    def get_trial(self, trial_id):
        return self._known(trial_id)

    @_locked
    def end_trial(self, trial):
        """Takes a trial's end; of a trial that two workers ran, the first end counts."""
        mine = self._known(trial.trial_id)
        holder = self._leases.pop(trial.trial_id, (None, 0))[0]
        if holder is not None:
            self._seen[holder] = self.clock()
        for tuner_id in [t for t, ongoing in self.ongoing_trials.items() if ongoing.trial_id == trial.trial_id]:
            del self.ongoing_trials[tuner_id]
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        if mine.status in (Status.COMPLETED, Status.FAILED) and trial.trial_id in self.end_order:
            return
        mine.status = trial.status
        mine.message = trial.message
        self._finish(mine)
        self._save_trial(mine)  # the oracle's own state follows with the next trial: it finds this one finished
        self._display.on_trial_end(mine)

    def _finish(self, trial):
        if trial.status == Status.COMPLETED:
            self.score_trial(trial)
            if not np.isfinite(trial.score):
                trial.status, trial.score = Status.FAILED, None
                trial.message = f"{self.objective.name} is not finite"
        else:
            trial.status = Status.FAILED
        self.end_order.append(trial.trial_id)
        last = [self.trials[i] for i in self.end_order[-self.max_consecutive_failed_trials :]]
        if len(last) == self.max_consecutive_failed_trials and all(t.status == Status.FAILED for t in last):
            self.failure = f"{len(last)} trials failed in a row. The last one: {trial.message or 'no message'}"

    def score_trial(self, trial):
        trial.score = float(trial.metrics.get_last_value(self.objective.name))  # a trial reports once

    # Leases

    @_locked
    def expire_leases(self):
        """Takes trials from workers that gave no sign of life for `lease_seconds`; returns their ids."""
        now = self.clock()
        late = [trial_id for trial_id, (_, end) in self._leases.items() if end < now]
        for trial_id in late:
            tuner_id, _ = self._leases.pop(trial_id)
            self.ongoing_trials.pop(tuner_id, None)
            self.tuner_ids.discard(tuner_id)
            self._losses[trial_id] = self._losses.get(trial_id, 0) + 1
            warnings.warn(
                f"TwoStageOracle: worker {tuner_id} gave no sign of life for {self.lease_seconds:g} s; "
                f"trial {trial_id} goes to another.",
                stacklevel=2,
            )
            if self._losses[trial_id] >= self.lost_leases:
                trial = self.trials[trial_id]
                trial.status, trial.message = Status.FAILED, f"lost by {self._losses[trial_id]} workers"
                self._finish(trial)
                self._save_trial(trial)
                self.save()
            else:
                self._retry_queue.append(trial_id)
        busy = {tuner_id for tuner_id, _ in self._leases.values()}
        for tuner_id in list(self.tuner_ids - busy):
            if self._seen.get(tuner_id, 0) + self.lease_seconds < now:
                self.tuner_ids.discard(tuner_id)
        return late

    @_locked
    def is_over(self) -> bool:
        """Whether nothing is left to run and every living worker has been told so."""
        self.expire_leases()
        if self.failure is not None:
            return not self.tuner_ids - set(self.ongoing_trials)
        done = self.stage == len(self.stage_trials) and self._started(self.stage) >= self.stage_trials[-1]
        return (done or self._exhausted) and not self.ongoing_trials and not self._retry_queue and not self.tuner_ids

    @_locked
    def remaining_trials(self):
        return self.max_trials - len(self.trials)

    # State

    @_locked
    def get_state(self):
        ended = set(self.end_order)
        return {
            "identity": self.identity,
            "seed": self.seed,
            "proposals": self._proposals,  # with the seed, this is the whole random state
            "stage": self.stage,
            "subnet": self.subnet,
            "start_order": self.start_order,
            "end_order": self.end_order,
            "ongoing": {i: self.trials[i].hyperparameters.values for i in self.start_order if i not in ended},
            "losses": self._losses,
            "rejects": self.evolution.rejects,
            "rejected": self.evolution.rejected,
            "failure": self.failure,
            "display": self._display.get_state(),
        }

    @_locked
    def set_state(self, state):
        if state.get("identity") != self.identity:
            raise ValueError(_difference(f"the state in {self._state_path()}", state.get("identity"), self.identity))
        self.seed = state["seed"]
        self._proposals = state["proposals"]
        self.stage = state["stage"]
        self.subnet = state["subnet"]
        self.evolution.rejects = state["rejects"]
        self.evolution.rejected = state["rejected"]
        self._losses = state["losses"]
        self._display.set_state(state["display"])
        for trial_id, values in state["ongoing"].items():
            if trial_id not in self.trials:
                self.trials[trial_id] = trial_module.Trial(self._hyperparameters(values), trial_id, Status.RUNNING)
        self._restore(state["start_order"], state["end_order"])

    def _restore(self, start_order, end_order):
        """Fits the trials that were read to the order in which they ran."""
        self.trials = {i: self.trials[i] for i in start_order if i in self.trials}
        self.start_order = list(self.trials)
        self.end_order = [i for i in end_order if i in self.trials]
        self._facts, self._spaces = {}, {1: self.space}
        self.evolution.tried.clear()
        self.ongoing_trials, self._leases, self._retry_queue, self.failure = {}, {}, [], None
        for trial in self.trials.values():
            self._remember(trial)
        for trial_id in self.start_order:
            if trial_id in self.end_order:
                continue
            if self._is_scored(self.trials[trial_id]):
                self.end_order.append(trial_id)  # finished, but killed before the oracle's own state was written
            else:
                self.trials[trial_id].metrics = trial_module.Trial(None).metrics
                self._retry_queue.append(trial_id)

    def _state_path(self):
        return pathlib.Path(self._get_oracle_fname())

    def save(self):
        self._write(self._state_path(), self.get_state())

    def _save_trial(self, trial):
        self._write(self._trial_path(trial.trial_id), trial.get_state())

    def _trial_path(self, trial_id):
        return pathlib.Path(self._project_dir) / f"trial_{trial_id}" / "trial.json"

    def _write(self, path, state):
        try:
            _files.write_atomic(path, json.dumps(state))
        except OSError as error:
            raise OSError(
                error.errno,
                f"TwoStageOracle: cannot write the search's state ({error.strerror}). Everything written before is "
                "intact: make room and start again with the same directory to go on",
                str(path),
            ) from error

    @_locked
    def reload(self):
        """Reads the state back. Trials that were running will be run again, first of all.

        A trial file that cannot be read is skipped with a warning. Without the oracle's own file the search is
        rebuilt from its finished trials.

        Raises:
            ValueError: oracle.json is damaged, or belongs to another search or version.
        """
        folder = pathlib.Path(self._project_dir)
        for aside in [*folder.glob(".oracle.json.*"), *folder.glob("trial_*/.trial.json.*")]:
            aside.unlink(missing_ok=True)  # left by a kill in the middle of a write
        self.trials = {}
        for path in sorted(folder.glob("trial_*/trial.json")):
            try:
                trial = trial_module.Trial.from_state(json.loads(path.read_text()))
                if "stage" not in trial.hyperparameters.values:
                    raise KeyError("stage")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                warnings.warn(f"TwoStageOracle: skipped the damaged trial file {path} ({error!r}).", stacklevel=2)
                continue
            self.trials[trial.trial_id] = trial
        path = self._state_path()
        if not path.exists():
            self._rebuild()
            return
        try:
            state = json.loads(path.read_text())
            complete = isinstance(state, dict) and "display" in state
        except ValueError:
            complete = False
        if not complete:
            finished = sum(self._is_scored(t) for t in self.trials.values())
            raise ValueError(
                f"TwoStageOracle: the state file {path} is damaged. The {finished} finished trials beside it are "
                "intact: delete this one file and start again, and the search goes on from them."
            )
        self.set_state(state)

    def _rebuild(self):
        trials = sorted(self.trials)
        if not trials:
            return
        warnings.warn(
            f"TwoStageOracle: no oracle.json in {self._project_dir}; the search was rebuilt from {len(trials)} trial "
            "files. Rejects before this moment are not counted.",
            stacklevel=2,
        )
        self._proposals = 1 + max(map(int, trials))
        self.stage = max(t.hyperparameters.values["stage"] for t in self.trials.values())
        second = [t for t in self.trials.values() if t.hyperparameters.values["stage"] > 1]
        if second:
            names = self.space.genes
            self.subnet = {n: v for n, v in second[0].hyperparameters.values.items() if n in names}
        ended = [i for i in trials if self.trials[i].status in (Status.COMPLETED, Status.FAILED)]
        self._restore(trials, ended)


def _difference(owner, theirs, ours):
    """Says in what two identities differ."""
    theirs = theirs or {}
    parts = [f"{key}: {theirs.get(key)!r} there, {ours[key]!r} here" for key in ours if theirs.get(key) != ours[key]]
    return (
        f"TwoStageOracle: {owner} belongs to another search ({'; '.join(parts)}). Use the same space, limits and "
        "version, or another directory."
    )


class TrialLines:
    """One line for each finished trial, with the time left; in place of KerasTuner's tables."""

    def __init__(self, oracle):
        self.oracle = oracle
        self.verbose = 1
        self._elapsed = 0.0
        self._begun = None
        self._ended = 0

    def get_state(self):
        return {"elapsed": self.elapsed()}

    def set_state(self, state):
        self._elapsed = state["elapsed"]

    def elapsed(self) -> float:
        """Seconds of searching, over all restarts."""
        return self._elapsed + (0 if self._begun is None else time.monotonic() - self._begun)

    def on_trial_begin(self, trial):
        if self._begun is None:
            self._begun = time.monotonic()

    def on_trial_end(self, trial):
        self._ended += 1
        if self.verbose < 1:
            return
        oracle = self.oracle
        facts = oracle.candidate(trial.trial_id)
        costs = ", ".join(
            f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in facts["costs"].items()
        )
        score = "failed" if trial.score is None else f"{oracle.objective.name} {trial.score:.4f}"
        best = oracle.ranked(facts["stage"])[:1]
        best = f" (best {best[0].score:.4f})" if best else ""
        spent = 0 if self._begun is None else time.monotonic() - self._begun
        left = (oracle.max_trials - len(oracle.end_order)) * spent / self._ended  # of the stages' full length
        print(
            f"stage {facts['stage']}, trial {len(oracle.end_order)} of {oracle.max_trials}: {score}{best}; {costs}; "
            f"{duration(left)} left",
            flush=True,
        )
