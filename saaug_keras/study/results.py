"""What the finished runs say: means, spreads, differences paired by seed, and the same as a Markdown table."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from saaug_keras.study.grid import Cell, Comparison
from saaug_keras.study.runner import Book

# Two-sided 95% quantiles of Student's t for 1, 2, ... 30 degrees of freedom.
_T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. `spread` is the sample standard deviation, `margin` half the width of the mean's 95% interval
    (Student's t); both None with one seed. In percentage points."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        return statistics.stdev(self.values) if self.count > 1 else None

    @property
    def margin(self) -> float | None:
        if self.count < 2:
            return None
        quantile = _T95[min(self.count - 1, len(_T95)) - 1]
        return quantile * self.spread / math.sqrt(self.count)

    @property
    def verdict(self) -> str:
        """What the interval allows to say of a difference: "better", "worse", or "no difference shown"."""
        if self.margin is None:
            return "one seed"
        if abs(self.mean) <= self.margin:
            return "no difference shown"
        return "better" if self.mean > 0 else "worse"


@dataclass(frozen=True)
class Line:
    """One line of the result table: a cell with its finished runs of stage 2."""

    cell: Cell
    candidate: dict
    records: tuple[dict, ...]  # in the order of the study's seeds; finished ones only

    @property
    def test(self) -> Estimate:
        return Estimate(tuple(100 * record["test_accuracy"] for record in self.records))

    @property
    def validation(self) -> Estimate:
        return Estimate(tuple(100 * record["val_accuracy"] for record in self.records))

    @property
    def training(self) -> Estimate | None:
        """Of training images without augmentation; None where a run of an earlier version did not say."""
        known = tuple(100 * record["train_accuracy"] for record in self.records if "train_accuracy" in record)
        return Estimate(known) if len(known) == len(self.records) else None

    @property
    def epochs(self) -> int:
        return self.records[0]["epochs"]

    @property
    def train_seconds(self) -> float:
        return statistics.fmean(record["train_seconds"] for record in self.records)

    def by_seed(self) -> dict[int, dict]:
        return {record["recipe"]["seed"]: record for record in self.records}


@dataclass(frozen=True)
class Answer:
    """One comparison on one backbone and operator."""

    comparison: Comparison
    backbone: str
    operator: str
    difference: Estimate


@dataclass(frozen=True)
class Choice:
    """Stage 1 of a cell: [(candidate, record)], and the chosen candidate (None if every run failed)."""

    cell: Cell
    tried: tuple[tuple[dict, dict], ...]
    chosen: dict | None

    @property
    def edges(self) -> list[str]:
        """Numeric fields whose chosen value is the smallest or largest that was tried: the list may be too short."""
        found = []
        for key, value in (self.chosen or {}).items():
            values = {candidate[key] for candidate, _ in self.tried if _is_number(candidate[key])}
            if len(values) > 1 and value in (min(values), max(values)):
                found.append(key)
        return found


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Findings:
    """All that a report shows of a study."""

    lines: tuple[Line, ...]
    answers: tuple[Answer, ...]
    choices: tuple[Choice, ...]
    failures: tuple[dict, ...]  # records
    missing: int  # runs of stage 2 that are still to be made
    lost: int  # runs of stage 2 that failed, or whose arm has no candidate that could be trained

    def groups(self):
        """Yields (backbone, operator, lines, answers) for every table that has a line."""
        for backbone, operator in dict.fromkeys((line.cell.backbone, line.cell.operator) for line in self.lines):
            lines = [each for each in self.lines if (each.cell.backbone, each.cell.operator) == (backbone, operator)]
            answers = [each for each in self.answers if (each.backbone, each.operator) == (backbone, operator)]
            yield backbone, operator, lines, answers

    @property
    def summary(self) -> list[dict]:
        """One plain record per finished run of stage 2; accuracies are fractions.

        `operator` is the operator whose table the run is in: the twin, which multiplies, stands in each.
        """
        return [
            {
                "backbone": line.cell.backbone,
                "operator": line.cell.operator,
                "arm": line.cell.arm,
                "seed": record["recipe"]["seed"],
                "epochs": record["epochs"],
                "train_seconds": round(record["train_seconds"], 1),
                "learning_rate": record["recipe"]["learning_rate"],
                **{key: record[key] for key in ("train_accuracy", "val_accuracy", "test_accuracy") if key in record},
            }
            for line in self.lines
            for record in line.records
        ]


def collect(book: Book) -> Findings:
    """Reads the findings off the finished runs."""
    study, lines, choices, failures, missing, lost = book.study, [], [], {}, 0, 0
    for cell in study.cells():
        ratio = book.ratio(cell)
        candidate = None
        if ratio is not None:
            tried = [(task.candidate, book.record(task)) for task in book.tuning_tasks(cell, ratio)]
            failures |= {r["digest"]: r for _, r in tried if r is not None and r["status"] == "failed"}
            candidate = book.choice(cell, ratio)
            if tried and None not in [record for _, record in tried]:
                choices.append(Choice(cell, tuple(tried), candidate))
        if candidate is None:
            stopped = any(book.is_stopped(each) for each in (*study.needed_for(cell), cell))
            missing, lost = missing + len(study.seeds) * (not stopped), lost + len(study.seeds) * stopped
            continue
        records = [book.record(task) for task in book.final_tasks(cell, candidate, ratio)]
        missing += records.count(None)
        failed = {r["digest"]: r for r in records if r is not None and r["status"] == "failed"}
        failures, lost = failures | failed, lost + len(failed)
        finished = tuple(r for r in records if r is not None and r["status"] == "finished")
        if finished:
            lines.append(Line(cell, candidate, finished))
    return Findings(tuple(lines), _answers(study, lines), tuple(choices), tuple(failures.values()), missing, lost)


def _answers(study, lines):
    known = {line.cell: line.by_seed() for line in lines}
    answers = []
    for backbone in study.backbones:
        for operator in study.operators:
            for comparison in study.comparisons:
                ours = known.get(Cell(backbone, operator, comparison.arm), {})
                theirs = known.get(Cell(backbone, operator, comparison.against), {})
                differences = tuple(
                    100 * (ours[seed]["test_accuracy"] - theirs[seed]["test_accuracy"])
                    for seed in study.seeds
                    if seed in ours and seed in theirs
                )
                if differences:
                    answers.append(Answer(comparison, backbone, operator, Estimate(differences)))
    return tuple(answers)


def against_direct(lines) -> dict[Cell, Estimate]:
    """The difference of every line to the `direct` arm of its backbone and operator, paired by seed."""
    known = {line.cell: line.by_seed() for line in lines}
    differences = {}
    for cell, runs in known.items():
        direct = known.get(Cell(cell.backbone, cell.operator, "direct"), {})
        paired = [100 * (run["test_accuracy"] - direct[seed]["test_accuracy"]) for seed, run in runs.items() if seed in direct]
        if paired and cell.arm != "direct":
            differences[cell] = Estimate(tuple(paired))
    return differences


def points(estimate: Estimate, *, sign: bool = False) -> str:
    """72.31 ± 0.42: the mean and the spread."""
    mean = f"{estimate.mean:+.2f}" if sign else f"{estimate.mean:.2f}"
    return mean if estimate.spread is None else f"{mean} ± {estimate.spread:.2f}"


def interval(estimate: Estimate) -> str:
    """The 95% interval of the mean: -0.11 to +1.25."""
    if estimate.margin is None:
        return ""
    return f"{estimate.mean - estimate.margin:+.2f} to {estimate.mean + estimate.margin:+.2f}"


def candidate_text(candidate: dict) -> str:
    """learning_rate 0.1, aug_loss_weight 0.5"""
    return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in candidate.items())


def table(study, findings: Findings) -> str:
    """The findings in Markdown. It holds no times, so that a study that was interrupted gives the same text."""
    out = [f"# {study.title}", ""]
    if study.notes:
        out += [study.notes, ""]
    out += [
        f"Data set {study.dataset}, seeds {', '.join(map(str, study.seeds))}. Each arm's candidates were chosen on "
        "validation images; the test images were evaluated once per run, at the end. Accuracies are percentages, mean "
        "± standard deviation over seeds; differences are percentage points, paired by seed. Training images are as many as "
        "those of validation and not augmented: a network that is no better on them underfits.",
        "",
    ]
    if findings.missing:
        out += [f"**Not finished: {findings.missing} runs are missing.**", ""]
    differences = against_direct(findings.lines)
    for backbone, operator, lines, answers in findings.groups():
        out += [
            f"## {operator} on {backbone}",
            "",
            "| arm | chosen | epochs | n | training images | validation | test | minus direct |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for line in lines:
            difference = differences.get(line.cell)
            out.append(
                f"| {line.cell.arm} | {candidate_text(line.candidate)} | {line.epochs} | {line.test.count} | "
                f"{points(line.training) if line.training else ''} | {points(line.validation)} | {points(line.test)} | "
                f"{points(difference, sign=True) if difference else ''} |"
            )
        if answers:
            out += ["", "| question | difference | n | 95% interval of the mean | |", "| --- | ---: | ---: | ---: | --- |"]
        for answer in answers:
            difference = answer.difference
            out.append(
                f"| {answer.comparison.question} (`{answer.comparison.arm}` - `{answer.comparison.against}`) | "
                f"{points(difference, sign=True)} | {difference.count} | {interval(difference)} | "
                f"{difference.verdict} |"
            )
        out.append("")
    out += _tuning(study, findings)
    if findings.failures:
        out += ["## Failed runs", ""]
        out += [f"- `{record['name']}`: {record['message']}" for record in findings.failures]
        out.append("")
    return "\n".join(out)


def _tuning(study, findings):
    if not findings.choices:
        return []
    out = [
        "## How the candidates were chosen",
        "",
        f"One run each with seed {study.tuning_seed} for {study.tuning_epochs} epochs (in proportion where an arm has "
        "other epochs); validation accuracy in percent.",
        "",
        "| backbone | operator | arm | tried | chosen |",
        "| --- | --- | --- | --- | --- |",
    ]
    for choice in findings.choices:
        tried = "; ".join(f"{candidate_text(candidate)}: {outcome_text(record)}" for candidate, record in choice.tried)
        chosen = "none" if choice.chosen is None else candidate_text(choice.chosen)
        if choice.edges:
            chosen += f" (at the edge of what was tried: {', '.join(choice.edges)})"
        out.append(f"| {choice.cell.backbone} | {choice.cell.operator} | {choice.cell.arm} | {tried} | {chosen} |")
    return [*out, ""]


def outcome_text(record) -> str:
    """The validation accuracy of a finished run in percent, or "failed"."""
    return f"{100 * record['val_accuracy']:.2f}" if record["status"] == "finished" else "failed"
