"""Errors of the rules against flash-linear-attention's references of them, on the CPU.

    python -m tests.benchmarks.studies.errors.peers --folder runs/peers

prints the table of docs/peers.md, a row for each rule or for those that are named: ||a - b|| / ||b|| of the eager form,
or of TVM's kernels, and the reference, which are given the same tensors, the largest over the sizes `CROSS` of
`tests/support/peers/inputs.py`. What was computed is kept in the folder, and `--minutes` limits the time. The
references are those of the packages that `make .venv/installed-peers` installs.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from codegen.device import cpu
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest
from codegen.spec import Problem
from tests.benchmarks.rule_table.saved_parts import Found, Saved, SavedParts, now
from tests.support.peers.float64 import in_float64
from tests.support.peers.inputs import CROSS, SIZES, Drawing, Sizes
from tests.support.peers.peer import Errors, Peer, compare, kernels_of
from tests.support.peers.rules import RULES
from tests.support.peers.table import PEERS

HEADS = (
    *("rule", "reference", "output", "final states", "worst gradient", "all, float64"),
    *("output, kernels", "worst gradient, kernels", "remark"),
)


FORMS = ("eager", "float64", "kernels")
"""What is compared: the eager form in float32 and in float64, and TVM's kernels in float32."""


def compared(peer: Peer, sizes: Sizes) -> Found:
    """The errors of all `FORMS` at one size."""
    drawn = peer.draw(sizes, Drawing())
    rounded = {name: x.float() for name, x in drawn.items()}
    errors = {"eager": compare(peer, rounded)}
    with in_float64():
        errors["float64"] = compare(peer, drawn)
    with kernels_of("tvm"):
        errors["kernels"] = compare(peer, rounded)
    return {f"{form} {kind}": value for form, of in errors.items() for kind, value in _numbers(of).items()}


def _numbers(errors: Errors) -> Found:
    found: Found = {"output": errors.output, "gradient": errors.gradient, "worst": errors.worst}
    return found if errors.states is None else found | {"states": errors.states}


def setting_of(peer: Peer) -> str:
    """All that errors depend on: what was computed with another setting does not count."""
    digests = {operator_digest(Problem("memory_attention", direction=each), "tvm") for each in ("forward", "backward")}
    reference = f"fla-core {version('fla-core')} {peer.reference}"
    return f"{cpu().key()} {RULES[peer.name].key()} {' '.join(sorted(digests))} {reference}"


def compare_missing(peers: Sequence[Peer], cross: Sequence[Sizes], saved: SavedParts, minutes: float) -> None:
    """Compare what is not known, as far as the time goes, and keep each size of each rule at once."""
    deadline = time.monotonic() + 60 * minutes
    for peer in peers:
        setting = setting_of(peer)
        for sizes in cross:
            if time.monotonic() >= deadline:
                return
            if saved.find(peer.name, sizes.name, setting) is None:
                saved.add(Saved(peer.name, sizes.name, setting, compared(peer, sizes), now(), ""))


def row(peer: Peer, found: Sequence[Found]) -> tuple[str, ...]:
    """The cells of a rule, of what was found at each size."""
    module, _, name = peer.reference.partition(":")
    return (
        peer.name,
        f"`{module.removeprefix('fla.ops.').partition('.naive')[0]}`: `{name}`",
        _largest(found, "eager output"),
        _largest(found, "eager states"),
        _largest(found, "eager gradient", "eager worst"),
        _largest(found, "float64 output", "", "float64 states", "float64 gradient"),
        _largest(found, "kernels output"),
        _largest(found, "kernels gradient", "kernels worst"),
        peer.remark,
    )


def _largest(found: Sequence[Found], kind: str, where: str = "", *kinds: str) -> str:
    """The largest of these kinds over all sizes, and what stands under `where` beside it."""
    numbers = [(float(each[name]), each) for each in found for name in (kind, *kinds) if name in each]
    if not numbers:
        return "none given"
    error, at = max(numbers, key=lambda number: number[0])
    return f"{error:.1e} {at[where]}" if where else f"{error:.1e}"


def lines_of(peers: Sequence[Peer], cross: Sequence[Sizes], saved: SavedParts) -> Iterator[str]:
    """The table, and what is missing of it."""
    yield f"| {' | '.join(HEADS)} |"
    yield "|---" * len(HEADS) + "|"
    missing = dict[str, int]()
    for peer in peers:
        known = [saved.find(peer.name, sizes.name, setting_of(peer)) for sizes in cross]
        found = [each.found for each in known if each is not None]
        if len(found) < len(cross):
            missing[peer.name] = len(cross) - len(found)
        if found:
            yield f"| {' | '.join(row(peer, found))} |"
    yield from (f"missing: {count} of {len(cross)} sizes of {name}; run again" for name, count in missing.items())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.errors.peers", description=__doc__)
    parser.add_argument("rules", nargs="*", metavar="rule", help=f"all: {', '.join(PEERS)}")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="what was compared is kept here")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no comparison after so many")
    parser.add_argument("--few", action="store_true", help="the sizes of the tests only")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.rules if name not in PEERS]
    if unknown:
        parser.error(f"no peer has a reference of {unknown[0]!r}; there are {', '.join(PEERS)}")
    if importlib.util.find_spec("fla") is None:
        parser.error("the references are missing: make .venv/installed-peers")
    torch.set_num_threads(1)  # The last digits depend on how a sum is divided.
    warnings.filterwarnings("ignore", "Triton is not supported", UserWarning)
    peers = [PEERS[name] for name in options.rules or PEERS]
    cross = SIZES if options.few else CROSS
    try:
        saved = SavedParts(options.folder / "peers.jsonl")
        compare_missing(peers, cross, saved, options.minutes)
    except (TrellisError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines_of(peers, cross, saved)))


if __name__ == "__main__":
    main()
