"""What the guesses of tuner/offline/cost_model.py were worth:

    python -m tests.benchmarks.studies.kernels.guesses FINDINGS

Each schedule that a GPU run measured is compiled for that GPU, which need not be here and takes some minutes, and its
guess is held against its time. The GPU run itself has guesses for the few that were prepared only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from codegen.device import NAMED, Device
from codegen.schedules.schedule import Schedule
from trellis_ops.specs.workload import NamedSpec, load_workload
from tuner.gpu_run.ledger import Ledger
from tuner.offline.cost_model import predicted_seconds
from tuner.offline.offline import examine
from tuner.search.guesses import order_quality
from tuner.space.legal import legal_schedules
from tuner.workload import DEFAULT_FILE


def measured(named: NamedSpec, ledger: Ledger, device: Device) -> Iterator[tuple[Schedule, float]]:
    """The schedules of a spec that were right, and their seconds."""
    legal = {f"{named.name} {each.key()}": each for each in legal_schedules(named.spec, "triton", device)}
    for entry in ledger.of("measured"):
        schedule = legal.get(entry.name)
        if entry.ok and schedule is not None:
            yield schedule, entry.values["seconds"]


def main(arguments: list[str] | None = None) -> None:
    """One row per spec."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.kernels.guesses", description=__doc__)
    parser.add_argument("findings", type=Path, help="findings.jsonl of a GPU run")
    parser.add_argument("--arch", choices=sorted(NAMED), default="sm_90", help="of its GPU (default %(default)s)")
    options = parser.parse_args(arguments)
    ledger, device = Ledger(options.findings), NAMED[options.arch]
    print("| spec | schedules | rank correlation | fastest of the first five, to the fastest |\n|---|---|---|---|")
    for named in load_workload(DEFAULT_FILE, device.kind):
        pairs = []
        for schedule, seconds in measured(named, ledger, device):
            guess = predicted_seconds(named.spec, schedule, device, examine(named.spec, schedule, device).kernels)
            if guess is not None:
                pairs.append((guess, seconds))
        quality = order_quality([guess for guess, _ in pairs], [seconds for _, seconds in pairs])
        first = min((seconds for _, seconds in sorted(pairs)[:5]), default=float("nan"))
        best = min((seconds for _, seconds in pairs), default=float("nan"))
        said = "-" if quality is None else f"{quality:+.2f}"
        print(f"| {named.name} | {len(pairs)} | {said} | {first / best:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
