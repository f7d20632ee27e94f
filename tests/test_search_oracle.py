"""The oracle: proposals, limits, ranking, state, leases. Nothing here trains a network."""

import errno
import json
import os
import signal
import time

import counting
import keras_tuner
import numpy as np
import pytest
from search_toys import ToySpace, toy_accuracy

from saaug_keras import _files
from saaug_keras.search import TwoStageOracle, TwoStageTuner, pareto

LIMITS = {"flash_bytes": 150.0, "ram_bytes": 4.0}


def make_oracle(folder, stage_trials=(30, 20), **options):
    options = {"limits": LIMITS, "population_size": 10, "top": 4, "seed": 0} | options
    oracle = TwoStageOracle(options.pop("space", None) or ToySpace(), stage_trials, **options)
    oracle.verbose = 0
    oracle._set_project_dir(str(folder), "search")
    return oracle


def run(oracle, tuner_id="tuner0", trials=10**6):
    """What a tuner does, without one."""
    for _ in range(trials):
        trial = oracle.create_trial(tuner_id)
        if trial.status != "RUNNING":
            return trial.status
        finish(oracle, trial)
    return None


def finish(oracle, trial, value=None):
    value = toy_accuracy(trial.hyperparameters.values) if value is None else value
    oracle.update_trial(trial.trial_id, {"val_accuracy": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def proposals(oracle):
    return [oracle.trials[i].hyperparameters.values for i in oracle.start_order]


# Genes


def test_size_counts_every_candidate_once():
    # Per stage: depth 1, 2 or 3 blocks of 3 kernels x 3 expansions each; four widths.
    assert ToySpace(stages=2).size() == 4 * (9 + 9**2 + 9**3) ** 2


def test_draws_are_canonical_and_mutation_changes_something():
    space, rng = ToySpace(), np.random.default_rng(1)
    a, b = space.sample(rng), space.sample(rng)
    for child in (space.mutate(a, rng, 0.2), space.mutate(a, rng, 0.0), space.crossover(a, b, rng)):
        assert child == space.canonical(child)
        assert list(child) == list(space.canonical(child))
        assert child != a
    with pytest.raises(ValueError, match="ToySpace: `width` must be one of 0.25, 0.5"):
        space.canonical({"width": 3})


def test_keras_tuners_own_oracles_search_the_same_space(tmp_path):
    space = ToySpace()
    oracle = keras_tuner.oracles.RandomSearchOracle(
        keras_tuner.Objective("val_accuracy", "max"), 12, hyperparameters=space.hyperparameters(), seed=3
    )
    tuner = TwoStageTuner(oracle, toy_accuracy, directory=str(tmp_path), project_name="stock")
    tuner.search(verbose=0)
    values = [hp.values for hp in tuner.get_best_hyperparameters(12)]
    assert len(values) == 12
    assert all(space.canonical(v) == v for v in values)


# Pareto


def test_fronts_put_feasible_before_infeasible_and_rank_by_dominance():
    objectives = [[1, 1], [0, 2], [2, 2], [0, 0], [0, 0]]
    violations = [0, 0, 0, 0.5, 0.1]
    assert pareto.fronts(objectives, violations).tolist() == [0, 0, 1, 3, 2]
    assert pareto.best_first(objectives, violations).tolist()[-2:] == [4, 3]


def test_crowding_prefers_the_lonely():
    objectives = np.array([[0.0, 4.0], [1.0, 3.0], [1.1, 2.9], [4.0, 0.0]])
    distance = pareto.crowding(objectives, np.zeros(4, int))
    assert np.isinf(distance[[0, 3]]).all()
    # Neighbours of 1: 0 and 2; of 2: 1 and 3; each axis spans 4.
    assert distance[1] == pytest.approx(1.1 / 4 + 1.1 / 4)
    assert distance[2] == pytest.approx(3.0 / 4 + 3.0 / 4)


def test_pareto_front_of_a_search_has_no_dominated_trial(tmp_path):
    oracle = make_oracle(tmp_path, (60,), minimize=("flash_bytes",), space=ToySpace(second=False))
    run(oracle)
    front = oracle.pareto_front()
    points = [(-t.score, oracle.candidate(t.trial_id)["costs"]["flash_bytes"]) for t in front]
    everyone = [(-t.score, oracle.candidate(t.trial_id)["costs"]["flash_bytes"]) for t in oracle.trials.values()]
    assert len(front) > 2
    for a in points:
        assert not any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in everyone)
    assert [p[1] for p in points] == sorted((p[1] for p in points), reverse=True)


# Limits


def test_infeasible_candidates_cost_no_trial_and_are_counted_by_reason(tmp_path):
    oracle = make_oracle(tmp_path)
    assert run(oracle) == "STOPPED"
    assert len(oracle.trials) == 50
    rows = oracle.history()
    assert all(row["feasible"] for row in rows)
    assert all(row["costs"]["flash_bytes"] <= 150 and row["costs"]["ram_bytes"] <= 4 for row in rows)
    assert oracle.evolution.rejects["1"]["flash_bytes"] > 10 and oracle.evolution.rejects["1"]["ram_bytes"] > 10
    assert len(oracle.evolution.rejected["1"]) > 10


def test_infeasible_trials_rank_behind_feasible_ones_when_they_are_let_in(tmp_path):
    oracle = make_oracle(tmp_path, (40,), reject_infeasible=False, space=ToySpace(second=False))
    run(oracle)
    feasible = [oracle.candidate(t.trial_id)["feasible"] for t in oracle.get_best_trials(40)]
    assert 0 < sum(feasible) < 40
    assert feasible == sorted(feasible, reverse=True)


@pytest.mark.parametrize("reject", [True, False])
def test_the_first_stage_ends_with_a_network_that_can_lose_enough(reject, tmp_path):
    """A toy's layers that may go are eight tenths of it: with so much slack, most of stage 1 is too large even so."""
    limits = {"flash_bytes": 60, "ram_bytes": 10}
    oracle = make_oracle(tmp_path, (30, 10), limits=limits, slack={"flash_bytes": 20}, reject_infeasible=reject)
    assert run(oracle) == "STOPPED" and oracle.failure is None
    rows = oracle.history()
    assert sum(row["stage"] == 2 for row in rows) == 10
    flash = [row["costs"]["flash_bytes"] for row in rows if row["stage"] == 1]
    winner = oracle.space.costs(oracle.subnet)["flash_bytes"]
    assert 0.2 * winner <= 60 < winner
    if reject:
        assert max(flash) <= 300 and oracle.evolution.rejects["1"]["descendants"] > 3
        assert all(row["feasible"] for row in rows)
    else:
        assert max(flash) > 300


def test_limits_that_only_tiny_candidates_meet_are_met_by_shrinking(tmp_path):
    space = ToySpace(second=False)
    least = space.costs(space.smallest()[0])["flash_bytes"]
    oracle = make_oracle(tmp_path, (12,), limits={"flash_bytes": least * 1.3}, attempts=5, space=space)
    run(oracle)
    assert len(oracle.trials) > 5
    assert all(row["feasible"] for row in oracle.history())


def test_limits_that_no_candidate_meets_name_the_limit_and_the_least_need(tmp_path):
    # Smallest: 4 stages of one block, 3^2 + 2^2 each, at width 0.25.
    with pytest.raises(ValueError, match=r"no candidate meets: flash_bytes=10 \(the smallest network needs 13\)"):
        make_oracle(tmp_path, limits={"flash_bytes": 10.0, "ram_bytes": 4.0})
    with pytest.raises(ValueError, match="TwoStageOracle: `limits, minimize or slack` must be one of"):
        make_oracle(tmp_path, limits={"flash": 10.0})


def test_an_exhausted_space_ends_the_search(tmp_path):
    space = ToySpace(stages=1, second=False)
    space.genes = {n: g for n, g in space.genes.items() if n in ("width", "depth0", "kernel00", "expand00")}
    oracle = make_oracle(tmp_path, (10**4,), limits={}, space=space, attempts=2000)
    assert run(oracle) == "STOPPED"
    assert len(oracle.trials) == 4 * 3 * 3 * 3
    assert oracle.is_over()  # a chief may go, though fewer trials ran than were allowed


# Stages


def test_the_second_stage_searches_around_the_first_stages_winner(tmp_path):
    oracle = make_oracle(tmp_path, slack={"flash_bytes": 2.0})
    run(oracle)
    stages = [values["stage"] for values in proposals(oracle)]
    assert stages == [1] * 30 + [2] * 20
    winner = oracle.ranked(1)[0]
    assert oracle.subnet == oracle.candidate(winner.trial_id)["values"]
    assert all(oracle.subnet.items() <= v.items() for v in proposals(oracle)[30:])
    first = [row["costs"]["flash_bytes"] for row in oracle.history()[:30]]
    assert 150 < max(first) <= 300
    assert oracle.get_best_trials()[0].hyperparameters.values["stage"] == 2


# Quality and speed


def test_evolution_beats_random_search_at_equal_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(TwoStageOracle, "_write", lambda self, path, state: None)  # the disk is not the question
    wins = 0
    for seed in range(5):
        best = {}
        for strategy in ("evolution", "random"):
            oracle = make_oracle(
                tmp_path / f"{strategy}{seed}",
                (200,),
                strategy=strategy,
                seed=seed,
                population_size=50,
                top=10,
                space=ToySpace(second=False),
            )
            run(oracle)
            best[strategy] = oracle.get_best_trials()[0].score
        wins += best["evolution"] > best["random"]
    assert wins >= 4


def test_a_trial_stays_cheap_when_a_thousand_lie_behind_it(tmp_path):
    oracle = make_oracle(tmp_path, (1100,), population_size=50, top=10, space=ToySpace(second=False))
    run(oracle, trials=1000)
    # Some 5,600, where a hundred trials lie behind it 3,500.
    assert counting.calls(lambda: run(oracle, trials=10)) / 10 < 10_000


# State


def test_a_search_goes_on_with_the_same_proposals_wherever_it_was_cut(tmp_path):
    whole = make_oracle(tmp_path / "whole", (12, 8), population_size=4, top=2)
    run(whole)
    for cut in (0, 1, 5, 12, 13, 19):
        folder = tmp_path / str(cut)
        first = make_oracle(folder, (12, 8), population_size=4, top=2)
        run(first, trials=cut)
        first.create_trial("tuner0")  # was running when the process died
        second = make_oracle(folder, (12, 8), population_size=4, top=2)
        second.reload()
        run(second)
        assert proposals(second) == proposals(whole), cut
        assert [t.score for t in second.trials.values()] == [t.score for t in whole.trials.values()]


def test_a_trial_that_finished_before_the_oracles_own_state_was_written_is_kept(tmp_path):
    oracle = make_oracle(tmp_path)
    run(oracle, trials=3)
    trial = oracle.create_trial("tuner0")
    finish(oracle, trial, 0.75)
    assert json.loads(oracle._state_path().read_text())["end_order"] == ["00", "01", "02"]
    again = make_oracle(tmp_path)
    again.reload()
    assert again.end_order == ["00", "01", "02", "03"]
    assert again.trials["03"].score == 0.75
    assert again.create_trial("tuner0").trial_id == "04"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_kill_9_at_any_moment_loses_nothing(tmp_path):
    whole = make_oracle(tmp_path / "whole", (40, 20))
    run(whole)
    folder = tmp_path / "killed"
    rng = np.random.default_rng(5)
    cuts = []
    for _ in range(8):
        oracle = make_oracle(folder, (40, 20))
        oracle.reload()
        cuts.append(len(oracle.end_order))
        child = os.fork()
        if child == 0:
            run(oracle)
            os._exit(0)
        wanted = len(oracle.trials) + int(rng.integers(1, 7))
        while len(list(folder.glob("search/trial_*"))) < wanted:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.005)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(set(cuts)) > 2, cuts  # it was cut at work, not before or after
    oracle = make_oracle(folder, (40, 20))
    oracle.reload()
    run(oracle)
    assert proposals(oracle) == proposals(whole)
    assert not list(folder.glob("search/**/.*.json.*"))


