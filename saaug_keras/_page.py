"""A kit for pages and pictures: HTML documents that need nothing else, SVG, and durations in words."""

from __future__ import annotations

import html
import math


def duration(seconds: float) -> str:
    """38 s, 4 min 10 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def escape(text) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def document(title: str, style: str, parts) -> str:
    """A whole page of parts that are HTML already; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers in [low, high], at most `count` + 1 of them."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    return [round(step * k, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class Scale:
    """Maps a span of values to a span of pixels."""

    def __init__(self, values, start, end):
        self.low, self.high = values
        self.start, self.end = start, end

    def __call__(self, value):
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


# Pictures: strings of SVG elements. `extra` holds further attributes, `title` what shows under the pointer.


def svg(width, height, label, items) -> str:
    """A picture of elements; `label` is for who cannot see it."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(items)}</svg>'


def svg_file(picture, style) -> str:
    """A picture of `svg` as a file of its own, with the style that a page would give it."""
    head, _, rest = picture.partition(">")
    width, height = head.partition('viewBox="0 0 ')[2].split('"')[0].split()
    head = head.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"', 1)
    return f'{head}><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{rest}\n'


def words(x, y, text, anchor="start", extra="") -> str:
    """Text that begins, ends or has its middle at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def line(x1, y1, x2, y2, stroke, width=1.0, extra="") -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width}"{extra}/>'


def path(points, stroke, width=1.6, extra="", title="") -> str:
    """A line through (x, y) points."""
    steps = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return _with(title, "path", f'd="{steps}" fill="none" stroke="{stroke}" stroke-width="{width}"{extra}')


def dot(x, y, radius, fill, opacity=1.0, extra="", title="") -> str:
    """A filled circle."""
    shade = f' fill-opacity="{opacity}"' if opacity != 1 else ""
    return _with(title, "circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"{shade}{extra}')


def _with(title, element, attributes):
    return f"<{element} {attributes}><title>{escape(title)}</title></{element}>" if title else f"<{element} {attributes}/>"
