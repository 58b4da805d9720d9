"""Errors of every named rule by form: eager, and the variants of TVM and of Triton, which is interpreted.

    python -m tests.benchmarks.studies.errors.rule_forms --folder runs/rule-forms

computes what is missing, keeps it in the folder, and prints the tables of docs/rules-errors.md: a row for each rule, a
column for each form, in each cell the largest relative error against the oracle, or the number of the reason why the
form does not compute the rule. Triton's kernels are interpreted in a process of their own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codegen.device import Device, cpu
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest
from codegen.rule import Rule
from codegen.rules import NAMED
from codegen.schedules.registry import variants_of
from codegen.spec import Problem
from tests.benchmarks.results.targets import Target
from tests.benchmarks.rule_table.errors_by_form import CHUNKS, EAGER, Errors, FormCall, errors_by_form
from tests.benchmarks.rule_table.row import MISSING
from tests.benchmarks.rule_table.saved_parts import Saved, SavedParts, now
from tests.benchmarks.studies.rules import rules_of_text
from trellis_ops.lm.recall.report.tables import markdown
from tuner.processes.own_process import own_process
from tuner.verify.check import OF_GRADIENTS, TOLERANCE

MODULE = "tests.benchmarks.studies.errors.rule_forms"
BACKENDS = {EAGER: "eager", "tvm": "TVM", "triton": "Triton"}
"""Whose forms there are, as columns name them."""

_INTERPRETED = "TRITON_INTERPRET"
_FULL = "memory_attention"
_OWN = "trellis_attention"


@dataclass(frozen=True)
class Table:
    """One of the tables.

    Attributes:
        title: its heading.
        operator, direction: of its calls.
        rules: a row for each, by name.
    """

    title: str
    operator: str
    direction: str
    rules: dict[str, Rule]

    def columns(self) -> list[tuple[str, str]]:
        """Backend and variant of each column."""
        of_backends = {
            backend: (EAGER,) if backend == EAGER else variants_of(self.operator, backend, self.direction)
            for backend in BACKENDS
            if backend != EAGER or self.operator == _FULL
        }
        return [(backend, variant) for backend, variants in of_backends.items() for variant in variants]

    def backends(self) -> list[str]:
        """Those that have a column."""
        return list(dict.fromkeys(backend for backend, _ in self.columns()))


def tables_of(names: Sequence[str]) -> list[Table]:
    """Of these rules: outputs and states, gradients, and the kernels that TRELLIS alone has."""
    rules = {name: NAMED[name].rule for name in names}
    tables = [
        Table("Outputs and final states", _FULL, "forward", rules),
        Table("Gradients", _FULL, "backward", rules),
    ]
    own = {name: rule for name, rule in rules.items() if rule.is_trellis}
    if own:
        tables.append(Table("TRELLIS by its own operators, outputs and final states", _OWN, "forward", own))
        tables.append(Table("TRELLIS by its own operators, gradients", _OWN, "backward", own))
    return tables


@dataclass(frozen=True)
class Parts:
    """What is kept: the errors of all variants of a backend, rule, operator and direction.

    Attributes:
        saved: where.
        device: the CPU.
        tokens, dim: of the calls.
    """

    saved: SavedParts
    device: Device
    tokens: int
    dim: int

    def known(self, table: Table, name: str, backend: str) -> Errors | None:
        """None where it was not computed."""
        found = self.saved.find(name, self._part(table, backend), self._setting(table, name, backend))
        return None if found is None else found.found

    def compute(self, table: Table, name: str, backend: str) -> None:
        """Compute it, and keep it."""
        call = FormCall(table.rules[name], table.operator, table.direction, self.tokens, self.dim)
        setting = self._setting(table, name, backend)
        found = errors_by_form(call, backend, self.device)
        self.saved.add(Saved(name, self._part(table, backend), setting, found, now(), ""))
        print(f"{name}, {table.title}, {BACKENDS[backend]}: {found}", file=sys.stderr, flush=True)

    def _part(self, table: Table, backend: str) -> str:
        return f"{table.operator} {table.direction} {backend}"

    def _setting(self, table: Table, name: str, backend: str) -> str:
        # The eager walk is written from the statements that TVM's kernels are written from.
        digests = [
            operator_digest(Problem(table.operator, direction=direction), "tvm" if backend == EAGER else backend)
            for direction in dict.fromkeys(("forward", table.direction))
        ]
        rule = table.rules[name].key()
        return f"{self.device.key()} {rule} T{self.tokens} D{self.dim} C{CHUNKS} {' '.join(digests)}"


def compute_missing(tables: Sequence[Table], parts: Parts, backends: Sequence[str], minutes: float) -> None:
    """Compute what is not known of these backends, as far as the time goes."""
    deadline = time.monotonic() + 60 * minutes
    for backend in backends:
        for table in tables:
            for name in table.rules if backend in table.backends() else ():
                if time.monotonic() >= deadline:
                    return
                if parts.known(table, name, backend) is None:
                    parts.compute(table, name, backend)


def lines_of(tables: Sequence[Table], parts: Parts) -> Iterator[str]:
    """The tables, the reasons by their numbers, and the errors that are too large."""
    reasons: dict[str, int] = {}
    missed = list[str]()
    for table in tables:
        columns = table.columns()
        rows = []
        for name in table.rules:
            known = {backend: parts.known(table, name, backend) for backend in table.backends()}
            cells = [_cell(known[backend], variant, reasons) for backend, variant in columns]
            rows.append([name, *cells])
            missed += [
                str(target)
                for backend, variant in columns
                if (target := _target(table, name, backend, variant, known[backend])).reached is False
            ]
        yield from (f"### {table.title}", "", markdown(["rule", *(_head(*column) for column in columns)], rows), "")
    if reasons:
        yield from ("### Why not", "", *(f"{number}. {reason}" for reason, number in reasons.items()), "")
    yield from missed


def _head(backend: str, variant: str) -> str:
    return EAGER if backend == EAGER else f"{BACKENDS[backend]} {variant}"


def _cell(known: Errors | None, variant: str, reasons: dict[str, int]) -> str:
    if known is None:
        return MISSING
    found = known[variant]
    return f"[{reasons.setdefault(found, len(reasons) + 1)}]" if isinstance(found, str) else f"{found:.0e}"


def _target(table: Table, name: str, backend: str, variant: str, known: Errors | None) -> Target:
    found = None if known is None else known[variant]
    limit = TOLERANCE["float32"] * (1.0 if table.direction == "forward" else OF_GRADIENTS)
    words = f"{name}, {table.title}, {_head(backend, variant)}"
    return Target(words, None if isinstance(found, str) else found, limit, False, shown="{:.1e}".format)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    tables = tables_of(options.rules)
    try:
        here = [each for each in options.backends if each != "triton" or os.environ.get(_INTERPRETED) == "1"]
        compute_missing(tables, _parts(options), here, options.minutes)
        if here != options.backends:
            _interpreted(options)
        parts = _parts(options)
    except (TrellisError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if not options.only_compute:
        sizes = f"T = {options.tokens} and {options.tokens // 2 + 1}, D_k = D_v = M = {options.dim}"
        print(f"float32, {sizes}, C = {', or '.join(map(str, CHUNKS))}\n")
        print("\n".join(lines_of(tables, parts)))
    return 0


def _parts(options: argparse.Namespace) -> Parts:
    return Parts(SavedParts(options.folder / "errors.jsonl"), cpu(), options.tokens, options.dim)


def _interpreted(options: argparse.Namespace) -> None:
    """The same for Triton alone, in a process that interprets it: that is decided when Triton is imported.

    Raises:
        OSError: the process failed.
    """
    given = {"--folder": options.folder, "--rules": ",".join(options.rules), "--minutes": options.minutes}
    given |= {"--tokens": options.tokens, "--dim": options.dim, "--backends": "triton"}
    words = [f"{name}={value}" for name, value in given.items()]
    command = own_process(MODULE, *words, "--only-compute")
    done = subprocess.run(command, env=os.environ | {_INTERPRETED: "1"}, check=False)
    if done.returncode:
        raise OSError(f"the process that interprets Triton's kernels ended with {done.returncode}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="Errors of every named rule by form.")
    parser.add_argument("--folder", type=Path, default=Path("runs/rule-forms"), help="what was computed is kept here")
    parser.add_argument(
        "--rules", type=rules_of_text, default=list(NAMED), help="names with commas between (default: all)"
    )
    computed = "whose forms are computed where they are missing; nothing behind it only prints (default: all)"
    parser.add_argument("--backends", nargs="*", choices=list(BACKENDS), default=list(BACKENDS), help=computed)
    parser.add_argument("--tokens", type=int, default=70, help="T of the longer sequence (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=64, help="D_k = D_v = M (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--only-compute", action="store_true", help="print no tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
