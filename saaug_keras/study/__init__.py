"""Studies: a grid of training runs that says what each part of the method is worth, with its spread.

`run` trains what is missing, one file per finished run, and may be killed anywhere; `report` writes the table, the
learning curves and the page from the files.
"""

from __future__ import annotations

import json
import pathlib

from saaug_keras._files import write_atomic
from saaug_keras.study import charts, page, results
from saaug_keras.study.grid import Arm, Cell, Comparison, Study
from saaug_keras.study.runner import Book, run

__all__ = ["Arm", "Book", "Cell", "Comparison", "Study", "report", "run"]


def report(book: Book, *, say=print) -> results.Findings:
    """Writes summary.json, table.md, page.html and, with Matplotlib, curves-<operator>-<backbone>.png.

    Args:
        book: what `run` returns, or `Book(out, study)` for the files as they are.
        say: told in one line where pictures are left out.
    """
    study, out = book.study, pathlib.Path(book.out)
    findings = results.collect(book)
    write_atomic(out / "summary.json", json.dumps(findings.summary, indent=1) + "\n")
    write_atomic(out / "table.md", results.table(study, findings))
    write_atomic(out / "page.html", page.render(study, findings, list(book.records.values())))
    if not charts.can_plot():
        say("study: no PNG of the learning curves, because Matplotlib is missing: pip install 'saaug-keras[plot]'.")
        return findings
    colours = charts.colours_of(study)
    for backbone, operator, lines, _ in findings.groups():
        title = f"{study.title}: {operator} on {backbone}"
        charts.save_curves(out / f"curves-{operator.replace('/', '+')}-{backbone}.png", title, lines, colours)
    return findings
