"""The front of time, state bytes and recall, and the point on it where giving up time or recall buys least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuning_db import FrontRow


def front_of(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """The rows that no other is as good as in time, state bytes and recall, and better in one; fastest first.

    Of rows that are equal in all three, the first stays.
    """
    front: list[FrontRow] = []
    for row in sorted(rows, key=lambda row: (row.seconds_per_token, -row.recall, row.state_bytes)):
        if not any(_as_good(other, row) for other in front):
            front.append(row)
    return front


def _as_good(other: FrontRow, row: FrontRow) -> bool:
    """Whether `other`, which is as fast, is as good in the rest."""
    return other.recall >= row.recall and other.state_bytes <= row.state_bytes


def knee_of(front: Sequence[FrontRow]) -> FrontRow:
    """The row furthest above the straight line between the fastest and the best row, in recall over time.

    A row that another beats in both is never it. Time is taken by its logarithm, and both axes from 0 to 1 over the
    front. Where no row lies above the line, the one with the best recall is taken.

    Raises:
        ValueError: an empty front.
    """
    if not front:
        raise ValueError("an empty front has no knee")
    times = [math.log(row.seconds_per_token) for row in front]
    recalls = [row.recall for row in front]
    width = max(times) - min(times) or 1.0
    height = max(recalls) - min(recalls) or 1.0

    def above(row: FrontRow) -> tuple[float, float]:
        time = (math.log(row.seconds_per_token) - min(times)) / width
        return (row.recall - min(recalls)) / height - time, row.recall

    return max(front, key=above)
