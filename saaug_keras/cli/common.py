"""What the commands share: plain errors, quiet start-up, JSON or a table, progress."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
import types
import typing

from saaug_keras import _backend, _errors


def add_common_options(parser: argparse.ArgumentParser, *, inner: bool = False):
    """Options that every command has; `inner` for the parser of a command's action, which has them, too."""
    default = argparse.SUPPRESS if inner else False  # what stands before the action is not forgotten behind it
    text = "print the result as one JSON object and nothing else"
    parser.add_argument("--json", action="store_true", default=default, help=text)
    parser.add_argument("--traceback", action="store_true", default=default, help="on an error print where it happened, too")


def run_plainly(run, args) -> int:
    """Runs a command; an error that the input caused ends as one line on stderr and exit code 2."""
    try:
        return run(args)
    except KeyboardInterrupt:
        print("saaug: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _errors.foreseen() as error:
        if args.traceback:
            raise
        print(f"saaug: {_errors.one_line(error)}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def quiet():
    """Silences the start-up noise of TensorFlow, which writes to file descriptor 2 past Python and its own settings.

    For imports and first uses only: an error inside still propagates as an exception.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def load_keras():
    """Imports Keras and its backend without their noise. Every command that needs them calls this first."""
    with quiet():
        import keras

        keras.ops.convert_to_numpy(keras.ops.zeros(()))  # the device is looked for, and complained about, here
    _backend.silence()
    return keras


def add_fields(group, cls, texts: dict):
    """An option for each field of a dataclass that `texts` names: its name, type and default are the field's.

    Args:
        group: of an argparse parser.
        cls: the dataclass.
        texts: {field: what the help says, or (that, further arguments of `add_argument`)}; `flag` among these is the
            option's name where it is not the field's.
    """
    kinds, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    for name, text in texts.items():
        text, further = (text, {}) if isinstance(text, str) else text
        default, kind = fields[name].default, kinds[name]
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        if isinstance(kind, types.UnionType):
            (kind,) = inner
            inner = typing.get_args(kind)
        flag = name.replace("_", "-")
        if kind is bool:
            flag, options = ("no-" + flag, {"action": "store_false"}) if default else (flag, {"action": "store_true"})
        elif typing.get_origin(kind) is tuple:
            parse, metavar = {float: (numbers, "F"), int: (integers, "N"), str: (names, "NAME")}[inner[0]]
            count = len(inner) if ... not in inner else 2
            options = {"type": parse, "metavar": ",".join([metavar] * count + ["..."] * (... in inner))}
        else:
            options = {"type": kind}
        shown = ",".join(_short(each) for each in (default if isinstance(default, tuple) else (default,)))
        if kind is not bool and default not in (None, ()):
            text += f" (default: {shown})"
        further = dict(further)
        flag = further.pop("flag", "--" + flag)
        group.add_argument(flag, dest=name, default=default, help=text, **options | further)


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def from_fields(cls, args, **others):
    """The dataclass of parsed `add_fields`; `others` are fields that are no options."""
    given = vars(args)
    same = {field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given}
    return cls(**same | others)


def names(text: str) -> tuple[str, ...]:
    """argparse type: "conv,shift" -> ("conv", "shift"); nothing for ""."""
    return tuple(part for part in text.split(",") if part)


def numbers(text: str) -> tuple[float, ...]:
    """argparse type: "1,1.6,2.2" -> (1.0, 1.6, 2.2)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers separated by commas, not {text!r}") from None


def integers(text: str) -> tuple[int, ...]:
    """argparse type: "1,2,2" -> (1, 2, 2)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers separated by commas, not {text!r}") from None


def size(text: str) -> int:
    """argparse type: "65536" or "64k" (KiB) or "1M" (MiB) -> bytes."""
    units = {"k": 1 << 10, "m": 1 << 20}
    digits, unit = (text[:-1], units.get(text[-1:].lower(), 0)) if text[-1:].isalpha() else (text, 1)
    if not (digits.isdecimal() and digits.isascii() and unit):
        raise argparse.ArgumentTypeError(f"must be a number of bytes such as 65536, 64k or 1M, not {text!r}")
    return int(digits) * unit


def show(args, result: dict, *, title: str | None = None, rows=None, columns=None):
    """Prints a result: with --json the dictionary, else a table.

    Args:
        args: the parsed arguments.
        result: plain data.
        title: above the table.
        rows: list of tuples for the table; by default (key, value) of `result`, and of dictionaries in it.
        columns: headings of `rows`.
    """
    if args.json:
        print(json.dumps(result))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if rows is None:
        parts = {key: value if isinstance(value, dict) else {"": value} for key, value in result.items()}
        rows = [(f"{key.replace('_', ' ')} {part}".strip(), value) for key, of in parts.items() for part, value in of.items()]
        columns = columns or ("", "")
    table = Table(box=box.SIMPLE, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else format_value(cell) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)  # a file has no edge to break lines at
    if title:
        console.print(title, markup=False)
    console.print(table)


def format_value(value) -> str:
    """A number as a person reads it: 12,345, 0.8125, 1,234.5."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)


def say(args, text: str):
    """A line for a person, on stderr, so that stdout stays the result."""
    print(text, file=sys.stderr, flush=True)


def add_budget_options(parser):
    """`--jobs`, `--hours`, `--until`."""
    parser.add_argument(
        "--jobs",
        type=int,
        help="processes that train at a time (default: one a core, with one thread each; one on an accelerator)",
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="stop after so many hours, at the end of an epoch; the same command goes on"
    )
    parser.add_argument("--until", metavar="HH:MM", help="stop at that time of the day, or at an ISO date and time")


def add_operator_option(parser):
    """`--operator`."""
    from saaug_keras import operators

    parser.add_argument(
        "--operator",
        default="shift",
        help=f"{', '.join(operators.names())}, perhaps with options, as "
        "'shift(zero_code=False)'; or three of a block's layers, as adder/shift/adder (default: "
        "shift)",
    )


def add_packaging_option(parser):
    """`--packaging`, of what exports."""
    choices = ("plain", "cmake", "arduino", "platformio", "zephyr", "esp-idf")
    parser.add_argument(
        "--packaging",
        choices=choices,
        help="of --target c: a folder with a program, or a library as that build system takes it (default: plain)",
    )


def add_core_option(parser, default="m4"):
    """`--core`, of what counts flash and RAM."""
    from saaug_keras.memory import CORES

    parser.add_argument(
        "--core",
        choices=tuple(CORES),
        default=default,
        help=f"processor that flash and RAM are counted for (default: {default or 'of the device, else m4'})",
    )


def budget_of(owner: str, args) -> tuple[int | None, float | None]:
    """(processes or None, deadline or None) that the options ask for; checked before anything is loaded."""
    from saaug_keras import _budget, _validate

    if args.jobs is not None:
        _validate.int_in(owner, "--jobs", args.jobs, 1, 1024, " processes")
    return args.jobs, _budget.deadline(args.hours, args.until)


class Progress:
    """A line that is rewritten in place on a terminal, and absent elsewhere."""

    def __init__(self, every_seconds: float = 0.2):
        self.every_seconds = every_seconds
        self.enabled = sys.stderr.isatty()
        self._next = 0.0

    def update(self, text: str):
        """Shows `text` in place of what was there, at most every `every_seconds`."""
        if self.enabled and time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every_seconds
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self):
        """Removes the line."""
        if self.enabled:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._next = 0.0
