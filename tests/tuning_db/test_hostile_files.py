from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuning_db.examples import ASKED, recommendation, record
from tests.tuning_db.test_record import HOSTILE_DEVICES
from tuning_db import DatabaseFullError, DatabaseWriteError, Record, Store

Warned = Callable[[], list[str]]


def _body(**changes: Any) -> dict[str, Any]:
    plain = {"schema": 1, "device": "cpu-x", "records": [msgspec.to_builtins(record())], "recommendation": None}
    return {**plain, **changes}


def _dumped(**changes: Any) -> bytes:
    return json.dumps(_body(**changes)).encode()


def _with_field(field: str, text: bytes) -> bytes:
    return _dumped(records=[{**_body()["records"][0], field: "HERE"}]).replace(b'"HERE"', text)


UNUSABLE: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"  \n",
    "truncated": _dumped()[:-20],
    "not json": b"spec = 1\n",
    "binary": bytes(range(256)) * 4,
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "newer schema": _dumped(schema=2),
    "older schema": _dumped(schema=0),
    "schema as text": _dumped(schema="1"),
    "schema as a digit flood": _dumped().replace(b'"schema": 1', b'"schema": ' + b"9" * 5000),
    "no schema": json.dumps({"device": "cpu-x", "records": []}).encode(),
    "no records": json.dumps({"schema": 1, "device": "cpu-x"}).encode(),
    "records as an object": _dumped(records={}),
    "unknown member": _dumped(code="__import__('os').system('true')"),
    "another device": _dumped(device="gpu-y"),
    "another device throughout": _dumped().replace(b"cpu-x", b"gpu-y"),
    "a path as device": _dumped(device="../../etc/passwd"),
    "a terminal escape as device": _dumped(device="\x1b[2J\u202e"),
    "huge": _dumped() + b" " * (16 * 2**20),
    "deep": b'{"schema":1,"device":"cpu-x","records":' + b"[" * 1_000_000,
    "deep and closed": b'{"schema":1,"device":"cpu-x","records":[' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
    "many records": b'{"schema":1,"device":"cpu-x","records":[' + b"1," * 20_001 + b"1]}",
    "NaN": _with_field("seconds", b"NaN"),
    "Infinity": _with_field("seconds", b"-Infinity"),
    "a lone surrogate": _with_field("reason", b'"\\ud800"'),
    "byte order mark": b"\xef\xbb\xbf" + _dumped(),
    "utf-16": _dumped().decode().encode("utf-16"),
}

BAD_RECORDS: dict[str, bytes] = {
    "null": b"null",
    "a number": b"7",
    "an empty object": b"{}",
    "an overflowing number": _with_field("seconds", b"1e999"),
    "a huge integer": _with_field("trials", b"9" * 400),
    "a nested schedule": _with_field("schedule", b'{"a":[[1]]}'),
    "invalid utf-8": _with_field("reason", b'"\xff"'),
    "a nul": _with_field("reason", b'"\\u0000"'),
    "an unknown field": _with_field("surprise", b"1"),
    "a path as device": _with_field("device", b'"../../etc/passwd"'),
    "another device": _with_field("device", b'"gpu-y"'),
    "no time": _with_field("seconds", b"null"),
    "a deep field": _with_field("reason", b"[" * 400 + b"]" * 400),
}


def _only_record(data: bytes) -> bytes:
    return data[data.index(b"[{") + 1 : data.rindex(b"}]") + 1] if data.startswith(b'{"schema"') else data


def _put(store: Store, data: bytes) -> Path:
    path = store.user.path("cpu-x")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_file_is_a_miss_with_one_warning_and_is_kept_by_a_commit(
    store: Store, warned: Warned, data: bytes
) -> None:
    path = _put(store, data)
    for again in (store, Store(path.parent, path.parent / "none")):
        assert again.lookup(**ASKED) is None
        assert again.records() == again.records("cpu-x") == ()
        assert again.recommendation("cpu-x") is None
        assert again.near_misses(**ASKED) == ()
    assert len(warned()) == 1
    assert str(path) in warned()[0] and "make tune" in warned()[0]
    assert warned()[0].isprintable() and len(warned()[0]) < 1000
    assert path.read_bytes() == data, "reading changes nothing"

    store.commit(record())
    assert store.records() == (record(),)
    kept = path.with_name("cpu-x.json.unreadable-1")
    assert kept.read_bytes() == data
    assert len(warned()) == 2 and str(kept) in warned()[1]


