"""What a long decode holds, in a process of its own, which does nothing else:

    python -m tests.benchmarks.studies.growth.decode_memory 100000

prints, as JSON, the tokens so far, the bytes of the state, the peak of the resident memory and the seconds per token
since the line before, at points that double up to the number given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.studies.growth.resident import forget_peak, peak_bytes

ROOT = Path(__file__).parents[4]
_FIRST = 500


@dataclass(frozen=True)
class Held:
    """What a decode holds after some tokens.

    Attributes:
        peak_bytes: the most that was resident since the first token, with all that Python and torch loaded; what
            compiling took before is forgotten where the system allows it (Linux).
        seconds: per token, since the point before, or since the first token.
    """

    tokens: int
    state_bytes: int
    peak_bytes: int
    seconds: float


def points(tokens: int) -> list[int]:
    """Where the process reports: from `_FIRST` on, doubled, and the end."""
    doubled = [_FIRST << power for power in range(tokens.bit_length()) if _FIRST << power < tokens]
    return [*doubled, tokens]


def decode_in_a_process(tokens: int) -> list[Held]:
    """Run this module on its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.studies.growth.decode_memory", str(tokens)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Held(**json.loads(line)) for line in printed.splitlines()]


def _decode(tokens: int) -> None:
    import torch

    from tests.benchmarks.studies.growth.stream import stream_model, window

    torch.set_num_threads(1)
    with torch.no_grad():
        model, token = stream_model(), torch.zeros(1, dtype=torch.int64)
        # Another stream's tokens pay for compiling, loading and all that is made once.
        window(model, model.first_state(1), token, _FIRST)
        forget_peak()
        state, done = model.first_state(1), 0
        for point in points(tokens):
            seconds = window(model, state, token, point - done)
            print(json.dumps(asdict(Held(point, state.nbytes(), peak_bytes(), seconds))), flush=True)
            done = point


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.growth.decode_memory", description=__doc__
    )
    parser.add_argument("tokens", type=int, help="how many tokens to decode")
    _decode(parser.parse_args(arguments).tokens)


if __name__ == "__main__":
    main()
