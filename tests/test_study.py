"""Studies: the grid, what is run in which order, stopping anywhere, and what is said of the runs."""

import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import study_toys

from saaug_keras import cli, datasets, recipes
from saaug_keras._page import duration
from saaug_keras.study import Book, Cell, Study, charts, report, results, run
from saaug_keras.study.runner import tasks_left

STUDIES = pathlib.Path(__file__).resolve().parents[1] / "studies"
GRID = {
    "name": "toy",
    "title": "Toy & study",
    "dataset": "digits",
    "backbones": ["mobilenetv2-tiny"],
    "operators": ["shift"],
    "seeds": [0, 1, 2],
    "tuning": {"epochs": 4},
    "candidates": {"learning_rate": [0.05, 0.1, 0.2]},
    "recipe": {"epochs": 10},
    "arms": {
        "direct": {"recipe": {"aug_loss_weight": 0, "remap": False}, "description": "Alone."},
        "direct-equal-compute": {"based_on": "direct", "equal_compute_to": "augmented"},
        "augmented": {},
        "remap-off": {"based_on": "augmented", "recipe": {"remap": False}},
    },
}


def grid(**changes):
    return Study.from_dict({**GRID, **changes})


def arms(**changes):
    """The toy grid's arms with keys of one arm changed."""
    return {"arms": {name: {**arm, **changes.get(name.replace("-", "_"), {})} for name, arm in GRID["arms"].items()}}


def run_toy(study, out, **options):
    lines = []
    options = {"trainer": study_toys.train, "say": lines.append, **options}
    return run(study, out, **options), lines


def epochs_trained(out):
    return (out / "calls").read_text().splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    book, lines = run_toy(grid(), out)
    return book, lines, report(book)


