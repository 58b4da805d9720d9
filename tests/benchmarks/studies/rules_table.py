"""One row for each named rule: errors, the fastest form and its times, and what models with it recall.

    python -m tests.benchmarks.studies.rules_table --folder runs/rules-table --recall runs/rules

measures what is missing, part by part, keeps it in the folder, and prints the table of all that is known for these
sizes, this machine and these kernels. docs/rules-table.md explains the columns.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Read when torch starts its threads, which must not spin while those of a kernel work.
if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "200")

import torch

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.rules import NAMED
from tests.benchmarks.results import machine
from tests.benchmarks.rule_table.forms import why_no_forms_at_once
from tests.benchmarks.rule_table.parts import PARTS, PEER_OF, Ways, measured, setting_of
from tests.benchmarks.rule_table.row import HEADS, RuleRow
from tests.benchmarks.rule_table.saved_parts import Saved, SavedParts, now
from tests.benchmarks.rule_table.saved_recall import Recalled, recalled
from tests.benchmarks.studies.rules import Sizes, add_options, chunks, sizes_of
from tests.support.peers.inputs import SIZES
from tests.support.peers.table import PEERS
from trellis_ops.lm.recall.report.tables import markdown

NO_PEERS = "fla-core is not installed: make .venv/installed-peers"


def has_part(part: str, name: str) -> bool:
    """Whether a rule has that part at all: not of all is there a reference, or a chunk form."""
    if part == "chunk form":
        return None in why_no_forms_at_once(NAMED[name].rule, chunks()[name]).values()
    return part != "peer" or PEER_OF.get(name, name) in PEERS


def measure_missing(options: argparse.Namespace, saved: SavedParts, ways: Ways, device: Device) -> None:
    """Measure the parts that were asked for and are not known, and keep each at once."""
    deadline = time.monotonic() + 60 * options.minutes
    peers = PEERS if importlib.util.find_spec("fla") is not None else {}
    for part in options.parts:
        for name in options.rules:
            setting = setting_of(part, name, chunks()[name], ways, device)
            known = saved.find(name, part, setting)
            if (known is not None and not options.again) or not has_part(part, name) or (part == "peer" and not peers):
                continue
            if time.monotonic() >= deadline:
                return
            load = machine.load()
            found = measured(part, name, chunks()[name], ways, device, peers)
            saved.add(Saved(name, part, setting, found, now(), load))
            print(f"{name}, {part}: {found}", file=sys.stderr, flush=True)


def rows_of(
    names: Sequence[str], saved: SavedParts, recall: dict[str, Recalled], ways: Ways, device: Device
) -> list[RuleRow]:
    """What is known of each rule."""
    rows = []
    for name in names:
        chunk = chunks()[name]
        settings = {part: setting_of(part, name, chunk, ways, device) for part in PARTS if has_part(part, name)}
        parts = {part: saved.find(name, part, setting) for part, setting in settings.items()}
        rows.append(RuleRow(name, chunk, parts, recall.get(name)))
    return rows


def lines_of(rows: Sequence[RuleRow], pairs: Sequence[int], recall: Path) -> Iterator[str]:
    """The table, what is missing, and the targets that are not reached."""
    yield markdown([*HEADS, *(f"{count} pairs" for count in pairs), "remark"], [row.cells(pairs) for row in rows])
    yield ""
    for part in PARTS:
        names = [row.rule for row in rows if part in row.parts and row.parts[part] is None]
        if names:
            reason = f" ({NO_PEERS})" if part == "peer" and importlib.util.find_spec("fla") is None else ""
            yield f"missing, {part}{reason}: {', '.join(names)}"
    names = [row.rule for row in rows if row.recall is None]
    if names:
        yield f"missing, recall in {recall}: {', '.join(names)}"
    known = [each for row in rows for each in row.parts.values() if each is not None]
    if known:
        load = max((each.load for each in known), key=_newest)
        first, last = min(each.when for each in known), max(each.when for each in known)
        yield f"measured from {first} to {last} UTC, at a load of at most {load}"
    missed = [target for row in rows for target in row.targets() if target.reached is False]
    yield from map(str, missed)


def _newest(load: str) -> float:
    """The average of the last minute; 0 where the system has none."""
    first = load.split()[0]
    return float(first) if first.replace(".", "").isdigit() else 0.0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    device = machine.here()
    if device.kind == "cpu":
        torch.set_num_threads(device.cores)
    sizes = sizes_of(options)
    ways = Ways(sizes, options.compile_limit, SIZES[: options.peer_sizes])
    try:
        saved = SavedParts(options.folder / "parts.jsonl")
        recall = recalled(options.recall)
        measure_missing(options, saved, ways, device)
    except (TrellisError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for line in _head(device, sizes):
        print(line)
    rows = rows_of(options.rules, saved, recall, ways, device)
    pairs = sorted({count for each in recall.values() for count in each.accuracy})
    print("\n".join(lines_of(rows, pairs, options.recall)))
    complete = all(row.is_complete for row in rows)
    reached = all(target.reached for row in rows for target in row.targets())
    return 1 if options.enforce and not (complete and reached) else 0


def _head(device: Device, sizes: Sizes) -> Iterator[str]:
    yield f"{device.key()}, float32, B1 H{sizes.heads} D = M = {sizes.dim}; forward of T{sizes.tokens}, backward of"
    yield f"T{sizes.trained} with its forward, errors against the oracle of T{sizes.checked}"
    yield ", ".join(f"{name} {value}" for name, value in (machine.versions() | machine.threads()).items())
    yield ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.rules_table", description="One row for each named rule."
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/rules-table"), help="what was measured is kept here")
    parser.add_argument("--recall", type=Path, default=Path("runs/rules"), help="of `trellis_ops.lm.recall rules`")
    add_options(parser, checked=150)
    parts = "what is measured where it is missing; nothing behind it only prints (default: all)"
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help=parts)
    parser.add_argument("--again", action="store_true", help="measure what is known too")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no part after so many")
    limit = "seconds for torch.compile of each rule; 0 leaves it out (default: %(default)s)"
    parser.add_argument("--compile-limit", type=float, default=300.0, help=limit)
    parser.add_argument("--peer-sizes", type=int, default=len(SIZES), help="of those of the tests (default: all)")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a part is missing or a target missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
