"""Entrances of the tuning database: its files, the fields of its records, and the keys that it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.hostile.entrance import Entrance
from tests.tuning_db.examples import ASKED, recommendation, record
from tuning_db import Outcome, Recommendation, Record, Store

Fields = Callable[[str], dict[str, Any]]


def _field(name: str) -> Fields:
    return lambda hostile: {name: hostile}


_RECORD: dict[str, Fields] = {
    **{
        name: _field(name)
        for name in (
            *("spec", "bucket", "device", "backend", "template_digest"),
            *("outcome", "reason", "policy", "created", "source", "seconds", "surprise"),
        )
    },
    "setting": lambda name: {"schedule": {"variant": name}},
    "field of the schedule": lambda name: {"schedule": {name: 1}},
    "version": lambda name: {"toolchain": {"tvm": name}},
    "package": lambda name: {"toolchain": {name: "1"}},
}
"""Where a name comes into a record."""

_ROW = {"slots": 64, "chunk": 16, "seconds_per_token": 1e-6, "state_bytes": 32768, "recall": 0.9}
_RECOMMENDATION: dict[str, Fields] = {
    **{name: _field(name) for name in ("device", "created", "source", "slots", "surprise")},
    "package": lambda name: {"toolchain": {name: "1"}},
    "number of pairs": lambda name: {"front": [{**_ROW, "recall_by_pairs": {name: 0.5}}]},
}


@dataclass(frozen=True)
class _Folders:
    """Where a store of a test is, and whether there is nothing else."""

    given: Path

    @property
    def store(self) -> Store:
        return Store(self.given / "user", self.given / "shipped")

    def files(self) -> set[str]:
        return {str(path.relative_to(self.given)) for path in self.given.rglob("*") if path.is_file()}


def _committed(fields: Fields) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        made = msgspec.convert({**msgspec.to_builtins(record()), **fields(name)}, Record)
        folders = _Folders(given)
        assert folders.store.commit(made) is (made.outcome is Outcome.ok)
        assert folders.store.records() == (made,)
        _remembered(made, folders)
        allowed = {f"user/{part}{made.device}.json" for part in ("", "failures/")}
        assert {name for name in folders.files() if not name.endswith(".lock")} == allowed

    return entrance


def _remembered(made: Record, folders: _Folders) -> None:
    failure = msgspec.structs.replace(made, outcome=Outcome.crashed)
    assert folders.store.failures.remember(failure)
    asked = {name: getattr(made, name) for name in ("spec", "device", "backend", "template_digest", "toolchain")}
    assert list(folders.store.failures.known(**asked).values()) == [failure]


def _read(fields: Fields, part: str) -> Entrance:
    """A name in a file that somebody else wrote: what can be read is read, and a commit keeps the rest."""

    def entrance(name: str, given: Path) -> None:
        content = {"schema": 1, "device": "cpu-x", "records": [], "recommendation": None}
        plain = msgspec.to_builtins(record() if part == "record" else recommendation())
        if part == "record":
            content["records"] = [{**plain, **fields(name)}]
        else:
            content["recommendation"] = {**plain, **fields(name)}
        store = _written(given, content)
        assert len(store.records("cpu-x")) <= 1
        assert store.near_misses(spec="spec-a", device="cpu-y", backend="tvm", template_digest="d2") is not None
        store.lookup(**ASKED)
        store.recommendation("cpu-x")
        assert store.commit(record(spec="another"))
        assert {path.name.partition(".json")[0] for path in (given / "user").iterdir()} <= {"cpu-x", ".lock"}

    return entrance


def _written(given: Path, content: dict[str, Any]) -> Store:
    (given / "user").mkdir()
    (given / "user" / "cpu-x.json").write_text(json.dumps(content))
    return _Folders(given).store


def _member(name: str, given: Path) -> None:
    store = _written(given, {"schema": 1, "device": "cpu-x", "records": [], name: None})
    assert store.records() == ()


def _device_of_file(name: str, given: Path) -> None:
    assert _written(given, {"schema": 1, "device": name, "records": []}).records() == ()


def _file_name(name: str, given: Path) -> None:
    """A file of that name, where the system has such names."""
    (given / "user").mkdir()
    try:
        (given / "user" / f"{name}.json").open("x").close()
    except (OSError, ValueError):
        return
    store = _Folders(given).store
    assert store.devices() in ((), (name,))
    assert store.records() == ()


def _asked(name: str, given: Path) -> None:
    store = _Folders(given).store
    for field in ASKED:
        assert store.lookup(**{**ASKED, field: name}) is None
    assert store.records(name) == ()
    assert store.recommendation(name) is None


def _shipped(name: str, given: Path) -> None:
    path = _Folders(given).store.ship(name, [])
    assert path.parent == given / "shipped"


def _recommended(fields: Fields) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        made = msgspec.convert({**msgspec.to_builtins(recommendation()), **fields(name)}, Recommendation)
        folders = _Folders(given)
        folders.store.recommend(made)
        assert folders.store.recommendation(made.device) == made

    return entrance


ENTRANCES: dict[str, Entrance] = {
    **{f"{name} of a record": _committed(fields) for name, fields in _RECORD.items()},
    **{f"{name} of a record in a file": _read(fields, "record") for name, fields in _RECORD.items()},
    **{f"{name} of a recommendation": _recommended(fields) for name, fields in _RECOMMENDATION.items()},
    **{f"{name} of a recommendation in a file": _read(fields, "front") for name, fields in _RECOMMENDATION.items()},
    "field of a front in a file": _read(lambda name: {"front": [{**_ROW, name: 1}]}, "front"),
    "a member of a file of records": _member,
    "the device of a file of records": _device_of_file,
    "the name of a file of records": _file_name,
    "what the database is asked for": _asked,
    "the device to ship": _shipped,
}