def test_a_torn_trial_file_is_skipped_with_a_warning(tmp_path):
    oracle = make_oracle(tmp_path)
    run(oracle, trials=6)
    path = oracle._trial_path("02")
    path.write_text(path.read_text()[:100])
    again = make_oracle(tmp_path)
    with pytest.warns(UserWarning, match="skipped the damaged trial file .*trial_02"):
        again.reload()
    assert again.end_order == ["00", "01", "03", "04", "05"]
    run(again)
    assert len(again.trials) == 50
    assert len(set(again.start_order)) == 50


def test_a_torn_state_file_is_a_clear_error_and_the_finished_trials_survive_it(tmp_path):
    oracle = make_oracle(tmp_path)
    run(oracle, trials=35)
    scores = {i: t.score for i, t in oracle.trials.items()}
    path = oracle._state_path()
    path.write_text(path.read_text()[:200])
    again = make_oracle(tmp_path)
    with pytest.raises(ValueError, match="oracle.json is damaged. The 35 finished trials beside it are intact"):
        again.reload()
    path.unlink()
    with pytest.warns(UserWarning, match="rebuilt from 35 trial files"):
        again.reload()
    assert {i: t.score for i, t in again.trials.items()} == scores
    assert again.stage == 2 and again.subnet == oracle.subnet
    assert run(again) == "STOPPED" and len(again.trials) == 50


