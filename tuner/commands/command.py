"""What every command of the tuner has."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import NoReturn

from rich.console import Console

from tuner.studies.storage import StudyStorage
from tuner.studies.storage_url import shown
from tuner.studies.storage_variable import STORAGE_VARIABLE
from tuner.studies.studies import default_url, open_storage
from tuning_db.masking import masked
from tuning_db.records.field_rules import printable

_SET_IN = " " * 8
"""Before the second line of a text, as of a reason in a record, so that it cannot be taken for a line of the report."""

FAILED = 1
"""Exit code of a command that could not do what it was asked for."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints about a command line show no password of it."""

    def error(self, message: str) -> NoReturn:
        """As argparse has it."""
        super().error(masked(message))


def program(name: str, text: str) -> argparse.ArgumentParser:
    """The parser of a program and of its commands, whose complaints show no password."""
    return _Parser(prog=name, description=text)


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
    text = f"another Optuna storage, e.g. postgresql://host/name; {STORAGE_VARIABLE} names one with a password unseen"
    command.add_argument("--storage", metavar="URL", help=text)


def storage_url(options: argparse.Namespace) -> str:
    """The URL of the studies: from the command line, else from the environment, else of this user's own file."""
    return getattr(options, "storage", None) or os.environ.get(STORAGE_VARIABLE) or default_url()


def storage_of(options: argparse.Namespace) -> StudyStorage:
    """The storage of the studies. Raises StudyError."""
    return open_storage(storage_url(options))


def command_line(arguments: Sequence[str], storage: str | None) -> str:
    """The command as a record may keep it: without the password of the storage that it names."""
    told = [each if storage is None else each.replace(storage, shown(storage)) for each in arguments]
    return shlex.join(["python", "-m", "tuner", *(shown(each) if "://" in each else each for each in told)])


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are, but for characters that would rewrite a terminal; what follows a line end is set in."""
    for line in lines:
        console.print(printable(line).replace("\n", f"\n{_SET_IN}"), markup=False, highlight=False, soft_wrap=True)
