"""The page of a search: one HTML file that needs nothing else, drawn from plain data."""

from __future__ import annotations

import html
import math

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2330;background:#fff;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .2rem}
h2{font-size:1.15rem;margin:2.2rem 0 .5rem;border-top:1px solid #dde1e8;padding-top:1rem}
p.note{color:#5a6475;margin:.3rem 0}table{border-collapse:collapse;font-size:.92rem;margin:.5rem 0}
td,th{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid #eceff4;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}th{color:#5a6475;font-weight:600}
svg{max-width:100%;height:auto;display:block;margin:.5rem 0}svg text{font:12px system-ui,sans-serif;fill:#5a6475}
.big{display:flex;flex-wrap:wrap;gap:.5rem 2.5rem;margin:1rem 0}.big div{min-width:7rem}
.big b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}
"""
_COLOURS = {1: "#8a94a6", 2: "#2563a8", "front": "#c2410c", "infeasible": "#b91c1c", "limit": "#b91c1c"}
_NAMES = {
    "sram_bytes": "peak SRAM, bytes", "flash_bytes": "flash, bytes", "operations": "operations",
    "energy_mj": "energy, mJ", "duplicate": "tried before",
}  # fmt: skip
_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 16, 48


def name_of(key: str) -> str:
    """A cost's or reason's name for a reader."""
    return _NAMES.get(key, key.replace("_", " "))


def render(report: dict) -> str:
    """The page of a report, as `pipeline.search` writes it to report.json. Missing parts leave their section out."""
    parts = [f"<h1>{_text(report['title'])}</h1>", f"<p class='note'>{_text(report['subtitle'])}</p>"]
    if report.get("headline"):
        cells = "".join(f"<div><b>{_text(value)}</b>{_text(label)}</div>" for value, label in report["headline"])
        parts.append(f"<div class='big'>{cells}</div>")
    for table in report.get("summary", ()):
        parts.append(_table(table))
    if report.get("subspaces"):
        parts += ["<h2>Choice of width and resolution</h2>", _subspaces(report["subspaces"])]
    history = report.get("history") or []
    if history:
        parts += ["<h2>History</h2>", _history(history)]
        parts += ["<h2>Accuracy against cost</h2>"]
        parts += [_front(history, cost, report) for cost in report["front_costs"]]
    if report.get("rejects"):
        parts += ["<h2>Candidates rejected before they cost a trial</h2>", _rejects(report["rejects"])]
    if report.get("architecture"):
        parts += ["<h2>The chosen network</h2>", _architecture(report["architecture"])]
    for table in report.get("tables", ()):
        parts.append(_table(table))
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name=viewport content='width=device-width'>"
        f"<title>{_text(report['title'])}</title><style>{_STYLE}</style><body>" + "\n".join(parts) + "</body></html>\n"
    )


def _text(value) -> str:
    return html.escape(number(value) if isinstance(value, (int, float)) else str(value))


def number(value) -> str:
    """A number as a reader wants it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _table(table) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in table["columns"])
    rows = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in table["rows"])
    title = f"<h2>{_text(table['title'])}</h2>" if table.get("title") else ""
    note = f"<p class='note'>{_text(table['note'])}</p>" if table.get("note") else ""
    return f"{title}<table><tr>{head}</tr>{rows}</table>{note}"


# Drawing


class _Axes:
    """Maps data to pixels and draws the frame."""

    def __init__(self, x_range, y_range, x_label, y_label):
        self.x_range, self.y_range = _padded(x_range), _padded(y_range)
        self.items = []
        for value in _ticks(*self.x_range):
            x, foot = f"{self.x(value):.1f}", _HEIGHT - _BOTTOM
            self.items.append(f"<line x1='{x}' x2='{x}' y1='{_TOP}' y2='{foot}' stroke='#eceff4'/>")
            self.items.append(f"<text x='{x}' y='{foot + 16}' text-anchor='middle'>{_tick(value)}</text>")
        for value in _ticks(*self.y_range):
            y = self.y(value)
            self.items.append(f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#eceff4'/>")
            self.items.append(f"<text x='{_LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{_tick(value)}</text>")
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        self.items.append(f"<text x='{middle}' y='{_HEIGHT - 8}' text-anchor='middle'>{_text(x_label)}</text>")
        centre = (_TOP + _HEIGHT - _BOTTOM) / 2
        turned = f"transform='rotate(-90 14 {centre})'"
        self.items.append(f"<text x='14' y='{centre}' text-anchor='middle' {turned}>{_text(y_label)}</text>")

    def x(self, value):
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value):
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def dot(self, x, y, colour, title, radius=3.2):
        self.items.append(
            f"<circle cx='{self.x(x):.1f}' cy='{self.y(y):.1f}' r='{radius}' fill='{colour}' fill-opacity='.75'>"
            f"<title>{_text(title)}</title></circle>"
        )

    def cross(self, x, y, colour, title):
        cx, cy = self.x(x), self.y(y)
        path = f"M{cx - 3:.1f} {cy - 3:.1f}l6 6m0-6l-6 6"
        self.items.append(f"<path d='{path}' stroke='{colour}' fill='none'><title>{_text(title)}</title></path>")

    def line(self, points, colour, width=1.6, dash=""):
        path = "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        dash = f" stroke-dasharray='{dash}'" if dash else ""
        self.items.append(f"<path d='{path}' stroke='{colour}' stroke-width='{width}' fill='none'{dash}/>")

    def svg(self, label) -> str:
        items = "".join(self.items)
        return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{_text(label)}'>{items}</svg>"


def _padded(span):
    low, high = span
    margin = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _ticks(low, high, count=6):
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= count)
    first = math.ceil(low / step)
    return [step * k for k in range(first, math.floor(high / step) + 1)]


