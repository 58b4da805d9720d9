"""First calls of two checkouts of this project against each other, in turn:

    python -m tests.benchmarks.studies.versions.first_calls OLD NEW

Each process runs `first_call_of_checkout` in one of the checkouts. It imports torch, then `trellis_ops`, and makes
first calls, whose kernels an earlier process has compiled for TVM and left on the disk. No user's tuning records are
read.

The table has milliseconds, medians over the processes; new / old is below 1 where the new checkout is faster. A
collection of garbage takes 70 ms after torch is imported, and falls into an import or into the call after it,
depending on how many objects were made before; so one line has both together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CALLS = Path(__file__).with_name("first_call_of_checkout.py")
_KINDS = ("calls", "training")
_PROCESSES = 7

Milliseconds = dict[str, list[float]]


def measured(checkout: Path, cache: Path, kind: str) -> dict[str, float]:
    """Milliseconds of the first calls of a new process, by their names.

    Raises:
        CalledProcessError: the process failed; its error is on stderr.
    """
    # Bytecode is kept, as it is for users: without it every process would compile the Python of this package.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {
        "TRELLIS_OPS_CACHE": str(cache),
        "TRELLIS_OPS_TUNING_DB": str(cache / "no-records"),
        "PYTHONPATH": os.pathsep.join((str(checkout), *filter(None, [os.environ.get("PYTHONPATH")]))),
    }
    command = [sys.executable, "-W", "ignore", "-c", CALLS.read_text(), kind]
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {name: 1e3 * seconds for name, seconds in json.loads(done.stdout).items()}


def compare(checkouts: tuple[Path, Path], caches: tuple[Path, Path], processes: int) -> tuple[Milliseconds, ...]:
    """Milliseconds of the old and of the new checkout, a number for each process; the first processes only compile."""
    found: tuple[Milliseconds, ...] = ({}, {})
    for number, turn, kind in itertools.product(range(processes + 1), (0, 1), _KINDS):
        place = (turn + number) % 2
        taken = measured(checkouts[place], caches[place], kind)
        for name, milliseconds in taken.items() if number else ():
            found[place].setdefault(name, []).append(milliseconds)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.versions.first_calls", description=__doc__
    )
    parser.add_argument("old", type=Path, help="folder of the one checkout")
    parser.add_argument("new", type=Path, help="folder of the other")
    parser.add_argument("--processes", type=int, default=_PROCESSES, help=f"of each (default: {_PROCESSES})")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        caches = (Path(folder) / "old", Path(folder) / "new")
        old, new = compare((options.old.resolve(), options.new.resolve()), caches, options.processes)
    print("| first call | old, ms | new, ms | new / old |\n|---|---|---|---|")
    for name in old:
        before, after = statistics.median(old[name]), statistics.median(new[name])
        print(f"| {name} | {before:.1f} | {after:.1f} | {after / before:.2f} |")


if __name__ == "__main__":
    main()
