"""`python -m tuner`: see `tuner.cli`."""

from __future__ import annotations

import os
import sys


def run() -> int:
    """Run the command line; the exit code."""
    # Read once, when torch starts its threads: they must not go on spinning while kernels of another runtime run, and
    # must not sleep so soon that eager PyTorch suffers. 200 spins hurt neither.
    os.environ.setdefault("GOMP_SPINCOUNT", "200")
    from tuner.cli import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(run())