# The grid


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"operator": ["shift"]}, ValueError, r"study: `key` must be one of .*'operators'.* Received: key='operator'"),
        ({"operators": ["shfit"]}, ValueError, "study, `operators`: .* must be one of 'conv'.* Received: operator='shfit'"),
        ({"operators": []}, ValueError, "study: `operators` must be given"),
        ({"backbones": "mcunet-in0"}, TypeError, "study: `backbones` must be a list"),
        ({"backbones": ["resnet50"]}, ValueError, "study: `backbones` must be one of"),
        ({"seeds": [1, 1]}, ValueError, "study: `seeds` must hold one or more different values"),
        ({"seeds": [0.5]}, TypeError, "study: `seeds` must be an int"),
        ({"tuning": {"epoch": 4}}, ValueError, r"study \[tuning\]: `key` must be one of 'epochs', 'seed'"),
        ({"tuning": {"epochs": 0}}, ValueError, r"study \[tuning\]: `epochs` must be an int in \[1, 100000\]"),
        ({"recipe": {"epoch": 10}}, ValueError, "Recipe: `key` must be one of.* Received: key='epoch'"),
        ({"recipe": {"seed": 1}}, ValueError, r"study \[recipe\]: `seed` must not be here"),
        ({"recipe": {"validation_fraction": 0}}, ValueError, "`validation_fraction` must be greater than 0"),
        ({"candidates": {"rate": [1]}}, ValueError, r"study \[candidates\]: `key` must be one of"),
        ({"candidates": {"learning_rate": [0.1, -1]}}, ValueError, r"study \[arms.direct\].*`learning_rate` must be"),
        ({"recipe": {"epochs": 10, "warmup_epochs": 6}}, ValueError, "tuning run.*`warmup_epochs` must be"),
        (arms(direct={"recipes": {}}), ValueError, r"study \[arms.direct\]: `key` must be one of"),
        (arms(direct={"recipe": {"width_": 1}}), ValueError, r"study \[arms.direct\].*`key` must be one of"),
        (arms(direct={"operators": ["adder"]}), ValueError, r"study \[arms.direct.*`operators` must be"),
        (arms(remap_off={"based_on": "twin"}), ValueError, r"study \[arms.remap-off\]: `based_on` must be one of"),
        (arms(direct={"based_on": "augmented"}), ValueError, r"study \[arms.direct\]: `based_on` must be one of"),
        ({"arms": {"a": {}, "b": {"equal_compute_to": "a"}}}, ValueError, r"\[arms.b\]: `based_on` must name the arm"),
        (arms(direct_equal_compute={"equal_compute_to": "x"}), ValueError, "`equal_compute_to` must be one of"),
        (arms(direct_equal_compute={"compute_ratio": 0}), ValueError, "`compute_ratio` must be a number"),
        ({"arms": {"a b": {}}}, ValueError, "an arm's name must be letters, digits"),
        ({"comparisons": [{"arm": "augmented", "against": "twin"}]}, ValueError, "`against` must be one of"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        grid(**change)


def test_a_file_that_is_not_toml_is_named(tmp_path):
    (tmp_path / "grid.toml").write_text("arms = [")
    with pytest.raises(ValueError, match="grid.toml is not a TOML file"):
        Study.load(tmp_path / "grid.toml")
    with pytest.raises(FileNotFoundError, match="there is no file .*none.toml"):
        Study.load(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_grid_loads_and_tunes_its_arms(path):
    """Ablations may take the rate of the arm that they vary."""
    study = Study.load(path)
    ablations = {
        "cifar100-small": ("augmented-mf", "remap-off", "reorder-off"),
        "cifar100-tiny32-short": (
            *("direct-equal-compute", "augmented-high-rate", "distilled", "augmented-mf"),
            *("remap-off", "remap-learned", "reorder-off", "mutation"),
        ),
    }.get(path.stem, ())
    tuned = [study.candidates_of(cell) for cell in study.cells() if cell.arm not in ablations]
    assert tuned and all(len(candidates) >= (2 if "smallest" in path.stem else 3) for candidates in tuned)
    assert study.comparisons[0].arm == "augmented" and study.comparisons[0].against == "direct"
    assert len(set(charts.colours_of(study).values())) == len(study.arms)
    for cell in study.cells():  # what a whole study asks for can be had by each of its operators
        recipe = study.make_recipe(cell, study.candidates_of(cell)[0], seed=0, tuning=False)
        recipe = recipe if recipe.drop_blocks else recipe.replace(blocks=1)
        assert recipes.make_model(recipe, recipe.spec((32, 32, 3), 10)).is_augmented != recipe.is_direct


def test_an_arm_starts_from_the_arm_that_it_is_based_on():
    study = grid(
        candidates={"learning_rate": [0.1], "weight_decay": [0.0, 1e-4]},
        **arms(direct={"candidates": {"learning_rate": [0.2, 0.3]}}),
    )
    cell = Cell("mobilenetv2-tiny", "shift", "direct-equal-compute")
    assert study.candidates_of(cell) == tuple(
        {"learning_rate": rate, "weight_decay": decay} for rate in (0.2, 0.3) for decay in (0.0, 1e-4)
    )
    recipe = study.make_recipe(cell, {"learning_rate": 0.3}, seed=2, tuning=True, ratio=2.5)
    assert (recipe.aug_loss_weight, recipe.remap, recipe.learning_rate, recipe.seed) == (0, False, 0.3, 2)
    assert recipe.epochs == 4 * 2.5
    assert study.make_recipe(cell, {}, seed=2, tuning=False, ratio=2.5).epochs == 10 * 2.5


def test_only_chooses_by_arm_or_by_whole_name():
    study = grid(operators=["shift", "adder"])
    assert [str(cell) for cell in study.cells("direct*")] == [
        f"mobilenetv2-tiny/{operator}/direct{more}" for operator in ("shift", "adder") for more in ("", "-equal-compute")
    ]
    assert [cell.arm for cell in study.cells("*/adder/a*")] == ["augmented"]
    with pytest.raises(ValueError, match="`only` must match an arm .*'remap-off'.* Received: only='twin'"):
        study.cells("twin")


# Running


def test_stage_one_chooses_and_stage_two_tests_once(finished):
    book, lines, _ = finished
    records = list(book.records.values())
    assert len(records) == len(lines) == 4 * (3 + 3)  # arms x (rates + seeds)
    tested = [record for record in records if "test_accuracy" in record]
    assert len(tested) == 4 * 3 and {record["recipe"]["learning_rate"] for record in tested} == {0.1}
    untested = [record for record in records if "test_accuracy" not in record]
    assert {record["recipe"]["seed"] for record in untested} == {0}
    assert {record["epochs"] for record in untested} == {4, 4 * 6 / 2}


def test_equal_compute_scales_epochs_by_the_measured_speeds(finished):
    book, _, findings = finished
    assert json.loads((book.out / "state.json").read_text())["compute_ratios"].popitem()[1] == 6 / 2
    lines = {line.cell.arm: line for line in findings.lines}
    assert lines["direct"].epochs == 10 and lines["direct-equal-compute"].epochs == 10 * 6 / 2


def test_a_line_says_what_ended_and_what_is_left(finished):
    _, lines, _ = finished
    line, until = lines[0].split(", until ")
    assert time.strptime(until, "%a %H:%M")
    assert (
        line.split()
        == (
            "1/24 tune mobilenetv2-tiny/shift/direct seed 0 4 epochs learning_rate 0.05 val 56.4 % 48 s about 20 min 48 s left"
        ).split()
    )
    # All that is left at direct's speed, 40 s and 2 s an epoch: tuning 11 x 4 epochs, final runs 12 x 10.
    assert 23 * 40 + (11 * 4 + 12 * 10) * 2 == 20 * 60 + 48
    assert lines[-1].endswith("done") and lines[-1].startswith(" 24/24  final")
    # Equal compute waits for both speeds, and for nothing else.
    assert ["equal" in line for line in lines].index(True) == 2 * 3


def test_the_first_seed_of_every_arm_comes_before_the_second(finished):
    _, lines, _ = finished
    seeds = [line.split("seed ")[1].split()[0] for line in lines if "final" in line and "equal" not in line]
    assert seeds == sorted(seeds)


def test_stopping_after_any_epoch_changes_nothing(finished, tmp_path):
    """Killed at every write of a checkpoint in turn; no epoch is trained twice, and the table is the same."""
    book, _, _ = finished
    whole, stops, limit = epochs_trained(book.out), 0, 7

    class Killed(BaseException):
        pass

    def train_until_killed(recipe, folder, test):
        def stopping(path, data):
            write(path, data)
            if len(epochs_trained(tmp_path)) % limit == 0:
                raise Killed

        study_toys.write_atomic = stopping
        return study_toys.train(recipe, folder, test)

    write = study_toys.write_atomic
    try:
        while True:
            try:
                again, _ = run_toy(grid(), tmp_path, trainer=train_until_killed)
                break
            except Killed:
                stops += 1
    finally:
        study_toys.write_atomic = write
    assert stops == len(whole) // limit > 10
    assert epochs_trained(tmp_path) == whole
    report(again)
    for name in ("table.md", "summary.json"):
        assert (tmp_path / name).read_text() == (book.out / name).read_text()


def test_a_finished_study_runs_nothing(finished):
    book, _, _ = finished
    before = epochs_trained(book.out)
    _, lines = run_toy(grid(), book.out)
    assert lines == [] and epochs_trained(book.out) == before


def test_another_seed_adds_runs_and_repeats_none(finished, tmp_path):
    book, _ = run_toy(grid(seeds=[0, 1]), tmp_path)
    count = len(book.records)
    book, lines = run_toy(grid(), tmp_path)
    assert len(lines) == 4 and len(book.records) == count + 4
    report(book)
    assert (tmp_path / "table.md").read_text() == (finished[0].out / "table.md").read_text()


def test_two_processes_give_the_same_table(finished, tmp_path):
    book, lines = run_toy(grid(), tmp_path, jobs=2)
    assert len(lines) == 24
    report(book)
    assert (tmp_path / "table.md").read_text() == (finished[0].out / "table.md").read_text()


def test_a_second_study_in_the_same_folder_is_refused(tmp_path):
    def train(recipe, folder, test):
        with pytest.raises(BlockingIOError, match="another process is running a study"):
            run_toy(grid(), tmp_path)
        return study_toys.train(recipe, folder, test)

    run_toy(grid(), tmp_path, only="direct", trainer=train)


def die(recipe, folder, test):
    os.kill(os.getpid(), signal.SIGKILL)


def stumble(recipe, folder, test):
    raise TypeError("a mistake in the program, not in one run")


def test_a_process_that_dies_is_reported(tmp_path):
    with pytest.raises(ChildProcessError, match="that trained direct-shift.* was killed by signal 9"):
        run_toy(grid(), tmp_path, jobs=2, trainer=die, only="direct")
    with pytest.raises(ChildProcessError, match="that trained direct-shift.* failed; its message stands above"):
        run_toy(grid(), tmp_path, jobs=2, trainer=stumble, only="direct")
    assert not multiprocessing.active_children()


def test_only_runs_what_matches_and_what_it_must_measure(tmp_path):
    book, lines = run_toy(grid(tuning={"epochs": 2}), tmp_path, only="direct-equal-compute")
    assert [("equal" in line, line.split()[1]) for line in lines] == [(False, "tune")] * 6 + [(True, "tune")] * 3 + [
        (True, "final")
    ] * 3
    findings = report(book)
    assert [line.cell.arm for line in findings.lines] == ["direct-equal-compute"]
    assert findings.lines[0].epochs == 10 * 6 / 2  # by whole speeds: the first of two epochs is slow and left out
    assert findings.missing == 3 * 3 and "9 runs are missing" in (tmp_path / "table.md").read_text()


def test_a_given_ratio_needs_no_measurement(tmp_path):
    study = grid(**arms(direct_equal_compute={"compute_ratio": 1.5}))
    book, lines = run_toy(study, tmp_path, only="direct-equal-compute")
    assert len(lines) == 6 and report(book).lines[0].epochs == 15


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path):
    broken, sound = ({"candidates": {"learning_rate": [rate]}} for rate in (900.0, 0.1))
    study = grid(candidates={"learning_rate": [0.1, 900.0]}, **arms(augmented=broken, remap_off=sound))
    book, lines = run_toy(study, tmp_path)
    assert sum("failed: the loss must be finite" in line for line in lines) == 2  # one of direct, all of augmented
    findings = report(book)
    assert [line.cell.arm for line in findings.lines] == ["direct", "remap-off"]
    # Equal compute cannot be known without augmented's speed.
    assert findings.missing == 0 and findings.lost == 2 * 3 and len(findings.failures) == 2
    assert "loss=nan in epoch 1, step 3" in (tmp_path / "table.md").read_text()
    assert run_toy(study, tmp_path)[1] == []


@pytest.mark.parametrize(
    "fault", [MemoryError(), RecursionError("too deep"), ValueError("too wide"), "backend", "val_loss", "epoch"], ids=str
)
def test_one_run_that_breaks_ends_no_study(fault, tmp_path):
    """However it breaks; figures that are not finite are no result, of one epoch nor of the run."""

    def train(recipe, folder, test):
        result, history = study_toys.train(recipe, folder, test)
        if recipe.aug_loss_weight != 0:
            return result, history
        if fault == "val_loss":
            return {**result, "val_loss": float("inf")}, history
        if fault == "epoch":
            return result, [{**history[0], "loss": float("nan")}, *history[1:]]
        if fault != "backend":
            raise fault
        if keras.backend.backend() == "jax":
            raise importlib.import_module("jax").errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        errors = importlib.import_module("tensorflow").errors
        raise errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    both = {name: GRID["arms"][name] for name in ("direct", "augmented")}
    study = grid(candidates={"learning_rate": [0.1]}, arms=both, seeds=[0])
    book, _ = run_toy(study, tmp_path, trainer=train)
    findings = report(book)
    assert [line.cell.arm for line in findings.lines] == ["augmented"] and findings.failures
    assert all(record["message"] for record in findings.failures)
    assert run_toy(study, tmp_path, trainer=train)[1] == []


def test_an_old_record_that_is_not_finite_or_damaged_is_no_result(finished, tmp_path):
    book, _, _ = finished
    shutil.copytree(book.out, tmp_path, dirs_exist_ok=True)
    path = sorted((tmp_path / "runs").glob("augmented-*"))[0]
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "val_loss": float("nan")}))
    assert Book(tmp_path, grid()).records[record["digest"]]["status"] == "failed"
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"study: \S+augmented-.* is damaged.*Delete it"):
            Book(tmp_path, grid())
    path.write_text(json.dumps(record))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"study: \S+state.json is damaged.*Delete it"):
        Book(tmp_path, grid())


