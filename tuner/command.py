"""What every command of the tuner has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from rich.console import Console

FAILED = 1
"""Exit code of a command that could not do what it was asked for."""


def command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: object, text: str
) -> argparse.ArgumentParser:
    """The parser of a command that `run(options, console)` carries out; it has `--device`."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (prune: sm_90, gfx942, ...)")
    return parser


def storage_option(command: argparse.ArgumentParser) -> None:
    """Give a command `--storage`."""
    command.add_argument("--storage", metavar="URL", help="another Optuna storage, e.g. postgresql://host/name")


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
