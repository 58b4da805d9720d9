"""Two checkouts of this project against each other, in turn:

    python -m tests.benchmarks.studies.versions.checkouts OLD NEW

Specs of the CPU's workload run in a process of each checkout, by its public operators and the schedules that it ships.
Only those of TRELLIS' own operators are taken, `trellis_attention`, `trellis_step` and `trellis_step_chunked`, which
`checkout_calls` can call in both checkouts; a line above the table names the specs that are left out.

The processes take a sample each, round after round, the first of a round changing, so that whatever slows the machine
slows both. Both keep the memory that they free, as training does (docs/performance.md). Otherwise the C library returns
some of it to the system after a call. How much depends on where its heap happens to end, and differs between processes
of one checkout; with it a reverse pass took up to 1.4 times as long.

The table has a line for each spec: microseconds of a call, medians over the rounds; new / old, the median of the
rounds' ratios, is below 1 where the new checkout is faster; the quartiles are those of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from codegen.spec import Spec
from trellis_ops.specs.workload import NamedSpec, load_workload
from tuner.workload import DEFAULT_FILE

CALLS = Path(__file__).with_name("checkout_calls.py")
_SAMPLE_SECONDS = 0.05
_ROUNDS = 25
# More than a call frees, in bytes.
_KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


class Checkout:
    """A process in a checkout that times calls when it is asked to."""

    def __init__(self, folder: Path, cache: Path) -> None:
        environment = os.environ | {
            **_KEPT_MEMORY,
            "TRELLIS_OPS_CACHE": str(cache),
            "TRELLIS_OPS_TUNING_DB": str(cache / "no-records"),
            # Idle threads of torch that spin would take the cores that the other process needs.
            "GOMP_SPINCOUNT": "200",
            "PYTHONPATH": str(folder),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CALLS.read_text()],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def can_call(self, spec: Spec) -> bool:
        """Whether the checkout has the public function of this spec's operator, and `checkout_calls` a call of it."""
        return bool(self.ask({"can_call": spec.problem.operator}))

    def ask(self, message: Mapping[str, object]) -> float:
        """The answer to one message, a number of seconds unless `checkout_calls` says otherwise.

        Raises:
            RuntimeError: the process has ended; its error is on stderr.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process in {self._process.args} ended with status {self._process.wait()}")
        return float(json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True)
class Compared:
    """Seconds of a call in both checkouts, a pair for each round."""

    rounds: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> list[float]:
        """New over old, a number for each round."""
        return [new / old for old, new in self.rounds]

    def row(self, name: str) -> str:
        """A line of the table."""
        old, new = (statistics.median(each) for each in zip(*self.rounds, strict=True))
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return f"| {name} | {old * 1e6:.1f} | {new * 1e6:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |"


def described(spec: Spec) -> dict[str, object]:
    """A spec as plain data, which a checkout with other records understands."""
    return asdict(spec.problem) | {name: getattr(spec.rule, name) for name in ("phi", "phi_eps", "link", "out")}


def compare(old: Checkout, new: Checkout, spec: Spec, rounds: int) -> Compared:
    """One spec in both, in turn."""
    for checkout in (old, new):
        checkout.ask({"prepare": described(spec)})
    found = []
    for number in range(rounds):
        order = (old, new) if number % 2 else (new, old)
        taken = {id(each): each.ask({"sample": _SAMPLE_SECONDS}) for each in order}
        found.append((taken[id(old)], taken[id(new)]))
    return Compared(tuple(found))


def workload(names: Sequence[str]) -> list[NamedSpec]:
    """The specs of the CPU's workload, or those of these names."""
    known = load_workload(DEFAULT_FILE, "cpu")
    unknown = set(names) - {each.name for each in known}
    if unknown:
        raise SystemExit(f"no spec {', '.join(sorted(unknown))}; there are {', '.join(each.name for each in known)}")
    return [each for each in known if not names or each.name in names]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.studies.versions.checkouts", description=__doc__)
    parser.add_argument("old", type=Path, help="folder of the one checkout")
    parser.add_argument("new", type=Path, help="folder of the other")
    parser.add_argument("--spec", nargs="*", default=[], help="names of specs (default: all of the CPU's workload)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"samples of each (default: {_ROUNDS})")
    options = parser.parse_args(arguments)
    asked = workload(options.spec)
    with tempfile.TemporaryDirectory() as folder:
        pair = [
            Checkout(each.resolve(), Path(folder) / str(place)) for place, each in enumerate((options.old, options.new))
        ]
        specs = [named for named in asked if all(checkout.can_call(named.spec) for checkout in pair)]
        left_out = [f"{each.name} ({each.spec.problem.operator})" for each in asked if each not in specs]
        print(f"left out, whose operators cannot be called in both: {', '.join(left_out) or 'none'}\n")
        print("| spec | old, us | new, us | new / old | quartiles |\n|---|---|---|---|---|")
        for named in specs:
            print(compare(*pair, named.spec, options.rounds).row(named.name), flush=True)
        for checkout in pair:
            checkout.close()


if __name__ == "__main__":
    main()
