"""Lookup, commit, merge: a user layer, which this machine's tuner writes, over the shipped one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from tuning_db.device_file import DeviceFile
from tuning_db.errors import DatabaseWriteError, RecordError, TuningDatabaseError
from tuning_db.failures import Failures
from tuning_db.layer import Layer, LayerName, bucket_rank, winners
from tuning_db.records.field_rules import check_device, is_device_key
from tuning_db.records.recommendation import Recommendation
from tuning_db.records.record import Identity, Outcome, Record
from tuning_db.warning import warn_once

SHIPPED = Path(__file__).parent / "winners"
"""The folder of the winners that come with the package."""


class Match(msgspec.Struct, frozen=True):
    """A record that answers a lookup.

    Attributes:
        record: the winner.
        layer: the layer it comes from; the fallback folder counts as the user's.
        path: the file it was read from.
        how: "exact" if it was measured on the spec asked for, "bucket" if on another spec of the same bucket.
    """

    record: Record
    layer: LayerName
    path: Path
    how: Literal["exact", "bucket"]


class NearMiss(msgspec.Struct, frozen=True):
    """A record that does not answer a lookup, and the fields that keep it from doing so.

    Attributes:
        differs: names among "device", "template_digest" and "outcome".
    """

    record: Record
    layer: LayerName
    path: Path
    differs: tuple[str, ...]


class Store:
    """What is known about kernels: `user` over `shipped`, each a folder with one JSON file per device.

    Reading never raises: a file that is missing, damaged or hostile is a miss with one `TuningDatabaseWarning` per
    file and process. Files that another process changes are noticed at the next call. Writing is atomic and safe
    under many processes.

    Args:
        user: folder of this machine's records, made at the first commit; None for a store that is only read.
        shipped: folder of the records that come with the package.
        fallback: where records go, with a warning, while `user` cannot be written. It is read as a part of the user
            layer: of two records of one identity the newer counts, until `user` can be written again and takes
            another. Files there that belong to another user are not read.

    Attributes:
        failures: what was tried here and failed.
    """

    def __init__(self, user: Path | None, shipped: Path = SHIPPED, fallback: Path | None = None) -> None:
        self.user = None if user is None else Layer("user", user)
        self.fallback = None if fallback is None else Layer("user", fallback, own=True)
        self.shipped = Layer("shipped", shipped)
        self.failures = Failures(user)
        self._own = tuple(layer for layer in (self.user, self.fallback) if layer is not None)
        self._layers = (*self._own, self.shipped)

    def lookup(
        self,
        *,
        spec: str,
        bucket: str,
        device: str,
        backend: str,
        template_digest: str,
        stand_ins: Iterable[str] = (),
    ) -> Match | None:
        """The winner for a spec: exact in the user layer, exact in the shipped one, then the bucket in the same order.

        Where there is none, that of the first device of `stand_ins` that has one. Warns once if neither layer has a
        file for the device and none stands in. Among several records of a bucket, see `Index.buckets`.
        """
        for each in (device, *stand_ins):
            if match := self._of_device(each, (spec, backend, template_digest), (bucket, backend, template_digest)):
                return match
        if is_device_key(device) and all(layer.index(device).missing for layer in self._layers):
            path = self._layers[0].path(device)
            warn_once(str(path), f"{path} does not exist, so nothing is tuned for this device; run `make tune` once")
        return None

    def _of_device(self, device: str, exact: tuple[str, str, str], near: tuple[str, str, str]) -> Match | None:
        groups = [[(layer, layer.index(device)) for layer in group] for group in (self._own, (self.shipped,))]
        for group in groups:
            if match := _best(((layer, index.exact.get(exact)) for layer, index in group), device, "exact"):
                return match
        for group in groups:
            if match := _best(((layer, index.buckets.get(near)) for layer, index in group), device, "bucket"):
                return match
        return None

    def near_misses(
        self, *, spec: str, device: str, backend: str, template_digest: str, bucket: str | None = None
    ) -> tuple[NearMiss, ...]:
        """Records of the same spec (or `bucket`, if given) and backend that a lookup passes over, nearest first."""
        found = []
        for layer in self._layers:
            for other in layer.devices():
                for record in layer.index(other).content.records:
                    if record.backend != backend or (record.spec != spec and record.bucket != bucket):
                        continue
                    differs = _differences(record, device, template_digest)
                    if differs:
                        found.append(NearMiss(record, layer.name, layer.path(other), differs))
        found.sort(key=lambda miss: miss.record.recency(), reverse=True)
        return tuple(sorted(found, key=lambda miss: len(miss.differs)))

    def records(self, device: str | None = None, layer: LayerName | None = None) -> tuple[Record, ...]:
        """The records of a device, or of all, sorted by identity; the user layer's hide shipped ones of the same."""
        known: dict[Identity, tuple[tuple[object, ...], Record]] = {}
        for each in [each for each in self._layers if layer in (None, each.name)]:
            for name in each.devices() if device is None else (device,):
                for record in each.index(name).content.records:
                    rank = (record.outcome is Outcome.ok, each.name == "user", *record.recency())
                    rival = known.get(record.identity())
                    if rival is None or rank > rival[0]:
                        known[record.identity()] = (rank, record)
        return tuple(known[identity][1] for identity in sorted(known))

    def devices(self) -> tuple[str, ...]:
        """The devices that either layer has a file for, sorted."""
        return tuple(sorted({device for layer in self._layers for device in layer.devices()}))

    def own_devices(self) -> tuple[str, ...]:
        """The devices that the user layer has a file for, sorted."""
        return tuple(sorted({device for layer in self._own for device in layer.devices()}))

    def recommendation(self, device: str) -> Recommendation | None:
        """The slot count and chunk size recommended for a device, the user layer's before the shipped one's."""
        for group in (self._own, (self.shipped,)):
            found = [layer.index(device).content.recommendation for layer in group]
            known = [each for each in found if each is not None]
            if known:
                return max(known, key=Recommendation.recency)
        return None

    def commit(self, record: Record) -> bool:
        """Put a record in the user layer in place of the one with the same identity; False if its outcome is not ok.

        Raises:
            DatabaseWriteError: neither the user folder nor the fallback can be written, or the store has none.
            DatabaseBusyError, DatabaseFullError: see those.
        """
        return self.put([record]) == 1

    def put(self, records: Iterable[Record]) -> int:
        """As `commit`, of many; of several with the same identity the newest. How many were ok. Raises as `commit`."""
        taken = winners(records)
        for device, group in _by_device(taken.values()):
            self._update(device, partial(_with, records=group), partial(_without, records=group))
        return len(taken)

    def merge(self, records: Iterable[Record]) -> int:
        """Take in the records that win over what the user layer holds, newest first; the number taken.

        Order and repetition do not matter: of each identity the greatest by `Record.recency` stays. Raises as `commit`.
        """
        taken = 0
        for device, offered in _by_device(winners(records).values()):
            before = self._update(device, lambda old, offered=offered: _with(old, _newer(old, offered)))  # type: ignore[misc]
            taken += len(_newer(before, offered))
        return taken

    def recommend(self, recommendation: Recommendation) -> None:
        """Put a recommendation in the user layer in place of the device's former one. Raises as `commit`."""
        self._update(
            recommendation.device,
            lambda old: replace(old, recommendation=recommendation),
            lambda old: replace(old, recommendation=None),
        )

    def ship(
        self,
        device: str,
        records: Iterable[Record],
        *,
        recommendation: Recommendation | None = None,
        folder: Path | None = None,
    ) -> Path:
        """Write `<device>.json` of the shipped layer, or of another folder, and return its path.

        Of each spec and backend the newest ok record is written, in place of all that were there for them, so that
        winners of older templates do not pile up. Specs that `records` does not name keep what they had; so does
        the recommendation if none is given.

        Raises:
            RecordError: a record or recommendation of another device.
            DatabaseWriteError, DatabaseBusyError, DatabaseFullError: see those.
        """
        check_device(device)
        newest: dict[tuple[str, str], Record] = {}
        for record in sorted(winners(records).values(), key=Record.recency):
            newest[record.spec, record.backend] = record
        offered: list[Record | Recommendation] = [*newest.values()]
        if recommendation is not None:
            offered.append(recommendation)
        for each in offered:
            if each.device != device:
                raise RecordError(field="device", value=each.device, expected=f"{device!r}, the device to ship")

        def shipped(old: DeviceFile) -> DeviceFile:
            others = (record for record in old.records if (record.spec, record.backend) not in newest)
            return DeviceFile((*others, *newest.values()), recommendation or old.recommendation)

        layer = self.shipped if folder is None else Layer("shipped", folder)
        layer.update(device, shipped)
        return layer.path(device)

    def _update(
        self,
        device: str,
        change: Callable[[DeviceFile], DeviceFile],
        supersede: Callable[[DeviceFile], DeviceFile] | None = None,
    ) -> DeviceFile:
        """Change what the user layer holds of a device, or the fallback while that cannot be written; what it held.

        Once the user layer is changed, `supersede` takes from the fallback what that replaces.
        """
        if self.user is None:
            raise DatabaseWriteError(folder="(no user folder)", reason="this store has none, and is only read")
        try:
            before = self.user.update(device, change)
            if supersede is not None:
                self._supersede(device, supersede)
            return before
        except DatabaseWriteError as error:
            if self.fallback is None:
                raise
            try:
                before = self.fallback.update(device, change)
            except DatabaseWriteError as second:
                raise error from second
            kept = f"what was found is kept in {self.fallback.folder}, which is read as well"
            warn_once(f"{self.user.folder} as a place to write", f"{error}; {kept}")
            return before

    def _supersede(self, device: str, change: Callable[[DeviceFile], DeviceFile]) -> None:
        fallback = self.fallback
        if fallback is None or change(held := fallback.index(device).content) == held:
            return
        try:
            fallback.update(device, change)
        except TuningDatabaseError as error:
            path = fallback.path(device)
            warn_once(f"{path} as superseded", f"{path} may hide what was just found: {error}; remove the file")


