"""The command line, `saaug`: one module per command, none of them with logic of its own.

A command module has `add_parser(subparsers)`, which imports nothing heavy, and `run(args) -> int`.
"""

from __future__ import annotations

import argparse
import importlib

from saaug_keras._version import __version__
from saaug_keras.cli import common

COMMANDS = ("train", "export", "profile", "run", "cost", "search", "study", "zoo")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `args.run` is the chosen command's function."""
    parser = argparse.ArgumentParser(
        prog="saaug",
        description="Multiplication-free tiny networks: train them inside larger ones, export them to TFLite Micro, "
        "run them there.",
    )
    parser.add_argument("--version", action="version", version=f"saaug_keras {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"saaug_keras.cli.{name}")
        command = module.add_parser(subparsers)
        command.set_defaults(run=module.run)
        common.add_common_options(command)
    return parser


def main(argv=None) -> int:
    """Runs a command. Returns the exit code: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    args = make_parser().parse_args(argv)
    return common.run_plainly(args.run, args)
