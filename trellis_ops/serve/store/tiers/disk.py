"""States as files of a folder, which processes of one machine may share."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from codegen.errors import FileWriteError
from trellis_ops.errors import StoreTierError
from trellis_ops.files import regular_file
from trellis_ops.serve.store.entry import Entry, Owner
from trellis_ops.serve.store.tiers.retention import Retention

_NAME = re.compile(r"(?P<tokens>\d+)-(?P<key>[0-9a-f]{64})\.state")
_LABEL = re.compile(r"[0-9a-f]{32}")
_PINNED = ".pinned"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCANS_PER_BOUND = 32
"""How often the folder is read while `max_bytes` are written: others write there too."""

_UNFINISHED_SECONDS = 600
"""After which the file of a writer that has not finished is that of one that was killed."""


class Disk:
    """A tier in a folder: `<label>/<scope>/<tokens>-<key>.state`, each file whole or not there.

    The folder is made with mode 0700 if it is not there: a state tells about the text it has read. It is not encrypted.

    Args:
        folder: where the files are.
        max_bytes: of all files; as many processes as share the folder may each pass it by 1/32 for a while.
        quota_bytes: of the files of one tenant under one model; None for no other limit than `max_bytes`.

    Raises:
        SizeError: a limit below 1. FileWriteError: the folder is not there and cannot be made, or is no folder.
    """

    name = "disk"
    private = False

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int, quota_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.retention = Retention(max_bytes, quota_bytes)
        self._lock = threading.Lock()
        self._unseen = 0
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FileWriteError(path=self.folder, reason=error.strerror) from error
        self._scan()

    def longest(self, owner: Owner, keys: Sequence[str], segment: int) -> list[Entry]:
        """Those of `keys` that are stored, the last first.

        Raises:
            StoreTierError: the folder cannot be read, or states of this owner were here and all are gone.
        """
        try:
            names = set(os.listdir(self._folder_of(owner)))
        except FileNotFoundError:
            names = set()
        except OSError as error:
            raise self._fault("unreadable", error) from error
        if not names and self.retention.bytes_of(owner):
            with self._lock:
                self._scan()
            raise StoreTierError(tier=self.name, kind="emptied", problem=f"the files of {self.folder} are gone")
        entries = (Entry(owner, key, (index + 1) * segment) for index, key in enumerate(keys))
        return [entry for entry in entries if _name(entry) in names][::-1]

    def load(self, entry: Entry) -> bytes | None:
        """What `save` was given, or None if it is gone.

        Raises:
            StoreTierError: the file cannot be read.
        """
        path = self._path(entry)
        try:
            sealed = regular_file.read_bytes(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault("unreadable", error) from error
        # Other processes see by the time of the file that it is used; where it cannot be set, they do not.
        with contextlib.suppress(OSError):
            os.utime(path)
        with self._lock:
            if entry.key in self.retention:
                self.retention.use(entry.key)
        return sealed

    def save(self, entry: Entry, sealed: bytes) -> bool:
        """Keep a state; False if it finds no room beside pinned ones.

        Raises:
            StoreTierError: the disk is full, or the folder cannot be written.
        """
        with self._lock:
            self._unseen += len(sealed)
            if self._unseen > self.retention.max_bytes // _SCANS_PER_BOUND:
                self._scan()
            going = self.retention.add(entry, len(sealed))
            if going is None:
                return False
            self._remove(going)
        # Without the lock: what is loaded meanwhile need not wait for the disk.
        path = self._path(entry)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            regular_file.write(path, sealed)
        except OSError as error:
            with self._lock:
                self.retention.remove(entry.key)
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise self._fault("full" if cause.errno in _FULL else "unwritable", error) from error
        return True

    def drop(self, entry: Entry) -> None:
        """Keep a state no longer."""
        with self._lock:
            self.retention.remove(entry.key)
            self._remove([entry])

    def labels(self) -> set[str]:
        """The labels that have a folder here.

        Raises:
            StoreTierError: the folder cannot be read.
        """
        try:
            return {name for name in os.listdir(self.folder) if _LABEL.fullmatch(name)}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise self._fault("unreadable", error) from error

    def _scan(self) -> None:
        """Count what is in the folder, the oldest first, and remove what is beyond the bounds or was never finished."""
        self._unseen = 0
        found: list[tuple[float, int, Entry]] = []
        for path in self.folder.glob("*/*/*"):
            entry = self._entry(path)
            # Another process may remove any of them meanwhile.
            with contextlib.suppress(OSError):
                status = path.stat()
                if entry is not None:
                    found.append((status.st_mtime, status.st_size, entry))
                elif path.name.endswith(".unfinished") and status.st_mtime < time.time() - _UNFINISHED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
        self.retention.keep_only([entry.key for _, _, entry in found])
        for _, size, entry in sorted(found, key=lambda each: each[0]):
            if entry.key not in self.retention:
                going = self.retention.add(entry, size)
                self._remove([entry] if going is None else going)

    def _remove(self, entries: Sequence[Entry]) -> None:
        for each in entries:
            # One that cannot be removed is counted again by the next scan.
            with contextlib.suppress(OSError):
                self._path(each).unlink()

    def _folder_of(self, owner: Owner) -> Path:
        return self.folder / owner.label / (owner.scope + (_PINNED if owner.pinned else ""))

    def _path(self, entry: Entry) -> Path:
        return self._folder_of(entry.owner) / _name(entry)

    def _entry(self, path: Path) -> Entry | None:
        """What the file at `path` names, or None if no state has such a name."""
        found = _NAME.fullmatch(path.name)
        if found is None:
            return None
        scope = path.parent.name
        owner = Owner(path.parent.parent.name, scope.removesuffix(_PINNED), scope.endswith(_PINNED))
        return Entry(owner, found["key"], int(found["tokens"]))

    def _fault(self, kind: str, error: OSError) -> StoreTierError:
        return StoreTierError(tier=self.name, kind=kind, problem=str(error))


def _name(entry: Entry) -> str:
    return f"{entry.tokens}-{entry.key}.state"
