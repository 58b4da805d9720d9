"""What is known to fail: a negative cache beside the winners, keyed as they are, and by toolchain and schedule too.

A failure is a record like any other, in `failures/<device>.json` under the user's folder, so that it is read, checked
and written by the same rules. Losing one costs a measurement, never a result; the oldest go when there are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from tuning_db.device_file import DeviceFile
from tuning_db.layer import Layer
from tuning_db.records.record import Outcome, Record

MOST = 5_000
"""How many failures of one device are kept."""

LASTING = frozenset(Outcome) - {Outcome.ok, Outcome.illegal, Outcome.killed}
"""The outcomes that say something about a candidate that no rule knows, and that are worth remembering."""

Settings = Mapping[str, int | float | str | bool]


class Failures:
    """The failures of a folder; without one nothing is known, and nothing remembered."""

    def __init__(self, folder: Path | None) -> None:
        self._layer = None if folder is None else Layer("user", folder / "failures")

    def known(
        self, *, spec: str, device: str, backend: str, template_digest: str, toolchain: Mapping[str, str]
    ) -> dict[tuple[tuple[str, object], ...], Record]:
        """The failed candidates for a spec, by `settings_key`, that were compiled by this very toolchain."""
        if self._layer is None:
            return {}
        identity = (spec, device, backend, template_digest)
        records = self._layer.index(device).content.records
        return {
            settings_key(record.schedule): record
            for record in records
            if record.identity() == identity and record.toolchain == toolchain and record.outcome in LASTING
        }

    def remember(self, failure: Record) -> bool:
        """Keep `failure` in place of an earlier one of the same candidate; False if its outcome is none to keep.

        Raises:
            DatabaseWriteError, DatabaseBusyError, DatabaseFullError: see those.
        """
        if self._layer is None or failure.outcome not in LASTING:
            return False

        def changed(old: DeviceFile) -> DeviceFile:
            others = [record for record in old.records if _candidate(record) != _candidate(failure)]
            newest = sorted([*others, failure], key=Record.recency)[-MOST:]
            return replace(old, records=tuple(newest))

        self._layer.update(failure.device, changed)
        return True


def settings_key(schedule: Settings) -> tuple[tuple[str, object], ...]:
    """The same for the same settings in any order."""
    return tuple(sorted(schedule.items()))


def _candidate(record: Record) -> tuple[object, ...]:
    return (record.identity(), settings_key(record.schedule), tuple(sorted(record.toolchain.items())))
