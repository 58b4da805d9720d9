"""Numbers on a command line, refused where they are read if they are out of range; for `type` of argparse."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Threads, or processes, beyond which a machine only gets slower, and the libraries that start threads may crash."""


def count(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r:.80} is no whole number") from None
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text:.80} is out of range; expected {least} to {most}")
        return number

    return read


def at_least_zero(text: str) -> float:
    """A number of at least 0, or infinity."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no number") from None
    if math.isnan(number) or number < 0.0:
        raise argparse.ArgumentTypeError(f"{text:.80} is out of range; expected at least 0")
    return number
