"""The page of a search: one HTML file that needs nothing else, drawn from plain data."""

from __future__ import annotations

from saaug_keras._page import Scale, document, dot, escape, line, path, svg, ticks, words

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2330;background:#fff;margin:0}
main{max-width:60rem;margin:2rem auto;padding:0 1rem}
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
    "ram_bytes": "RAM, bytes",
    "flash_bytes": "flash, bytes",
    "operations": "operations",
    "energy_mj": "energy, mJ",
    "duplicate": "tried before",
    "descendants": "beyond the limits without all that may go",
}
_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 16, 48
_RULE = "#eceff4"


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
    return document(report["title"], _STYLE, parts)


def _text(value) -> str:
    return escape(number(value) if isinstance(value, (int, float)) else value)


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
        foot, side = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        self.x, self.y = Scale(self.x_range, _LEFT, side), Scale(self.y_range, foot, _TOP)
        self.items = []
        for value in ticks(*self.x_range):
            x = self.x(value)
            self.items += [line(x, _TOP, x, foot, _RULE), words(x, foot + 16, _tick(value), "middle")]
        for value in ticks(*self.y_range):
            y = self.y(value)
            self.items += [line(_LEFT, y, side, y, _RULE), words(_LEFT - 6, y + 4, _tick(value), "end")]
        self.items.append(words((_LEFT + side) / 2, _HEIGHT - 8, x_label, "middle"))
        centre = (_TOP + foot) / 2
        self.items.append(words(14, centre, y_label, "middle", f' transform="rotate(-90 14 {centre})"'))

    def dot(self, x, y, colour, title, radius=3.2):
        self.items.append(dot(self.x(x), self.y(y), radius, colour, 0.75, title=title))

    def cross(self, x, y, colour, title):
        cx, cy = self.x(x), self.y(y)
        for ends in ((cx - 3, cy - 3, cx + 3, cy + 3), (cx - 3, cy + 3, cx + 3, cy - 3)):
            self.items.append(path([ends[:2], ends[2:]], colour, 1, title=title))

    def line(self, points, colour, width=1.6, dash=""):
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.items.append(path([(self.x(x), self.y(y)) for x, y in points], colour, width, dash))

    def svg(self, label) -> str:
        return svg(_WIDTH, _HEIGHT, label, self.items)


def _padded(span):
    low, high = span
    margin = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


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
    return _table(
        {
            "columns": ("reason", *(f"stage {stage}" for stage in rejects)),
            "rows": rows,
            "note": "A candidate beyond several limits counts once for each.",
        }
    )


_OPERATOR_COLOURS = ("#2563a8", "#4d7c0f", "#8a94a6", "#b45309", "#7c3aed")  # in the order in which they come


def _architecture(layers) -> str:
    """One bar per block: as wide as its expansion, as high as its share; hollow where it is only trained."""
    height = 26
    most = max(layer["expanded"] for layer in layers)
    items = []
    kinds = dict.fromkeys(layer["operator"] for layer in layers)
    colours = {operator: _OPERATOR_COLOURS[index % len(_OPERATOR_COLOURS)] for index, operator in enumerate(kinds)}
    for index, layer in enumerate(layers):
        y = 6 + index * height
        colour = colours[layer["operator"]]
        width = 8 + 330 * layer["expanded"] / most
        fill = f"fill='{colour}'" if layer["kept"] else f"fill='none' stroke='{colour}' stroke-dasharray='4 3'"
        items.append(words(0, y + 14, layer["name"]))
        items.append(f"<rect x='110' y='{y}' width='{width:.0f}' height='{height - 8}' rx='3' {fill}/>")
        items.append(words(width + 120, y + 14, layer["text"]))
    note = "Bars: channels inside the block. Dashed: depth augmentation, trained and then left out."
    return svg(_WIDTH, 12 + height * len(layers), "architecture", items) + f"<p class='note'>{note}</p>"
