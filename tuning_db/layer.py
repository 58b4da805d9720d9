"""One folder of device files, read through a cache that notices what other processes change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tuning_db.device_file import DeviceFile, Reading, encode, read
from tuning_db.errors import FOLDER_VARIABLE
from tuning_db.records.field_rules import is_device_key, is_future
from tuning_db.records.record import Identity, Outcome, Record
from tuning_db.warning import warn_once
from tuning_db.writing import copy_aside, locked, move_aside, write_temporary

LayerName = Literal["user", "shipped"]
SUFFIX = ".json"

# A file changed within its clock's resolution of being read may change again under the same time stamp.
_SETTLED_NS = 1_000_000_000

_ADVICE = {
    "user": f"correct or remove the file and run `make tune`, or name another folder in {FOLDER_VARIABLE}",
    "shipped": "restore the file from version control or install trellis-ops again",
}


class _Stamp(NamedTuple):
    modified_ns: int
    size: int
    inode: int
    volume: int


class Index(msgspec.Struct, frozen=True):
    """The content of one device file, ready to be asked. Only records whose outcome is ok are in the two tables.

    Attributes:
        content: everything that could be read.
        missing: there is no such file.
        exact: (spec, backend, template digest) to its record.
        buckets: (bucket, backend, template digest) to the record that serves the bucket: the one measured on the
            bucket's own spec if there is one, else the newest, by `Record.recency`.
    """

    content: DeviceFile = msgspec.field(default_factory=DeviceFile)
    missing: bool = False
    exact: dict[tuple[str, str, str], Record] = msgspec.field(default_factory=dict)
    buckets: dict[tuple[str, str, str], Record] = msgspec.field(default_factory=dict)


class Layer:
    """A folder of `<device>.json` files. Reading never raises: what cannot be read is a miss with one warning.

    Args:
        name: whose it is.
        folder: made at the first write.
        own: whether files of other users are refused. They are where nobody named the folder, as in a cache that
            several share; a folder that was named may be a colleague's.
    """

    def __init__(self, name: LayerName, folder: Path, *, own: bool = False) -> None:
        self.name = name
        self.folder = folder
        self._own = own
        self._cache: dict[str, tuple[_Stamp, int, Index]] = {}

    def path(self, device: str) -> Path:
        """The file of a device; `device` must be a valid key."""
        return self.folder / f"{device}{SUFFIX}"

    def index(self, device: str) -> Index:
        """What this layer knows of a device: one `os.stat` while the file stays as it was."""
        if not is_device_key(device):
            text = ascii(device)[:120]
            warn_once(f"device {text}", f"{text} is no device key, so no tuning record can be for it")
            return Index(missing=True)
        path = self.path(device)
        # The stamp is taken before the bytes: a change in between shows as a difference at the next look.
        stamp, now = _stamp(path), time.time_ns()
        cached = self._cache.get(device)
        if cached is not None and cached[0] == stamp and cached[0].modified_ns + _SETTLED_NS < cached[1]:
            return cached[2]
        reading = read(path, device, own=self._own)
        self._warn(path, reading)
        index = _indexed(reading)
        if stamp is not None:
            self._cache[device] = (stamp, now, index)
        return index

    def devices(self) -> tuple[str, ...]:
        """The devices that have a file here, sorted."""
        try:
            names = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)]
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            warn_once(str(self.folder), f"cannot list {self.folder}: {error}; {_ADVICE[self.name]}")
            return ()
        devices = []
        for name in sorted(name for name in names if not name.startswith(".")):
            if is_device_key(name.removesuffix(SUFFIX)):
                devices.append(name.removesuffix(SUFFIX))
            else:
                path = self.folder / name
                warn_once(str(path), f"ignoring {path}: its name is no device key; rename it or move it away")
        return tuple(devices)

    def update(self, device: str, change: Callable[[DeviceFile], DeviceFile]) -> DeviceFile:
        """Replace a device's file by what `change` makes of it, under the folder's lock; what it held before.

        What could not be read stays beside it as `<name>.json.unreadable-<n>`, and a warning says so.

        Raises:
            DatabaseWriteError, DatabaseBusyError, DatabaseFullError, RecordError: nothing was replaced.
        """
        path = self.path(device)
        with locked(self.folder, own=self._own, tidy=self.name == "shipped"):
            reading = read(path, device, own=self._own)
            content = change(reading.content)
            if content == reading.content and not reading.secrets:
                return reading.content
            kept = _replace(path, encode(path, device, content), reading)
        self._cache.pop(device, None)
        if reading.secrets:
            held = f"{path} was written anew without the passwords that {reading.secrets} of its entries held"
            warn_once(f"{path} passwords", f"{held}; change them, since older copies of the file have them")
        if kept is not None:
            problem = reading.fault or f"entries were left out ({reading.left_out[0]})"
            warn_once(str(kept), f"{path} was written anew: {problem}; what it held before is kept as {kept}")
        return reading.content

    def _warn(self, path: Path, reading: Reading) -> None:
        if reading.fault:
            warn_once(str(path), f"ignoring {path}: {reading.fault}; {_ADVICE[self.name]}")
        elif reading.left_out:
            count = f"{len(reading.left_out)} entries of {path}" if len(reading.left_out) > 1 else f"an entry of {path}"
            warn_once(str(path), f"leaving out {count}, first {reading.left_out[0]}; {_ADVICE[self.name]}")
        elif future := [record for record in reading.content.records if is_future(record.created)]:
            dated = f"{len(future)} records in {path} are dated in the future, first {future[0].created}"
            warn_once(f"{path} dates", f"{dated}; they count as older than all others: a clock was wrong")


def winners(records: Iterable[Record]) -> dict[Identity, Record]:
    """The newest ok record of each identity, by `Record.recency`; the order of `records` does not matter."""
    best: dict[Identity, Record] = {}
    for record in records:
        if record.outcome is Outcome.ok:
            rival = best.get(record.identity())
            best[record.identity()] = record if rival is None else max(rival, record, key=Record.recency)
    return best


def _replace(path: Path, data: bytes, reading: Reading) -> Path | None:
    """Make `data` the content of `path`; where the former content was kept, if `reading` could not use all of it."""
    temporary, kept = write_temporary(path, data), None
    try:
        if reading.fault:
            kept = move_aside(path)
        elif reading.left_out:
            kept = copy_aside(path, reading.data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return kept


def _indexed(reading: Reading) -> Index:
    index = Index(reading.content, reading.missing)
    for record in winners(reading.content.records).values():
        index.exact[record.spec, record.backend, record.template_digest] = record
        place = (record.bucket, record.backend, record.template_digest)
        rival = index.buckets.get(place)
        index.buckets[place] = record if rival is None else max(rival, record, key=bucket_rank)
    return index


def bucket_rank(record: Record) -> tuple[object, ...]:
    """Greater for the record that serves its bucket better, or its spec."""
    return (record.spec == record.bucket, *record.recency())


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None  # missing or out of reach: `read` finds out which, and says so
    return _Stamp(status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
