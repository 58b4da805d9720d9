"""Records to test with, by hand and by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tuning_db import FrontRow, Outcome, Recommendation, Record
from tuning_db.records.field_rules import DEVICE_PATTERN, DIGEST_PATTERN, NAME_PATTERN

ASKED = {"spec": "spec-a", "bucket": "bucket-1", "device": "cpu-x", "backend": "tvm", "template_digest": "d1"}


def record(**fields: Any) -> Record:
    given: dict[str, Any] = {
        **ASKED,
        "schedule": {"threads": 2, "variant": "fused"},
        "outcome": Outcome.ok,
        "seconds": 1e-3,
        "created": "2025-01-31T12:00:00Z",
    }
    return Record(**{**given, **fields})


def recommendation(**fields: Any) -> Recommendation:
    row: dict[str, Any] = {"slots": 64, "chunk": 16, "seconds_per_token": 1e-6, "state_bytes": 32768, "recall": 0.9}
    given = {"device": "cpu-x", **row, "front": [FrontRow(**row)], "created": "2025-01-31T12:00:00Z"}
    return Recommendation(**{**given, **fields})


_line = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=40)
_text = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"], include_characters="\n\t"), max_size=200)
_positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, max_value=2.0**62)
_integer = st.integers(-(2**63) + 1, 2**63 - 1)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_created = st.datetimes().map(lambda moment: moment.isoformat(timespec="microseconds") + "+00:00")


def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern, fullmatch=True)


def records(**fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    fields: dict[str, st.SearchStrategy[Any]] = {
        "spec": _line,
        "bucket": _line,
        "device": _matching(DEVICE_PATTERN),
        "backend": _matching(NAME_PATTERN),
        "template_digest": _matching(DIGEST_PATTERN),
        "schedule": st.dictionaries(_matching(NAME_PATTERN), st.booleans() | _integer | _finite | _line, max_size=5),
        "outcome": st.sampled_from(Outcome),
        "reason": _text,
        "seconds": _positive,
        "spread": st.none() | _positive | st.just(0.0),
        "default_seconds": st.none() | _positive,
        "eager_seconds": st.none() | _positive,
        "ceiling_share": st.none() | _positive,
        "trials": st.integers(0, 2**63 - 1),
        "policy": _text,
        "toolchain": st.dictionaries(_line, _line, max_size=4),
        "created": _created,
        "source": _text,
    }
    return st.builds(Record, **{**fields, **fixed})
