"""Profiles for a reader: rows of a table, a picture of bars, a page of both."""

from __future__ import annotations

from saaug_keras._page import Scale, document, escape, line, svg, svg_file, words
from tflm_export.profiling import Profile

COLUMNS = ("layer", "operator", "MACs", "instructions", "per MAC", "share")

_TEXT = (
    "text{font:12px system-ui,sans-serif;font-variant-numeric:tabular-nums;fill:#5a6475}"
    "text.name,text.total{fill:#1d2330}text.total{font-weight:600}"
)
_STYLE = f"""
body{{font:15px/1.5 system-ui,sans-serif;color:#1d2330;background:#fff;margin:0}}
main{{max-width:62rem;margin:2rem auto;padding:0 1rem}}
h1{{font-size:1.5rem;margin:0 0 .2rem}}h2{{font-size:1.15rem;margin:2.2rem 0 .5rem}}p.note{{color:#5a6475;margin:.3rem 0}}
table{{border-collapse:collapse;font-size:.92rem;margin:.5rem 0}}
td,th{{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid #eceff4;font-variant-numeric:tabular-nums}}
td:nth-child(-n+2),th:nth-child(-n+2){{text-align:left}}th{{color:#5a6475;font-weight:600}}tr:last-child td{{font-weight:600}}
svg{{max-width:100%;height:auto;display:block;margin:.5rem 0}}{_TEXT}
"""
# An operator's colour: a hue for what is computed, a shade for the kind of layer. Told apart with any colour vision.
_HUES = {
    "SHIFT": ("#2563a8", "#7fb0e0", "#12365f"),
    "ADDER": ("#4d7c0f", "#a3c65c", "#2b4709"),
    "CHANNEL": ("#7c3aed", "#7c3aed", "#7c3aed"),
    "": ("#8a94a6", "#c3c9d4", "#4b5563"),
}
_OTHERS = ("#c2410c", "#e6a23c", "#8a6d00", "#cc79a7", "#b91c1c", "#0f766e")
_WIDTH, _ROW, _HEAD = 900, 22, 58
_VALUES = (("instructions", 96), ("per MAC", 162), ("share", 232))  # heading, right end behind the bars


def rows(profile: Profile) -> list[tuple]:
    """(layer, operator, MACs, instructions, per MAC, share) of every layer, of what is between them, of the inference."""
    found = [
        (layer.name, layer.operator, layer.macs or None, layer.instructions, layer.per_mac, layer.instructions / profile.total)
        for layer in profile.layers
    ]
    if profile.between is not None:
        found.append(("between layers", "", None, profile.between, None, profile.between / profile.total))
    macs = sum(layer.macs for layer in profile.layers)
    return [*found, ("one inference", "", macs or None, profile.total, profile.total / macs if macs else None, 1.0)]


def cells(row) -> list[str]:
    """A row's figures as text; what there is not is empty."""
    name, operator, macs, instructions, per_mac, share = row
    number = "" if macs is None else f"{macs:,}"
    return [name, operator, number, f"{instructions:,}", "" if per_mac is None else f"{per_mac:.2f}", _percent(share)]


def title(name: str, profile: Profile) -> str:
    """What was counted, in a line."""
    return f"{name} on {profile.core}: {profile.total:,} instructions, output equal to the reference"


def note(profile: Profile) -> str:
    """How it was counted."""
    return f"{profile.compiler}, -O3, {profile.kernels} kernels; instructions in QEMU, not cycles."


def picture(name: str, profiles) -> str:
    """An SVG file: for every core a bar per layer, coloured by operator."""
    return svg_file(_bars(name, profiles), _TEXT)


def page(name: str, profiles) -> str:
    """An HTML page: the picture and the table of every core."""
    parts = [f"<h1>{escape(name)}: instructions by layer</h1>"]
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    for profile in profiles:
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in rows(profile))
        parts += [_bars(name, [profile]), f"<table><tr>{head}</tr>{body}</table>"]
    return document(f"{name}: instructions by layer", _STYLE, parts)


def _bars(name, profiles):
    items, y = [], 0
    for profile in profiles:
        drawn, y = _bars_of(name, profile, y)
        items += drawn
    return svg(_WIDTH, y, f"instructions of every layer of {name}", items)


def _bars_of(name, profile, top):
    """(elements, where they end) of a core's bars."""
    colours = _colours(profile)
    left = 24 + 7 * min(28, max(len(layer.name) for layer in profile.layers))
    right = _WIDTH - _VALUES[-1][1] - 12
    ends = [right + offset for _, offset in _VALUES]
    bar = Scale((0, max(layer.instructions for layer in profile.layers)), left, right)
    items = [words(12, top + 20, title(name, profile), extra=' class="total"'), words(12, top + 37, note(profile))]
    items += [words(end, top + _HEAD, heading, "end") for end, (heading, _) in zip(ends, _VALUES, strict=True)]
    y = top + _HEAD + 8
    for layer, row in zip(profile.layers, rows(profile), strict=False):
        _, _, _, *texts = cells(row)
        hint = f"{layer.name}, {layer.operator}: {texts[0]} instructions, {texts[-1]}"
        shown = layer.name if len(layer.name) <= 28 else f"{layer.name[:27]}…"
        items.append(words(left - 10, y + 15, shown, "end", ' class="name"'))
        items.append(_bar(left, y + 3, bar(layer.instructions) - left, _ROW - 6, colours[layer.operator], hint))
        items += [words(end, y + 15, text, "end") for end, text in zip(ends, texts, strict=True)]
        y += _ROW
    items.append(line(left, top + _HEAD + 6, left, y + 2, "#c3c9d4"))
    y += 12
    for operator, colour in colours.items():
        own = [layer for layer in profile.layers if layer.operator == operator]
        macs, count = sum(layer.macs for layer in own), sum(layer.instructions for layer in own)
        _, _, _, *texts = cells((operator, operator, macs, count, count / macs if macs else None, count / profile.total))
        items.append(_bar(left, y + 3, 12, _ROW - 9, colour, operator))
        items.append(words(left + 20, y + 14, operator, extra=' class="name"'))
        items += [words(end, y + 14, text, "end") for end, text in zip(ends, texts, strict=True)]
        y += _ROW - 2
    return items, y + 14


def _percent(share):
    return f"{round(100 * share, 1) + 0.0:.1f} %"  # no -0.0


def _bar(x, y, width, height, colour, hint):
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}"'
    return f'<rect {place} rx="2" fill="{colour}"><title>{escape(hint)}</title></rect>'


def _colours(profile):
    """{operator: colour}, in the order in which they come."""
    found, others = {}, iter(_OTHERS * len(profile.layers))
    for operator in dict.fromkeys(layer.operator for layer in profile.layers):
        first = operator.split("_")[0]
        weighted = first in ("SHIFT", "ADDER", "CHANNEL") or operator in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        kind = 1 if "DEPTHWISE" in operator else 2 if "FULLY" in operator else 0
        found[operator] = _HUES.get(first, _HUES[""])[kind] if weighted else next(others)
    return found
