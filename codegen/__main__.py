"""The command line of the compiler.

`python -m codegen show KERNEL` prints a generated source, or what became of it; `python -m codegen arguments` says what
every kernel is called with; `python -m codegen clean-cache` removes what can be generated again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from codegen.cache.kernels import kernels_folder
from codegen.errors import TrellisError
from codegen.render import generated_folder
from codegen.show.options import add_show
from codegen.show.printed import shown
from codegen.tables.arguments import arguments_table, tensors_table
from codegen.tables.rules import field_table, named_table


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        print(_COMMANDS[options.command](options).rstrip("\n"), flush=True)
    except TrellisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough; without this Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m codegen", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "clean-cache",
        help="remove generated sources and compiled kernels",
        description="Remove generated sources and compiled kernels; studies and tuning records stay.",
    )
    commands.add_parser(
        "arguments",
        help="print what every kernel is called with",
        description="Print the declared arguments of every kernel, and the shapes and types of their names.",
    )
    commands.add_parser(
        "rules",
        help="print the fields of a rule, and the rules that have a name",
        description="Print the fields of a rule, and the rules that have a name, as docs/rules.md has them.",
    )
    add_show(commands)
    return parser


def _clean_cache(options: argparse.Namespace) -> str:
    lines = []
    for folder in (generated_folder(), kernels_folder()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        if folder.exists():
            shutil.rmtree(folder)
        lines.append(f"{folder}: {len(sizes)} files removed, {sum(sizes) / 1e6:.1f} MB")
    return "\n".join(lines)


def _arguments(options: argparse.Namespace) -> str:
    return f"{arguments_table()}\n\n{tensors_table()}"


def _rules(options: argparse.Namespace) -> str:
    return f"{field_table()}\n\n{named_table()}"


_COMMANDS = {"arguments": _arguments, "rules": _rules, "show": shown, "clean-cache": _clean_cache}


if __name__ == "__main__":
    sys.exit(main())