def test_arms_with_one_recipe_share_their_runs(tmp_path):
    twin = {"recipe": {"aug_loss_weight": 0, "operator": "conv"}}
    study = grid(operators=["shift", "adder"], arms={"augmented": {}, "twin": twin})
    book, lines = run_toy(study, tmp_path)
    assert len(lines) == (2 + 1) * 6
    findings = report(book)
    assert [(line.cell.operator, line.cell.arm) for line in findings.lines] == [
        (operator, arm) for operator in ("shift", "adder") for arm in ("augmented", "twin")
    ]
    assert findings.missing == 0 and tasks_left(book, study.cells()) == ([], [])


def test_a_tuning_run_of_full_length_becomes_a_final_run(tmp_path):
    book, lines = run_toy(grid(tuning={"epochs": 10}, seeds=[0]), tmp_path, only="direct")
    assert len(lines) == 3 + 1 and len(book.records) == 3
    assert len(epochs_trained(tmp_path)) == 3 * 10  # the chosen run is tested, not trained again


# What is said of the runs


def test_the_table_says_mean_spread_and_paired_difference(finished):
    book, _, findings = finished
    lines = {line.cell.arm: line for line in findings.lines}
    direct = [60 + 10 / 10 + shift for shift in (0.0, 0.25, -0.5)]
    assert lines["direct"].test.values == pytest.approx(direct)
    difference = results.against_direct(findings.lines)[lines["augmented"].cell]
    assert difference.values == pytest.approx([2.0, 2.15, 2.3])  # the seeds' own shifts cancel
    assert difference.mean == pytest.approx(2.15) and difference.spread == pytest.approx(0.15)
    text = (book.out / "table.md").read_text()
    assert "| augmented | learning_rate 0.1 | 10 | 3 | 66.07 ± 0.31 | 62.07 ± 0.31 | 63.07 ± 0.31 | +2.15 ± 0.15 |" in text
    assert "`augmented` - `direct-equal-compute`" in text and "better" in text


