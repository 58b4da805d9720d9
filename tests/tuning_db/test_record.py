from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuning_db.examples import recommendation, record, records
from tuning_db import SHIPPED, FrontRow, Outcome, Recommendation, Record, RecordError, shortened, utc_now
from tuning_db.device_file import DeviceFile, encode, parse
from tuning_db.errors import DatabaseFullError

HOSTILE_DEVICES = [
    *("", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:x", "a\0b", "a\n", "a b"),
    *("A100", "ä", "x" * 101, "-x", ".hidden"),
]


@given(records())
@settings(deadline=None)
def test_a_record_survives_json(original: Record) -> None:
    back = msgspec.json.decode(msgspec.json.encode(original), type=Record)
    assert back == original
    assert [*map(type, back.schedule.values())] == [*map(type, original.schedule.values())]


@given(st.lists(records(device=st.just("cpu-x")), max_size=5))
@settings(deadline=None)
def test_a_device_file_survives_json_whatever_the_order(originals: list[Record]) -> None:
    data = encode(Path("f"), "cpu-x", DeviceFile(tuple(originals), recommendation()))
    reading = parse(data, "cpu-x")
    assert (reading.fault, reading.left_out) == ("", ())
    assert sorted(reading.content.records, key=Record.recency) == sorted(originals, key=Record.recency)
    assert encode(Path("f"), "cpu-x", DeviceFile(tuple(reversed(originals)), recommendation())) == data
    assert json.loads(data)["schema"] == 1


@pytest.mark.parametrize(
    "field, value",
    [
        *[("device", device) for device in HOSTILE_DEVICES],
        ("device", None),
        ("spec", ""),
        ("spec", "two\nlines"),
        ("spec", "x" * 1001),
        ("spec", "\x1b[31mred"),
        ("spec", "\ud800"),
        ("bucket", 7),
        ("backend", "no spaces"),
        ("template_digest", ""),
        ("template_digest", "../../x"),
        ("schedule", [("threads", 2)]),
        ("schedule", {"threads": None}),
        ("schedule", {"threads": [2]}),
        ("schedule", {"threads": math.nan}),
        ("schedule", {"threads": 2**63}),
        ("schedule", {"not a name": 2}),
        ("schedule", {"variant": "two\nlines"}),
        ("schedule", {1: 2}),
        ("schedule", {f"s{i}": i for i in range(101)}),
        ("outcome", "ok"),
        ("seconds", None),
        ("seconds", 0.0),
        ("seconds", -1.0),
        ("seconds", math.nan),
        ("seconds", math.inf),
        ("seconds", "1"),
        ("seconds", True),
        ("seconds", 10**400),
        ("spread", -0.1),
        ("default_seconds", 0),
        ("eager_seconds", math.inf),
        ("ceiling_share", math.nan),
        ("trials", -1),
        ("trials", 1.0),
        ("reason", "x" * 4001),
        ("reason", "\x00"),
        ("policy", None),
        ("toolchain", {"torch": 2}),
        ("toolchain", {"torch": ""}),
        ("created", "yesterday"),
        ("created", "2025-01-31 12:00:00Z"),
        ("created", "2025-01-31T12:00:00+02:00"),
        ("created", "2025-02-31T12:00:00Z"),
        ("source", "\u202eevil"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RecordError, match=field) as caught:
        record(**{field: value})
    assert "expected" in str(caught.value)
    str(caught.value).encode()


def test_a_stored_record_obeys_the_same_rules() -> None:
    plain = msgspec.to_builtins(record())
    for change in ({"seconds": -1.0}, {"device": "../x"}, {"surprise": 1}, {"outcome": "great"}, {"seconds": "1"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(json.dumps({**plain, **change}), type=Record)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ok])
def test_only_ok_needs_a_time(outcome: Outcome) -> None:
    assert record(outcome=outcome, seconds=None, reason="ptxas: 255 registers").outcome is outcome


def test_a_schedule_changed_behind_the_record_is_not_written() -> None:
    changed = record()
    changed.schedule["threads"] = math.nan
    with pytest.raises(RecordError, match="read back"):
        encode(Path("f"), "cpu-x", DeviceFile((changed,)))


def test_a_file_too_large_to_be_read_back_is_not_written() -> None:
    many = tuple(record(spec=f"s{i}", reason="x" * 4000) for i in range(4500))
    with pytest.raises(DatabaseFullError, match="move it away"):
        encode(Path("f"), "cpu-x", DeviceFile(many))


@given(st.text(max_size=300), st.integers(20, 200))
def test_shortened_text_always_fits_a_record(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= limit
    assert record(reason=short).reason == short
    assert shortened(short, limit) == short


def test_shortened_keeps_both_ends() -> None:
    assert shortened("first " + "x" * 9000 + " last").startswith("first xx")
    assert shortened("first " + "x" * 9000 + " last").endswith("xx last")
    assert shortened("\x1b[31mred\n") == "\\x1b[31mred\n"


def test_now_is_a_valid_moment_and_newer_than_the_past() -> None:
    assert record(created=utc_now()).recency() > record().recency()


def test_fractions_and_both_spellings_of_utc_are_ordered_by_time_not_by_text() -> None:
    moments = ["2025-01-31T11:59:59.999Z", "2025-01-31T12:00:00Z", "2025-01-31T12:00:00.000001+00:00"]
    assert [record(created=moment).created for moment in moments] == moments
    assert sorted((record(created=moment) for moment in moments), key=Record.recency) == [
        record(created=moment) for moment in moments
    ]


@pytest.mark.parametrize(
    "field, value",
    [
        ("device", "../x"),
        ("slots", 0),
        ("chunk", 1.0),
        ("chunk", 32),
        ("seconds_per_token", None),
        ("seconds_per_token", 0.0),
        ("state_bytes", -1),
        ("recall", 1.01),
        ("recall", math.nan),
        ("front", []),
        ("front", [{"slots": 64}]),
        ("created", ""),
    ],
)
def test_a_recommendation_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(RecordError):
        recommendation(**{field: value})


def test_a_front_row_is_checked_too() -> None:
    with pytest.raises(RecordError, match="recall"):
        FrontRow(slots=1, chunk=1, seconds_per_token=1.0, state_bytes=4, recall=-0.5)


def test_a_recommendation_survives_json() -> None:
    original = recommendation(toolchain={"torch": "2.13.0"}, source="make tune")
    assert msgspec.json.decode(msgspec.json.encode(original), type=Recommendation) == original


def test_errors_survive_a_process_boundary() -> None:
    for error in (RecordError(field="f", value=1, expected="2"), DatabaseFullError(path="p", reason="full")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back)) == (type(error), str(error))
    assert isinstance(DatabaseFullError(path="p", reason="full"), OSError)


def test_the_format_shown_in_the_readme_is_the_format_read() -> None:
    shown = re.search(r"```json\n(.*?)```", (SHIPPED / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    data = shown.group(1).encode()
    reading = parse(data, json.loads(data)["device"])
    assert (reading.fault, reading.left_out, len(reading.content.records)) == ("", (), 1)
    assert set(json.loads(data)["records"][0]) == set(Record.__struct_fields__)


def test_every_shipped_file_can_be_read_in_full() -> None:
    for path in SHIPPED.glob("*.json"):
        reading = parse(path.read_bytes(), path.stem)
        assert (reading.fault, reading.left_out) == ("", ()), path
        assert {each.outcome for each in reading.content.records} <= {Outcome.ok}, path
