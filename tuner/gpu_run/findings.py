"""What the findings of each stage say in numbers: a ledger may hold what another version, or another hand, wrote."""

from __future__ import annotations

from typing import Any

import msgspec

from codegen.schedules.schedule import Value
from tuner.measure.side_by_side import FLOOR, KERNEL
from tuning_db import Outcome


class _Measured(msgspec.Struct):
    seconds: float


class _Failed(msgspec.Struct):
    outcome: Outcome | None = None  # An earlier version has it in the text alone.


class _Tuned(msgspec.Struct):
    schedule: dict[str, Value]
    seconds: float
    ceiling_share: float
    tried: int
    default_seconds: float | None
    eager_seconds: float | None
    order_quality: float | None


class _Errors(msgspec.Struct):
    errors: dict[str, float]
    seconds: float | None


class _Timed(msgspec.Struct):
    seconds: dict[str, float]
    of_bandwidth: float
    of_matrix: float
    ready: list[str] = []


_OK: dict[str, type[msgspec.Struct]] = {"measured": _Measured, "tuned": _Tuned, "timed": _Timed}
_FAILED: dict[str, type[msgspec.Struct]] = {"measured": _Failed}
_ANY: dict[str, type[msgspec.Struct]] = {"precision": _Errors, "tvm": _Errors}


def is_whole(stage: str, ok: bool, values: dict[str, Any]) -> bool:
    """Whether `values` hold what a finding of `stage` is read for; one that failed holds little."""
    kind = _ANY.get(stage) or (_OK if ok else _FAILED).get(stage)
    if kind is None:
        return True
    try:
        found = msgspec.convert(values, type=kind)
    except msgspec.ValidationError:
        return False
    seconds = getattr(found, "seconds", None)
    times = list(seconds.values()) if isinstance(seconds, dict) else [] if seconds is None else [seconds]
    named = not isinstance(found, _Timed) or {KERNEL, FLOOR} <= found.seconds.keys()
    return named and all(time > 0.0 for time in times)
