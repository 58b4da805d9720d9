"""The tuner's answer to `num_slots="auto"` and `chunk_size="auto"` on one device."""

from __future__ import annotations

from datetime import datetime

import msgspec

from tuning_db.errors import RecordError
from tuning_db.masking import masked
from tuning_db.records.field_rules import (
    MAX_ENTRIES,
    check_count,
    check_created,
    check_device,
    check_number,
    check_pattern,
    check_text,
    check_toolchain,
    is_future,
    parse_created,
    shortened,
)

FRONT_HEADS = 8
"""How many heads, of one layer, the times of a front are for."""


class FrontRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point of the front of speed against recall.

    Attributes:
        slots: M.
        chunk: C.
        seconds_per_token: time per token, seconds, with the best schedule known.
        state_bytes: bytes of the carried state.
        recall: share of the written pairs that were read back, 0 to 1.
        recall_by_pairs: the same for each number of pairs that was written.

    Raises:
        RecordError: a field outside its range.
    """

    slots: int
    chunk: int
    seconds_per_token: float
    state_bytes: int
    recall: float
    recall_by_pairs: dict[str, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_measures(self)
        if len(self.recall_by_pairs) > MAX_ENTRIES:
            raise RecordError(field="recall_by_pairs", value=len(self.recall_by_pairs), expected=f"<= {MAX_ENTRIES}")
        for pairs, share in self.recall_by_pairs.items():
            check_pattern("recall_by_pairs", pairs, r"[1-9][0-9]{0,8}")
            check_number("recall_by_pairs", share, most=1.0, zero=True)


class Recommendation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The slot count and chunk size to take on a device, with the front they were chosen from.

    Attributes:
        device: key of the device.
        slots, chunk, seconds_per_token, state_bytes, recall: the chosen point; see `FrontRow`.
        front: every point that no other beats in time, state bytes and recall; holds the chosen one.
        toolchain: package to version; provenance.
        created: when, ISO 8601 in UTC; see `utc_now`.
        source: what made it, for example a command line.

    Raises:
        RecordError: a field outside its range, or a chosen point that is not on the front.
    """

    device: str
    slots: int
    chunk: int
    seconds_per_token: float
    state_bytes: int
    recall: float
    front: list[FrontRow]
    toolchain: dict[str, str] = msgspec.field(default_factory=dict)
    created: str
    source: str = ""

    def __post_init__(self) -> None:
        check_device(self.device)
        _check_measures(self)
        rows = isinstance(self.front, list) and all(isinstance(row, FrontRow) for row in self.front)
        if not rows or len(self.front) > MAX_ENTRIES:
            value = type(self.front).__name__
            raise RecordError(field="front", value=value, expected=f"a list of at most {MAX_ENTRIES} FrontRow")
        if (self.slots, self.chunk) not in [(row.slots, row.chunk) for row in self.front]:
            value = f"slots {self.slots}, chunk {self.chunk}"
            raise RecordError(field="recommendation", value=value, expected="one of the points on its own front")
        check_toolchain(self.toolchain)
        check_created(self.created)
        check_text("source", self.source)

    def without_secrets(self) -> Recommendation:
        """This recommendation, the passwords of URLs in its source masked; itself if there are none."""
        text = masked(self.source)
        return self if text == self.source else msgspec.structs.replace(self, source=shortened(text))

    def recency(self) -> tuple[bool, datetime]:
        """Greater for the newer one; one dated in the future is older than all that are not, as of records."""
        return (not is_future(self.created), parse_created(self.created))


def _check_measures(point: FrontRow | Recommendation) -> None:
    check_count("slots", point.slots, least=1)
    check_count("chunk", point.chunk, least=1)
    check_count("state_bytes", point.state_bytes)
    check_number("seconds_per_token", point.seconds_per_token)
    check_number("recall", point.recall, most=1.0, zero=True)