def test_a_state_of_another_search_is_refused(tmp_path):
    run(make_oracle(tmp_path), trials=3)
    other = make_oracle(tmp_path, limits={"flash_bytes": 100.0})
    with pytest.raises(ValueError, match="belongs to another search .limits: .*150.0.*there, .*100.0.*here"):
        other.reload()


def test_a_full_disk_is_a_clear_error_and_what_was_written_stays(tmp_path, monkeypatch):
    oracle = make_oracle(tmp_path)
    run(oracle, trials=5)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(_files, "write_atomic", full)
        with pytest.raises(OSError, match="cannot write the search's state .No space left on device.*make room"):
            run(oracle)
    again = make_oracle(tmp_path)
    again.reload()
    assert len(again.end_order) == 5
    assert run(again) == "STOPPED"


# Failures and leases


def test_three_failures_in_a_row_end_the_search_with_their_message(tmp_path):
    def evaluate(values):
        raise keras_tuner.errors.FailedTrialError("the data are gone")

    oracle = TwoStageOracle(ToySpace(), (30, 20), limits=LIMITS)
    oracle.verbose = 0
    tuner = TwoStageTuner(oracle, evaluate, directory=str(tmp_path), project_name="fails")
    with pytest.raises(RuntimeError, match="3 trials failed in a row. The last one: the data are gone"):
        tuner.search()