@pytest.mark.parametrize("bad", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_one_bad_record_is_left_out_the_others_stay_and_a_commit_keeps_a_copy(
    store: Store, warned: Warned, bad: bytes
) -> None:
    good = [msgspec.json.encode(record(spec=spec)) for spec in ("spec-a", "spec-b")]
    joined = b",".join([good[0], _only_record(bad), good[1]])
    data = b'{"schema":1,"device":"cpu-x","records":[' + joined + b'],"recommendation":null}'
    path = _put(store, data)
    for _ in range(2):
        assert [each.spec for each in store.records("cpu-x")] == ["spec-a", "spec-b"]
        match = store.lookup(**ASKED)
        assert match is not None and match.record == record()
    assert len(warned()) == 1 and str(path) in warned()[0] and "record 1" in warned()[0]

    store.commit(record(spec="spec-c"))
    assert [each.spec for each in store.records("cpu-x")] == ["spec-a", "spec-b", "spec-c"]
    assert path.with_name("cpu-x.json.unreadable-1").read_bytes() == data
    assert len(warned()) == 2


def test_a_bad_recommendation_is_left_out_and_the_records_stay(store: Store, warned: Warned) -> None:
    for number, bad in enumerate(({"slots": 1}, 7, msgspec.to_builtins(recommendation(device="gpu-y")))):
        other = Store(store.user.folder / str(number), store.shipped.folder)
        other.user.folder.mkdir(parents=True)
        _put(other, _dumped(recommendation=bad))
        assert other.recommendation("cpu-x") is None
        assert other.records("cpu-x") == (record(),)
        assert len(warned()) == number + 1 and "recommendation" in warned()[number]


def test_a_damaged_user_file_does_not_hide_the_shipped_winner(store: Store, warned: Warned) -> None:
    store.ship("cpu-x", [record()])
    _put(store, b"{")
    match = store.lookup(**ASKED)
    assert match is not None and match.layer == "shipped"
    assert len(warned()) == 1


def test_a_damaged_shipped_file_says_how_to_restore_it(tmp_path: Path, warned: Warned) -> None:
    (tmp_path / "cpu-x.json").write_bytes(b"{")
    assert Store(None, tmp_path).lookup(**ASKED) is None
    assert len(warned()) == 1 and "install trellis-ops again" in warned()[0]


def test_every_unreadable_file_is_kept_under_its_own_number(store: Store, warned: Warned) -> None:
    for number in (1, 2, 3):
        path = _put(store, b"damaged %d" % number)
        store.commit(record())
        assert path.with_name(f"cpu-x.json.unreadable-{number}").read_bytes() == b"damaged %d" % number
    assert len(warned()) == 3
    assert store.devices() == ("cpu-x",)


def test_merging_nothing_leaves_a_damaged_file_alone(store: Store, warned: Warned) -> None:
    path = _put(store, b"damaged")
    assert store.merge([]) == 0
    assert path.read_bytes() == b"damaged"
    assert warned() == []


def _directory(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    "make, why",
    [
        (_directory, "not a regular file"),
        (_loop, "symbolic links"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ],
)
def test_something_else_in_place_of_the_file_is_a_miss_and_is_kept(
    store: Store, warned: Warned, make: Callable[[Path], None], why: str
) -> None:
    path = store.user.path("cpu-x")
    path.parent.mkdir()
    make(path)
    assert store.lookup(**ASKED) is None
    assert store.records() == ()
    assert len(warned()) == 1 and str(path) in warned()[0] and why in warned()[0]
    store.commit(record())
    assert store.records() == (record(),)
    assert os.path.lexists(path.with_name("cpu-x.json.unreadable-1"))


def test_a_link_to_a_readable_file_is_read(store: Store, tmp_path: Path) -> None:
    store.commit(record())
    path = store.user.path("cpu-x")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.records() == (record(),)


@pytest.mark.parametrize("device", HOSTILE_DEVICES)
def test_a_device_key_that_looks_like_a_path_is_a_miss_that_touches_nothing(
    tmp_path: Path, warned: Warned, device: str
) -> None:
    inner = tmp_path / "user"
    inner.mkdir()
    for bait in (tmp_path / "x.json", inner / ".json", inner / "A100.json", inner / ".hidden.json"):
        bait.write_bytes(_dumped())
    store = Store(inner, tmp_path / "shipped")
    for _ in range(2):
        assert store.lookup(**{**ASKED, "device": device}) is None
        assert store.records(device) == ()
        assert store.recommendation(device) is None
    assert len(warned()) == 1 and "no device key" in warned()[0] and warned()[0].isprintable()
    assert {path.name for path in inner.iterdir()} == {".json", "A100.json", ".hidden.json"}


def test_a_file_whose_name_is_no_device_key_is_reported_once(store: Store, warned: Warned) -> None:
    store.commit(record())
    (store.user.folder / "My GPU.json").write_bytes(_dumped())
    for _ in range(2):
        assert store.devices() == ("cpu-x",)
    assert len(warned()) == 1 and "My GPU.json" in warned()[0]


@pytest.mark.parametrize("folder", ["a\0b", "missing/deeper", "x" * 5000])
def test_a_folder_that_cannot_be_is_a_miss(tmp_path: Path, warned: Warned, folder: str) -> None:
    store = Store(tmp_path / folder, tmp_path / "shipped")
    for _ in range(2):
        assert store.lookup(**ASKED) is None
    assert len(warned()) == 1 and folder.replace("\0", "\\x00") in warned()[0]
    assert store.records() == ()


def test_a_file_in_place_of_the_folder_is_a_miss_and_a_clear_error(tmp_path: Path, warned: Warned) -> None:
    (tmp_path / "user").write_text("mine")
    store = Store(tmp_path / "user", tmp_path / "shipped")
    assert store.lookup(**ASKED) is None
    assert store.records() == ()
    assert {str(tmp_path / "user") in text for text in warned()} == {True}
    with pytest.raises(DatabaseWriteError, match=re.escape(str(tmp_path / "user"))) as caught:
        store.commit(record())
    assert "TRELLIS_OPS_TUNING_DB" in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert (tmp_path / "user").read_text() == "mine"


def test_a_folder_without_write_permission_is_a_clear_error(ordinary_folder: Path) -> None:
    store = Store(ordinary_folder / "user", ordinary_folder / "shipped")
    store.commit(record())
    os.chmod(ordinary_folder / "user", 0o500)
    with pytest.raises(DatabaseWriteError, match=r"user.*TRELLIS_OPS_TUNING_DB"):
        store.commit(record(spec="spec-b"))
    assert store.records() == (record(),)


def test_a_file_without_read_permission_is_a_miss_and_is_kept(ordinary_folder: Path, warned: Warned) -> None:
    store = Store(ordinary_folder, ordinary_folder / "shipped")
    store.commit(record())
    os.chmod(store.user.path("cpu-x"), 0)
    for _ in range(2):
        assert store.lookup(**ASKED) is None
    assert len(warned()) == 1 and "ermission" in warned()[0]
    store.commit(record(spec="spec-b"))
    kept = ordinary_folder / "cpu-x.json.unreadable-1"
    os.chmod(kept, 0o600)
    assert b'"spec-a"' in kept.read_bytes()
    assert [each.spec for each in store.records()] == ["spec-b"]


def test_a_full_file_refuses_the_record_and_keeps_what_it_has(store: Store) -> None:
    large = [record(spec=f"s{i}", reason="x" * 4000, policy="y" * 3000) for i in range(2200)]
    store.merge(large)
    with pytest.raises(DatabaseFullError, match=r"cpu-x\.json"):
        store.merge([record(spec=f"t{i}", reason="x" * 4000, policy="y" * 3000) for i in range(200)])
    assert len(store.records()) == 2200
    assert sorted(os.listdir(store.user.folder)) == [".lock", "cpu-x.json"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_field = st.sampled_from([*Record.__struct_fields__, "surprise"])


@st.composite
def _mutilated(draw: st.DrawFn) -> bytes:
    data = bytearray(_dumped())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


_hostile = st.one_of(
    st.binary(max_size=300),
    _mutilated(),
    _json.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda member, value: _dumped(**{member: value}), st.sampled_from([*_body(), "more"]), _json),
    st.builds(lambda field, value: _dumped(records=[{**_body()["records"][0], field: value}, 1]), _field, _json),
)


@given(_hostile)
@settings(deadline=None, max_examples=300)
def test_no_content_makes_reading_raise_or_a_commit_lose_anything(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = Store(Path(name), Path(name) / "shipped")
        path = _put(store, data)
        found = store.records("cpu-x")
        assert all(isinstance(each, Record) and each.device == "cpu-x" for each in found)
        match = store.lookup(**ASKED)
        assert match is None or match.record in found
        store.near_misses(**ASKED)
        told = len(caught)
        assert told <= 1
        added = record(spec="added")
        store.commit(added)
        kept = path.with_name("cpu-x.json.unreadable-1")
        assert {*map(Record.identity, store.records())} == {*map(Record.identity, found), added.identity()}
        assert told == 0 or kept.read_bytes() == data
        assert kept.exists() == (told == 1) and len(caught) == 2 * told
