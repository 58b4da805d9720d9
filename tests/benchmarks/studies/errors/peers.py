"""Errors of the rules against flash-linear-attention's references of them, on the CPU.

    python -m tests.benchmarks.studies.errors.peers

prints the table of docs/peers.md, a row for each rule or for those that are named: ||a - b|| / ||b|| of the eager form,
or of TVM's kernels, and the reference, which are given the same tensors, the largest over the sizes of
`tests/support/peers/inputs.py`. It takes minutes, most of them to compile; the references are those of the packages
that `make .venv/installed-peers` installs.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Iterable

import torch

from tests.support.peers.float64 import in_float64
from tests.support.peers.inputs import SIZES, Drawing
from tests.support.peers.peer import Errors, Peer, compare, kernels_of
from tests.support.peers.table import PEERS

HEADS = (
    *("rule", "reference", "output", "final states", "worst gradient", "all, float64"),
    *("output, kernels", "worst gradient, kernels", "remark"),
)


def errors_of(peer: Peer) -> tuple[list[Errors], list[Errors], list[Errors]]:
    """Of every size: of the eager form in float32 and in float64, and of TVM's kernels in float32."""
    single, double, kernels = list[Errors](), list[Errors](), list[Errors]()
    for sizes in SIZES:
        drawn = peer.draw(sizes, Drawing())
        rounded = {name: x.float() for name, x in drawn.items()}
        single.append(compare(peer, rounded))
        with kernels_of("tvm"):
            kernels.append(compare(peer, rounded))
        with in_float64():
            double.append(compare(peer, drawn))
    return single, double, kernels


def row(peer: Peer) -> tuple[str, ...]:
    """The cells of a rule."""
    single, double, kernels = errors_of(peer)
    output = max(each.output for each in single)
    states = [each.states for each in single if each.states is not None]
    worst, of_kernels = (max(each, key=lambda errors: errors.gradient) for each in (single, kernels))
    module, _, name = peer.reference.partition(":")
    return (
        peer.name,
        f"`{module.removeprefix('fla.ops.').partition('.naive')[0]}`: `{name}`",
        f"{output:.1e}",
        f"{max(states):.1e}" if states else "none given",
        f"{worst.gradient:.1e} {worst.worst}",
        f"{max(each.largest for each in double):.1e}",
        f"{max(each.output for each in kernels):.1e}",
        f"{of_kernels.gradient:.1e} {of_kernels.worst}",
        peer.remark,
    )


def table(names: Iterable[str]) -> None:
    """Print the rows of these rules."""
    print(f"| {' | '.join(HEADS)} |")
    print("|---" * len(HEADS) + "|")
    for name in names:
        print(f"| {' | '.join(row(PEERS[name]))} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.errors.peers", description=__doc__)
    parser.add_argument("rules", nargs="*", metavar="rule", help=f"all: {', '.join(PEERS)}")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.rules if name not in PEERS]
    if unknown:
        parser.error(f"no peer has a reference of {unknown[0]!r}; there are {', '.join(PEERS)}")
    if importlib.util.find_spec("fla") is None:
        parser.error("the references are missing: make .venv/installed-peers")
    torch.set_num_threads(1)  # The last digits depend on how a sum is divided.
    warnings.filterwarnings("ignore", "Triton is not supported", UserWarning)
    table(options.rules or PEERS)


if __name__ == "__main__":
    main()