def test_a_score_that_is_not_finite_is_a_failure_and_never_the_best(tmp_path):
    oracle = make_oracle(tmp_path)
    finish(oracle, oracle.create_trial("tuner0"), float("nan"))
    finish(oracle, oracle.create_trial("tuner0"), 0.5)
    assert [t.score for t in oracle.get_best_trials(5)] == [0.5]
    assert oracle.trials["00"].status == "FAILED"


def test_a_lost_workers_trial_goes_to_another_and_its_late_word_changes_nothing(tmp_path):
    oracle = make_oracle(tmp_path, lease_seconds=10)
    now = [0.0]
    oracle.clock = lambda: now[0]
    lost = oracle.create_trial("worker0")
    now[0] = 8.0
    oracle.update_trial(lost.trial_id, {"heartbeat": 1.0})
    now[0] = 17.0
    assert oracle.create_trial("worker1").trial_id != lost.trial_id  # the heartbeat renewed the lease
    now[0] = 18.5
    with pytest.warns(UserWarning, match="worker0 gave no sign of life for 10 s; trial 00 goes to another"):
        taken = oracle.create_trial("worker2")
    assert taken.trial_id == lost.trial_id
    finish(oracle, taken, 0.5)
    oracle.update_trial(lost.trial_id, {"val_accuracy": 0.9})
    oracle.end_trial(lost)
    assert oracle.trials["00"].score == 0.5
    assert oracle.end_order == ["00"]