def test_the_questions_are_those_whose_arms_are_there(finished):
    _, _, findings = finished
    asked = {(answer.comparison.arm, answer.comparison.against): answer.difference for answer in findings.answers}
    assert set(asked) == {("augmented", "direct"), ("augmented", "direct-equal-compute"), ("augmented", "remap-off")}
    # Augmented gains 2 points over direct, which gains a tenth of a point for each of its 20 further epochs.
    assert asked["augmented", "direct-equal-compute"].mean == pytest.approx(2 + 0.15 - 20 / 10)
    assert asked["augmented", "remap-off"].mean == pytest.approx(2.0 - 1.5 + 0.15)


def test_summary_has_one_plain_record_per_final_run(finished):
    book, _, _ = finished
    summary = json.loads((book.out / "summary.json").read_text())
    assert len(summary) == 4 * 3
    assert summary[0] == {
        "backbone": "mobilenetv2-tiny",
        "operator": "shift",
        "arm": "direct",
        "seed": 0,
        "epochs": 10,
        "train_seconds": 10 * 2.0 + 40,
        "learning_rate": 0.1,
        "train_accuracy": pytest.approx(0.64),
        "val_accuracy": pytest.approx(0.60),
        "test_accuracy": pytest.approx(0.61),
    }


@pytest.mark.parametrize(
    "values, verdict",
    [
        ((2.0, 2.1, 2.2), "better"),
        ((-2.0, -2.1, -2.2), "worse"),
        ((0.1, -0.2, 0.3), "no difference shown"),
        ((1.0,), "one seed"),
    ],
)
def test_a_verdict_needs_an_interval_away_from_zero(values, verdict):
    assert results.Estimate(values).verdict == verdict


