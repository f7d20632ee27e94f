"""Pictures of a study: SVG for its page, drawn here, and learning curves as PNG by Matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import statistics

from saaug_keras._files import atomic_file
from saaug_keras._page import Scale, dot, escape, line, path, svg, ticks, words
from saaug_keras.study.results import Answer, Line, interval, points

# The first six are told apart with any colour vision (Okabe and Ito, the yellow darker); of all there are enough for a study
# of every part of the method. Direct training is the grey that others are held against.
_DIRECT = "#6b7280"
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9"),
    *("#7c3aed", "#b91c1c", "#0f766e", "#111827", "#e6a800", "#84a816", "#db2777"),
)
_WIDTH = 760
_ROW = 30
_NAME, _VALUE = ' class="name"', ' class="value"'


def colours_of(study) -> dict[str, str]:
    """{arm: colour}, the same in every picture."""
    rest = [arm.name for arm in study.arms if arm.name != "direct"]
    return {"direct": _DIRECT} | {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(rest)}


def _span(values, share=0.08, least=1.0):
    low, high = min(values), max(values)
    margin = max((high - low) * share, least / 2 if high - low < least else 0)
    return low - margin, high + margin


def _value_axis(x, bottom, label, *, sign=False):
    items = []
    for value in ticks(x.low, x.high):
        items.append(line(x(value), 8, x(value), bottom, "#e8ebf0"))
        items.append(words(x(value), bottom + 16, f"{value:+g}" if sign and value else f"{value:g}", "middle"))
    items.append(words((x.start + x.end) / 2, bottom + 34, label, "middle"))
    return items


def accuracy_chart(lines: list[Line], colours: dict[str, str]) -> str:
    """Test accuracy: one row per arm, a dot per seed, the mean as a bar with its spread, direct's mean as a rule."""
    left, right = 170, 110
    x = Scale(_span([v for result in lines for v in result.test.values]), left, _WIDTH - right)
    bottom = 14 + _ROW * len(lines)
    items = _value_axis(x, bottom, "test accuracy, %")
    for result in lines:
        if result.cell.arm == "direct":
            place = x(result.test.mean)
            items.append(line(place, 8, place, bottom, _DIRECT, 1, ' stroke-dasharray="3 3"'))
    for row, result in enumerate(lines):
        y, colour, estimate = 14 + _ROW * row + _ROW / 2, colours[result.cell.arm], result.test
        items.append(words(left - 12, y + 4, result.cell.arm, "end", _NAME))
        if estimate.spread is not None:
            low, high = x(estimate.mean - estimate.spread), x(estimate.mean + estimate.spread)
            items.append(line(low, y, high, y, colour, 2, ' opacity=".55"'))
        items.append(line(x(estimate.mean), y - 8, x(estimate.mean), y + 8, colour, 3))
        for record in result.records:
            value = 100 * record["test_accuracy"]
            title = f"{result.cell.arm}, seed {record['recipe']['seed']}: {value:.2f} %"
            items.append(dot(x(value), y, 4, colour, 0.65, ' stroke="#fff"', title))
        items.append(words(_WIDTH - right + 12, y + 4, points(estimate), "start", _VALUE))
    return svg(_WIDTH, bottom + 42, "Test accuracy of every arm", items)


def answers_chart(answers: list[Answer], colours: dict[str, str]) -> str:
    """Paired differences: one row per question, a dot per seed, the 95% interval of the mean; 0 is no difference."""
    left, right = 356, 104
    reach = [0.0]
    for answer in answers:
        reach += answer.difference.values
        # A wide interval runs out of the picture rather than squeezing the rest.
        margin = answer.difference.margin or 0
        most = 3 * max(map(abs, answer.difference.values))
        reach += [max(answer.difference.mean - margin, -most), min(answer.difference.mean + margin, most)]
    x = Scale(_span(reach, 0.05), left, _WIDTH - right)
    bottom = 14 + _ROW * len(answers)
    items = _value_axis(x, bottom, "difference, percentage points", sign=True)
    items.append(line(x(0), 8, x(0), bottom, "#1d2330", 1.2))
    for row, answer in enumerate(answers):
        y, estimate = 14 + _ROW * row + _ROW / 2, answer.difference
        colour = {"better": "#00734f", "worse": "#b91c1c"}.get(estimate.verdict, "#6b7280")
        items.append(words(left - 14, y + 4, answer.comparison.question, "end", _NAME))
        if estimate.margin is not None:
            low = max(x(estimate.mean - estimate.margin), x.start)
            high = min(x(estimate.mean + estimate.margin), x.end)
            items.append(line(low, y, high, y, colour, 2, ' opacity=".6"'))
        for value in estimate.values:
            items.append(dot(x(value), y, 3, colour, 0.45))
        title = f"{answer.comparison.arm} minus {answer.comparison.against}: {interval(estimate)}"
        items.append(
            f'<rect x="{x(estimate.mean) - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{colour}" '
            f'transform="rotate(45 {x(estimate.mean):.1f} {y:.1f})"><title>{escape(title)}</title></rect>'
        )
        items.append(words(_WIDTH - right + 12, y + 4, points(estimate, sign=True), "start", _VALUE))
    return svg(_WIDTH, bottom + 42, "Paired differences", items)