def test_the_second_stage_waits_for_the_first_stages_last_trial_and_lost_trials_fail_in_the_end(tmp_path):
    oracle = make_oracle(tmp_path, (3, 2), lease_seconds=10, lost_leases=1)
    now = [0.0]
    oracle.clock = lambda: now[0]
    oracle.create_trial("worker0")
    run(oracle, "worker1", trials=2)
    assert oracle.create_trial("worker1").status == "IDLE"
    now[0] = 11.0
    with pytest.warns(UserWarning, match="worker0"):
        trial = oracle.create_trial("worker1")
    assert trial.status == "RUNNING" and trial.hyperparameters.values["stage"] == 2
    assert oracle.trials["0"].status == "FAILED"


def test_a_tuner_resumes_and_answers_like_any_keras_tuner(tmp_path, capsys):
    def make(verbose=0):
        oracle = TwoStageOracle(ToySpace(), (30, 20), limits=LIMITS, population_size=10, top=4)
        return TwoStageTuner(oracle, toy_accuracy, directory=str(tmp_path), project_name="plain")

    tuner = make()
    tuner.search(verbose=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage")]
    assert len(lines) == 50 and "trial 50 of 50: val_accuracy" in lines[-1] and "flash_bytes" in lines[-1]
    again = make()
    assert again.remaining_trials == 0
    again.results_summary(2)
    again.search_space_summary()
    out = capsys.readouterr().out
    assert "Score: " in out and "width (Choice)" in out
    assert again.get_best_hyperparameters()[0].values == tuner.get_best_hyperparameters()[0].values
    with pytest.raises(ValueError, match="`evaluate` must have a `build_model` method"):
        again.get_best_models()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 50 + 2 and sum(p.stat().st_size for p in files) < 200_000
    assert json.loads((tmp_path / "plain" / "oracle.json").read_text())["stage"] == 2
    assert os.path.exists(tmp_path / "plain" / "tuner0.json")


@pytest.mark.parametrize(
    "options",
    [
        {"executions_per_trial": 3},
        {"optimizer": "adam"},
        {"loss": "mse"},
        {"metrics": ["accuracy"]},
        {"max_model_size": 10**6},
        {"hypermodel": lambda hp: None},
        {"distribution_strategy": object()},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_of_keras_tuner_without_effect_are_refused_by_name(tmp_path, options):
    (name,) = options
    oracle = make_oracle(tmp_path)
    with pytest.raises(ValueError, match=f"TwoStageTuner: `{name}` must be left out"):
        TwoStageTuner(oracle, toy_accuracy, directory=str(tmp_path), project_name="refused", **options)


@pytest.mark.parametrize("name", ["max_trials", "hyperparameters", "allow_new_entries", "max_retries_per_trial"])
def test_arguments_of_keras_tuners_oracle_that_the_search_decides_are_refused_by_name(tmp_path, name):
    with pytest.raises(TypeError, match=name):
        make_oracle(tmp_path, **{name: 1})
