"""Failures that are foreseen: what damaged files end in, what a machine that is too small ends in, and their one line."""

from __future__ import annotations

import errno
import pickle
import re
import struct
import sys
import tokenize
import zipfile
import zlib

# What reading a damaged file ends in: archives, streams, array headers, pickles.
DAMAGED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def of_a_run() -> tuple:
    """What one training, export or the like may end in by its own fault: bad input, damaged files, want of memory."""
    return (
        EOFError,
        MemoryError,
        RecursionError,
        ValueError,
        pickle.UnpicklingError,
        struct.error,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        *_of_backends(),
    )


def foreseen() -> tuple:
    """`of_a_run`, and what concerns all runs: files that are missing or cannot be written, packages that are not there, a
    search that cannot go on, arguments of a wrong type."""
    return (*of_a_run(), ArithmeticError, ImportError, OSError, RuntimeError, TypeError)


def _of_backends():
    """What the backends that are loaded raise of their own."""
    if "tensorflow" in sys.modules:
        yield sys.modules["tensorflow"].errors.OpError
    if "jax" in sys.modules:
        yield sys.modules["jax"].errors.JaxRuntimeError


def one_line(error: BaseException, longest: int = 600) -> str:
    """What an error says, in one line, without colours and without the graph that TensorFlow adds."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if isinstance(error, tuple(_of_backends())):
        kept = [
            line
            for line in text.splitlines()
            if line.strip()
            and not re.match(
                r"\s|Graph execution error|Detected at|"
                r"Stack trace for|defined at|Original stack|\d+ (successful|root) ",
                line,
            )
        ]
        text = re.sub(r"\[\[.*?\]\]|\[Op:\w+\]|\{\{.*?\}\}", "", " ".join(kept) or text)
    text = " ".join(text.split())
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in text:
        advice = "out of memory; a smaller batch, network or number of processes takes less"
        text = f"{advice}: {text}" if text else advice
    elif isinstance(error, RecursionError):
        text = f"something is nested too deeply: {text}"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        text = f"the disk is full: {text}"
    elif isinstance(
        error,
        (ArithmeticError, EOFError, pickle.UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    ):
        text = f"damaged data: {text or name}"
    text = text or name
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
