"""`python -m tuner`: see `tuner.cli`."""

from __future__ import annotations

import sys

from tuner.cli import main


def run() -> int:
    """Run the command line; the exit code."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(run())