def _tick(value):
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.6g}"


def _history(history) -> str:
    rows = [(n + 1, row) for n, row in enumerate(history) if row["score"] is not None]
    if not rows:
        return "<p class='note'>No trial finished.</p>"
    scores = [row["score"] for _, row in rows]
    axes = _Axes((1, len(history)), (min(scores), max(scores)), "trial", "accuracy, inherited weights")
    for stage in (1, 2):
        best, points = -1.0, []
        for n, row in rows:
            if row["stage"] != stage:
                continue
            title = f"trial {row['trial']}: {row['score']:.4f}"
            if not row["feasible"]:
                axes.cross(n, row["score"], _COLOURS["infeasible"], title + ", beyond a limit")
                continue
            axes.dot(n, row["score"], _COLOURS[stage], title, 2.6)
            best = max(best, row["score"])
            points.append((n, best))
        if points:
            axes.line(points, _COLOURS[stage], 2)
    note = "Grey: stage 1 (SubNet). Blue: stage 2 (TargetNet, its operators). Lines: best so far."
    return axes.svg("accuracy of every trial") + f"<p class='note'>{note}</p>"


def _front(history, cost, report) -> str:
    rows = [row for row in history if row["score"] is not None]
    if not rows:
        return ""
    last = max(row["stage"] for row in rows)
    rejected = [costs[cost] for stage in report.get("rejected", {}).values() for costs in stage]
    limit = report.get("limits", {}).get(cost)
    values = [row["costs"][cost] for row in rows] + ([limit] if limit else [])
    most = 1.5 * max(values)  # further out, the rejected would squeeze the rest
    rejected = [value for value in rejected if value <= most]
    scores = [row["score"] for row in rows]
    floor = min(scores) - 0.08 * (max(scores) - min(scores) or 0.1)  # the rejected, whose accuracy nobody measured
    heights = (floor if rejected else min(scores), max(scores))
    values += rejected
    axes = _Axes((min(values), max(values)), heights, name_of(cost), "accuracy, inherited weights")
    for value in rejected:
        axes.cross(value, floor, _COLOURS["infeasible"], f"rejected: {name_of(cost)} {number(value)}")
    for row in rows:
        title = f"stage {row['stage']}, trial {row['trial']}: {row['score']:.4f} at {number(row['costs'][cost])}"
        if row["feasible"]:
            radius = 3.4 if row["stage"] == last else 2.6
            axes.dot(row["costs"][cost], row["score"], _COLOURS[row["stage"]], title, radius)
        else:
            axes.cross(row["costs"][cost], row["score"], _COLOURS["infeasible"], title + ", beyond a limit")
    front, best = [], -1.0
    candidates = [row for row in rows if row["feasible"] and row["stage"] == last]
    for row in sorted(candidates, key=lambda r: (r["costs"][cost], -r["score"])):
        if row["score"] > best:
            best = row["score"]
            front.append((row["costs"][cost], best))
    if front:
        axes.line(front, _COLOURS["front"], 2)
    if limit:
        axes.line([(limit, axes.y_range[0]), (limit, axes.y_range[1])], _COLOURS["limit"], 1.2, "5 4")
    for row in rows:
        if row["trial"] == report.get("chosen"):
            axes.dot(row["costs"][cost], row["score"], _COLOURS["front"], f"chosen: trial {row['trial']}", 6)
    note = f"Orange: the Pareto front of stage {last}, and the chosen network. Red crosses: infeasible"
    note += "; on the floor, those rejected unevaluated." if rejected else "."
    note += " Dashed: the limit, which stage 1 may exceed by the slack." if limit else ""
    return axes.svg(f"accuracy against {name_of(cost)}") + f"<p class='note'>{_text(note)}</p>"