@pytest.mark.parametrize("count", [2, 3, 5, 31])
def test_the_margin_is_that_of_students_t(count):
    values = tuple(float(index % 7) for index in range(count))
    low, high = scipy.stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=scipy.stats.sem(values))
    assert results.Estimate(values).margin == pytest.approx((high - low) / 2, rel=1e-3)


def test_a_choice_at_the_edge_is_said():
    book_choice = results.Choice(
        Cell("b", "shift", "a"), (({"learning_rate": 0.1}, {}), ({"learning_rate": 0.2}, {})), {"learning_rate": 0.2}
    )
    assert book_choice.edges == ["learning_rate"]
    middle = dataclasses.replace(book_choice, tried=(*book_choice.tried, ({"learning_rate": 0.4}, {})))
    assert middle.edges == []


def test_the_page_stands_alone_and_holds_every_figure(finished):
    book, _, findings = finished
    text = (book.out / "page.html").read_text()
    assert "<title>Toy &amp; study</title>" in text and "Toy & study" not in text
    assert "http" not in text and "src=" not in text and "href=" not in text  # nothing is fetched
    assert text.count("<svg") == 3 and text.count("</svg>") == 3
    for line in findings.lines:
        assert results.points(line.test) in text
    for answer in findings.answers:
        assert results.interval(answer.difference) in text and answer.comparison.question in text
    assert "at the edge" not in text  # 0.1 is in the middle of 0.05, 0.1, 0.2