def mean_curve(result: Line, key: str = "val_accuracy") -> list[tuple[int, float]]:
    """[(epoch, mean over seeds in percent)], at the epochs that every run of the line has evaluated."""
    curves = [{row["epoch"]: row[key] for row in record["history"] if key in row} for record in result.records]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(epoch, 100 * statistics.fmean(curve[epoch] for curve in curves)) for epoch in common]


def seconds_until(result: Line, epoch: int) -> float:
    """Seconds of training until an epoch's end, the mean over seeds, with those of what a run starts or learns from."""
    return statistics.fmean(
        record["train_seconds"] - sum(row["seconds"] for row in record["history"] if row["epoch"] > epoch)
        for record in result.records
    )


def curves_chart(lines: list[Line], colours: dict[str, str]) -> str:
    """Validation accuracy by epoch, the mean over seeds, named at the right in the order of the last values.

    The axis begins at the lowest value after a quarter of training: what is compared are the ends.
    """
    curves = sorted(
        ((result.cell.arm, curve) for result in lines if (curve := mean_curve(result))), key=lambda pair: -pair[1][-1][1]
    )
    if not curves:
        return ""
    left, right, top, bottom = 48, 190, 12, max(298, 16 + 18 * len(curves))
    values = [value for _, curve in curves for epoch, value in curve if epoch >= curve[-1][0] / 4]
    x = Scale((0, max(curve[-1][0] for _, curve in curves)), left, _WIDTH - right)
    low, high = _span(values, 0.04)
    y = Scale((max(0.0, low), min(100.0, high)), bottom, top)
    clip = f"plot-{lines[0].cell.operator}-{lines[0].cell.backbone}"
    items = [
        f'<clipPath id="{clip}"><rect x="{left}" y="{top}" width="{_WIDTH - left - right + 6}" '
        f'height="{bottom - top}"/></clipPath>'
    ]
    for value in ticks(y.low, y.high):
        items.append(line(left, y(value), _WIDTH - right, y(value), "#e8ebf0"))
        items.append(words(left - 8, y(value) + 4, f"{value:g}", "end"))
    for value in ticks(x.low, x.high):
        items.append(words(x(value), bottom + 18, f"{value:g}", "middle"))
    items.append(words((left + _WIDTH - right) / 2, bottom + 36, "epoch", "middle"))
    for row, (arm, curve) in enumerate(curves):
        through = [(x(epoch), y(value)) for epoch, value in curve]
        items.append(path(through, colours[arm], 1.8, f' clip-path="url(#{clip})"', arm))
        items.append(dot(*through[-1], 3.2, colours[arm]))
        place = top + 10 + 18 * row
        items.append(line(_WIDTH - right + 22, place, _WIDTH - right + 40, place, colours[arm], 3))
        items.append(words(_WIDTH - right + 47, place + 4, arm, "start", _NAME))
    return svg(_WIDTH, bottom + 44, "Validation accuracy by epoch", items)


def can_plot() -> bool:
    """Whether Matplotlib, of the extra `plot`, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save_curves(path, title: str, lines: list[Line], colours: dict[str, str]):
    """Learning curves as a PNG: validation accuracy by epoch and by training time, mean and range over seeds.

    Raises:
        ImportError: Matplotlib is not installed; see `can_plot`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    longest = max(result.train_seconds for result in lines)
    unit, seconds = ("minutes", 60.0) if longest < 2 * 3600 else ("hours", 3600.0)
    for result in lines:
        curve = mean_curve(result)
        if not curve:
            continue
        epochs, mean = zip(*curve, strict=True)
        runs = [
            {row["epoch"]: 100 * row["val_accuracy"] for row in record["history"] if "val_accuracy" in row}
            for record in result.records
        ]
        low = [min(run[epoch] for run in runs) for epoch in epochs]
        high = [max(run[epoch] for run in runs) for epoch in epochs]
        times = [seconds_until(result, epoch) / seconds for epoch in epochs]
        colour = colours[result.cell.arm]
        for axes, places in ((by_epoch, epochs), (by_time, times)):
            axes.plot(places, mean, "o-", color=colour, label=result.cell.arm, linewidth=1.6, markersize=4, markevery=[-1])
            axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    for axes, label in ((by_epoch, "epoch"), (by_time, f"training time, {unit}")):
        axes.set_xlabel(label)
        axes.grid(color="#e8ebf0")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    quarter = [v for result in lines for epoch, v in mean_curve(result) if epoch >= result.epochs / 4]
    by_epoch.set_ylim(bottom=max(0.0, _span(quarter, 0.04)[0]) if quarter else None)
    by_epoch.set_ylabel("validation accuracy, %")
    by_epoch.legend(frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    with atomic_file(path) as aside:
        figure.savefig(aside, dpi=130)