def _subspaces(subspaces) -> str:
    """Distribution of the feasible candidates' MACs for each width and resolution."""
    drawn = [s for s in subspaces if s["macs"]]
    axes = _Axes((0, max(s["macs"][-1] for s in drawn)), (0, 1), "MACs of feasible candidates", "cumulative share")
    rows = []
    for index, s in enumerate(subspaces):
        label = f"width {s['width']:g}, {s['resolution']} pixels"
        rows.append([label, f"{s['feasible_share']:.0%}", round(s["mean_macs"]), "chosen" if s.get("chosen") else ""])
        if s["macs"]:
            count = len(s["macs"])
            points = [(m, (i + 1) / count) for i, m in enumerate(s["macs"])]
            grey = f"hsl({205 + 23 * (index % 6)} 25% {55 + 5 * (index % 5)}%)"
            axes.line(points, _COLOURS["front"] if s.get("chosen") else grey, 2.6 if s.get("chosen") else 1.2)
    table = _table({"columns": ("space", "feasible", "mean MACs", ""), "rows": rows})
    note = "Orange: the chosen space. The further right, the more of what the device allows its candidates use."
    return axes.svg("distribution of MACs") + f"<p class='note'>{note}</p>" + table


def _rejects(rejects) -> str:
    reasons = sorted({reason for counts in rejects.values() for reason in counts})
    rows = [[name_of(reason), *(counts.get(reason, 0) for counts in rejects.values())] for reason in reasons]
    return _table({
        "columns": ("reason", *(f"stage {stage}" for stage in rejects)), "rows": rows,
        "note": "A candidate beyond several limits counts once for each.",
    })  # fmt: skip


_OPERATOR_COLOURS = {"conv": "#8a94a6", "adder": "#4d7c0f"}


def _architecture(layers) -> str:
    """One bar per block: as wide as its expansion, as high as its share; hollow where it is only trained."""
    height = 26
    most = max(layer["expanded"] for layer in layers)
    items = []
    for index, layer in enumerate(layers):
        y = 6 + index * height
        colour = _OPERATOR_COLOURS.get(layer["operator"], "#2563a8")
        width = 8 + 330 * layer["expanded"] / most
        fill = f"fill='{colour}'" if layer["kept"] else f"fill='none' stroke='{colour}' stroke-dasharray='4 3'"
        items.append(f"<text x='0' y='{y + 14}'>{_text(layer['name'])}</text>")
        items.append(f"<rect x='110' y='{y}' width='{width:.0f}' height='{height - 8}' rx='3' {fill}/>")
        items.append(f"<text x='{width + 120:.0f}' y='{y + 14}'>{_text(layer['text'])}</text>")
    note = "Bars: channels inside the block. Dashed: depth augmentation, trained and then left out."
    return (
        f"<svg viewBox='0 0 {_WIDTH} {12 + height * len(layers)}' role='img' aria-label='architecture'>"
        + "".join(items) + f"</svg><p class='note'>{note}</p>"
    )  # fmt: skip
