"""Fuzz until the time is over: what `make fuzz` runs.

Rounds run in processes of their own, so that a kernel which ends its process is one more thing found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import time

from tests.fuzz.rounds import FOLDER, INTERPRETING

_ROUNDS_OF_A_PROCESS = 8
_INTERPRETING_PROCESS = 4
"""Every fourth process interprets Triton's kernels; the others run TVM's."""

_TIMES_AS_LONG = 6
"""An interpreted call takes about so many times as long as a compiled one, so there are fewer of them."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def main() -> int:
    options = _parser().parse_args()
    first_seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"Seed {first_seed}; the same rounds again: python -m tests.fuzz --seed {first_seed}", flush=True)
    end, number, ended = time.monotonic() + 60 * options.minutes, options.first, []
    try:
        while time.monotonic() < end and number < options.first + options.rounds:
            # By the number alone, so that the rounds of a seed are the same wherever they begin.
            process, place = divmod(number, _ROUNDS_OF_A_PROCESS)
            interprets = _HAS_TRITON and process % _INTERPRETING_PROCESS == _INTERPRETING_PROCESS - 1
            count = min(_ROUNDS_OF_A_PROCESS - place, options.first + options.rounds - number)
            left = (end - time.monotonic()) / 60
            examples = max(1, options.examples // _TIMES_AS_LONG) if interprets else options.examples
            arguments = [first_seed, number, count, examples, left]
            command = [sys.executable, "-m", "tests.fuzz.rounds", *map(str, arguments)]
            child = subprocess.Popen(command, env=os.environ | {INTERPRETING: str(int(interprets))})
            status = child.wait()
            if status not in (0, 1):
                ended.append(_kept(child.pid, first_seed, number))
                print(f"rounds {number} to {number + count - 1}: ended by status {status}: {ended[-1]}", flush=True)
            number += count
    except KeyboardInterrupt:
        print("Interrupted.")
    found = sorted(FOLDER.glob(f"{first_seed}-*.py"))
    print(f"{number - options.first} rounds, {len(found)} found: {', '.join(map(str, found)) or 'nothing'}")
    return int(bool(found))


def _kept(process: int, first_seed: int, number: int) -> str:
    """The case that ended a process, under a name that stays."""
    running = FOLDER / f"running-{process}.py"
    if not running.exists():
        return "between two rounds"
    return str(running.rename(FOLDER / f"{first_seed}-{number}-ended.py"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of all rounds (default: a fresh one)")
    parser.add_argument("--first", type=int, default=0, metavar="ROUND", help="round to begin with")
    parser.add_argument("--rounds", type=int, default=10**9, help="at most so many")
    parser.add_argument("--examples", type=int, default=60, help="calls of each kernel (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
