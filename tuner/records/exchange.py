"""Records from elsewhere: taken as they are, or merged with what is known here, the better one kept.

A folder of records is what the user layer is: one JSON file for each device. Which of two records is better is decided
as a search decides it, by timing both in turn on this machine, if they are this machine's and can be built here. Where
they cannot, the one that a newer compiler made stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from codegen.backends import backend as compiler
from codegen.device import Device
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import from_settings
from codegen.spec import spec_of_key
from tuner.errors import ExchangeError
from tuner.measure.timed import Timing
from tuner.search.finals import compared
from tuner.workers.worker import Candidate, Finals
from tuning_db import Record, Store
from tuning_db.records.field_rules import parse_created

Measure = Callable[[Finals], Mapping[int, Timing]]

SECONDS, ROUNDS = 2.0, 60
"""How long two records are timed against each other."""


@dataclass(frozen=True)
class Merged:
    """What became of one record from elsewhere.

    Attributes:
        record: that record.
        taken: whether it is the one that stays.
        reason: why, in a sentence.
    """

    record: Record
    taken: bool
    reason: str


def export_records(store: Store, folder: Path, device: str | None = None) -> list[Path]:
    """Write what was tuned here, for `device` or for all, to a folder that `import` and `merge` read; the files."""
    written = []
    target = Store(folder)
    for name in [device] if device else store.own_devices():
        records = store.records(name, "user")
        recommendation = store.recommendation(name)
        if not records and recommendation is None:
            continue
        target.put(records)
        if recommendation is not None:
            target.recommend(recommendation)
        written.append(folder / f"{name}.json")
    return written


def import_records(store: Store, folder: Path) -> int:
    """Take all records of `folder` in place of those known here; how many.

    Raises:
        ExchangeError: there is no record in it.
    """
    source = _source(folder)
    for device in source.devices():
        recommendation = source.recommendation(device)
        if recommendation is not None:
            store.recommend(recommendation)
    return store.put(source.records())


def merge_records(store: Store, folder: Path, device: Device, measure: Measure | None) -> Iterator[Merged]:
    """Take the records of `folder` that are better than those known here, one after another.

    Args:
        store: where they go.
        folder: where they come from.
        device: of this machine.
        measure: times candidates in turn; None where nothing can be measured.

    Raises:
        ExchangeError: there is no record in it.
    """
    source = _source(folder)
    known = {record.identity(): record for record in store.records()}
    for record in source.records():
        own = known.get(record.identity())
        taken, reason = (True, "nothing was known here") if own is None else _better(record, own, device, measure)
        if taken:
            store.put([record])
        yield Merged(record, taken, reason)
    for name in source.devices():
        offered, mine = source.recommendation(name), store.recommendation(name)
        if offered is not None and (mine is None or parse_created(offered.created) > parse_created(mine.created)):
            store.recommend(offered)


def _source(folder: Path) -> Store:
    source = Store(None, folder)
    if not source.records():
        raise ExchangeError(folder=folder)
    return source


def _better(record: Record, own: Record, device: Device, measure: Measure | None) -> tuple[bool, str]:
    if _settings(record) == _settings(own):
        return record.recency() > own.recency(), "the same schedule: the newer record stays"
    finals = None if measure is None else _finals_of(record, own, device)
    if measure is not None and finals is not None:
        timings = measure(finals)
        if 0 not in timings or 1 not in timings:
            wrong = "this one was not right here" if 0 not in timings else "the one known here was not right"
            return 0 in timings, wrong
        found = compared(timings[0], timings[1])
        return (
            found.certain,
            f"measured here: {1 + found.gain:.2f}x the speed of the one known, noise {found.noise:.1%}",
        )
    return _newer_toolchain(record, own)


def _settings(record: Record) -> dict[str, object]:
    """Those of a record's schedule, with the defaults of fields that are younger than the record."""
    try:
        return dict(from_settings(record.backend, dict(record.schedule)).settings())
    except TrellisError:
        return dict(record.schedule)  # Of another version.


def _finals_of(record: Record, own: Record, device: Device) -> Finals | None:
    """Both as candidates; None if this machine cannot build and time what the records speak of."""
    if record.device != device.key():
        return None
    try:
        if compiler(record.backend).why_unavailable(device) is not None:
            return None
        spec = spec_of_key(record.spec)
        if operator_digest(spec.problem, record.backend) != record.template_digest:
            return None
        schedules = [from_settings(record.backend, dict(each.schedule)) for each in (record, own)]
    except TrellisError:
        return None  # Of another version: nothing here can tell how fast it is.
    if any(why_illegal(spec, schedule, device) for schedule in schedules):
        return None
    candidates = [Candidate(spec, device, record.backend, schedule.settings()) for schedule in schedules]
    return Finals(tuple(candidates), SECONDS, ROUNDS)


def _newer_toolchain(record: Record, own: Record) -> tuple[bool, str]:
    shared = sorted(record.toolchain.keys() & own.toolchain.keys())
    newer = [name for name in shared if _version(record.toolchain[name]) > _version(own.toolchain[name])]
    older = [name for name in shared if _version(record.toolchain[name]) < _version(own.toolchain[name])]
    if bool(newer) == bool(older):
        return record.recency() > own.recency(), "not measurable here, neither toolchain newer: the newer record stays"
    changed = ", ".join(f"{name} {record.toolchain[name]} against {own.toolchain[name]}" for name in newer or older)
    return bool(newer), f"not measurable here: the newer toolchain stays ({changed})"


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")