def test_the_time_of_a_curve_holds_what_a_run_starts_from(finished, tmp_path, monkeypatch):
    line = finished[2].lines[0]
    rows = [{"epoch": epoch, "seconds": seconds, "val_accuracy": 0.5} for epoch, seconds in ((1, 30.0), (2, 4.0), (3, 6.0))]
    records = tuple({**line.records[0], "train_seconds": seconds, "history": rows} for seconds in (140.0, 160.0))
    plot, drawn = matplotlib.axes.Axes.plot, []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda self, x, *y, **how: (drawn.append(list(x)), plot(self, x, *y, **how))
    )
    charts.save_curves(tmp_path / "time.png", "", [dataclasses.replace(line, records=records)], {line.cell.arm: "#ff0000"})
    # 100 and 120 s before the first epoch
    assert drawn == [[1, 2, 3], [pytest.approx(seconds / 60) for seconds in (140, 144, 150)]]


def test_curves_are_drawn_and_their_absence_is_said(finished, tmp_path, monkeypatch):
    book, _, findings = finished
    picture = (book.out / "curves-shift-mobilenetv2-tiny.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert charts.mean_curve(findings.lines[0])[-1] == (10, pytest.approx(60 - 0.25 / 3))
    line = findings.lines[0]
    ends = tuple({**record, "history": record["history"][-1:]} for record in line.records)
    charts.save_curves(tmp_path / "end.png", "", [dataclasses.replace(line, records=ends)], {line.cell.arm: "#ff0000"})
    red, green, blue = matplotlib.image.imread(tmp_path / "end.png")[..., :3].transpose(2, 0, 1)
    right = red.shape[1] // 2  # by time; the legend is in the other half
    assert ((red > 0.9) & (green < 0.2) & (blue < 0.2))[:, right:].sum() > 20, "a curve of one point is a point"
    (tmp_path / "end.png").unlink()
    monkeypatch.setattr(charts, "can_plot", lambda: False)
    said = []
    moved = Book(tmp_path, grid())
    moved.records = book.records
    report(moved, say=said.append)
    assert "pip install 'saaug-keras[plot]'" in said[0] and len(said) == 1
    assert not list(tmp_path.glob("*.png")) and (tmp_path / "page.html").exists()


@pytest.mark.parametrize("low, high", [(0, 1), (58.3, 63.9), (-2.5, 0.7), (0, 200), (99.91, 99.99)])
def test_ticks_are_few_round_and_inside(low, high):
    values = charts.ticks(low, high)
    assert 3 <= len(values) <= 7 and low <= values[0] and values[-1] <= high
    steps = {round(b - a, 9) for a, b in zip(values, values[1:], strict=False)}
    assert len(steps) == 1 and f"{steps.pop():e}"[0] in "125"


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (38.4, "38 s"), (59.6, "1 min 00 s"), (250, "4 min 10 s"), (11_100, "3 h 05 min")]
)
def test_a_time_reads_well(seconds, text):
    assert duration(seconds) == text