def _best(found: Iterable[tuple[Layer, Record | None]], device: str, how: Literal["exact", "bucket"]) -> Match | None:
    known = [(layer, record) for layer, record in found if record is not None]
    if not known:
        return None
    layer, record = max(known, key=lambda each: bucket_rank(each[1]))
    return Match(record, layer.name, layer.path(device), how)


def _by_device(records: Iterable[Record]) -> list[tuple[str, tuple[Record, ...]]]:
    ordered = sorted(records, key=lambda record: record.device)
    return [(device, tuple(group)) for device, group in itertools.groupby(ordered, key=lambda record: record.device)]


def _newer(old: DeviceFile, offered: tuple[Record, ...]) -> tuple[Record, ...]:
    held = winners(old.records)
    rivals = ((record, held.get(record.identity())) for record in offered)
    return tuple(record for record, rival in rivals if rival is None or record.recency() > rival.recency())


def _with(old: DeviceFile, records: tuple[Record, ...]) -> DeviceFile:
    gone = {record.identity() for record in records}
    return replace(old, records=(*(record for record in old.records if record.identity() not in gone), *records))


def _without(old: DeviceFile, records: tuple[Record, ...]) -> DeviceFile:
    gone = {record.identity() for record in records}
    return replace(old, records=tuple(record for record in old.records if record.identity() not in gone))


def _differences(record: Record, device: str, template_digest: str) -> tuple[str, ...]:
    differs = []
    if record.device != device:
        differs.append("device")
    if record.template_digest != template_digest:
        differs.append("template_digest")
    if record.outcome is not Outcome.ok:
        differs.append("outcome")
    return tuple(differs)