# The command


def test_a_schedule_that_ends_before_it_begins_stops_before_any_training(tmp_path, capsys):
    text = (STUDIES / "digits-smallest.toml").read_text()
    text += "\n[arms.mutation]\nrecipe = { mutation_span = [0.6, 0.1] }\n"
    (tmp_path / "grid.toml").write_text(text)
    assert cli.main(["study", "--config", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "[arms.mutation]" in error and "`end` must be greater than `start`" in error
    assert not (tmp_path / "out" / "runs").exists()


def test_labels_per_pixel_are_refused(tmp_path, monkeypatch):
    images, labels = np.zeros((4, 8, 8, 3), "uint8"), np.zeros((4, 8, 8), "uint8")
    maps = datasets.Dataset("camvid", images, labels, images, labels, ("road", "sky"))
    monkeypatch.setattr(datasets, "load", lambda name, data_dir: maps)
    with pytest.raises(ValueError, match="`dataset` must have one label per image.* Received: dataset='camvid'"):
        run(grid(dataset="camvid"), tmp_path, say=print)


def test_the_smallest_study_survives_a_kill(tmp_path):
    """The real thing: killed in the middle of a run by signal 9, started again, and reported."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "saaug_keras.cli",
        "study",
        "--out",
        str(out),
        "--config",
        str(STUDIES / "digits-smallest.toml"),
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        give_up = time.monotonic() + 300
        while not list(out.glob("runs/*.json")) or len(list(out.glob("training/*"))) < 2:
            assert process.poll() is None and time.monotonic() < give_up, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.kill()
        process.wait()
    # With the seconds of each epoch; a run that is chosen later gets its test figure beside them.
    kept = {path: json.loads(path.read_text())["history"] for path in out.glob("runs/*.json")}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(row["arm"], row["seed"]) for row in result["runs"]] == [
        (arm, seed) for arm in ("direct", "augmented") for seed in (0, 1)
    ]
    assert kept and all(json.loads(path.read_text())["history"] == history for path, history in kept.items())
    assert result["missing"] == 0 and result["failed"] == [] and result["answers"][0]["seeds"] == 2
    assert all(0.05 < row["test_accuracy"] < 1 for row in result["runs"])
    assert done.stderr.count("final") == 4  # one line per run
    folder = next((out / "training").glob("direct-*-seed1-*"))
    assert recipes.Recipe.from_dict(json.loads((folder / "recipe.json").read_text())).seed == 1
