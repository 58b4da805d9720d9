"""What a GPU run has found, one line of JSON each, so that it goes on where it was stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from codegen.errors import TrellisError
from tuner.gpu_run.findings import is_whole
from tuning_db import utc_now
from tuning_db.regular_file import UNREADABLE, read_regular

MAX_BYTES = 64 * 2**20


class LedgerError(TrellisError, OSError):
    """A file of findings that cannot be read."""

    message = "{path} cannot be read as findings: {problem}; move it away, or name another place with --folder"


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finding.

    Attributes:
        stage: "correct", "sanitizer", "tuned", "measured", "precision", "tvm" or "timed".
        name: of what was examined, unique in its stage.
        state: what it depends on besides: digests of templates and versions. Another state is another finding.
        ok: whether it is as it should be.
        text: the same in words.
        values: numbers by name.
        created: when, in UTC.
    """

    stage: str
    name: str
    state: str
    ok: bool
    text: str = ""
    values: dict[str, Any] = {}
    created: str = msgspec.field(default_factory=utc_now)


class Ledger:
    """The entries of the file at `path`; a line that a killed run left half written, or that is none, is passed over.

    Args:
        path: made with its folder at the first entry.

    Raises:
        LedgerError: what is there is no file that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[tuple[str, str, str], Entry] = {}
        for line in _lines(path):
            try:
                entry = msgspec.json.decode(line, type=Entry)
            except UNREADABLE:
                continue  # Its work is done again.
            if is_whole(entry.stage, entry.ok, entry.values):
                self._entries[entry.stage, entry.name, entry.state] = entry

    def find(self, stage: str, name: str, state: str) -> Entry | None:
        """The finding, if it was made with this state."""
        return self._entries.get((stage, name, state))

    def add(self, entry: Entry) -> Entry:
        """Keep `entry`: it is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        started = self.path.exists() and self.path.stat().st_size > 0
        with self.path.open("ab+") as file:
            if started:
                file.seek(-1, os.SEEK_END)
                # What follows a half line must not become a part of it.
                whole = file.read(1) == b"\n"
                file.write(b"" if whole else b"\n")
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[entry.stage, entry.name, entry.state] = entry
        return entry

    def of(self, stage: str) -> list[Entry]:
        """The entries of a stage, the last of each name."""
        last = {entry.name: entry for entry in self._entries.values() if entry.stage == stage}
        return list(last.values())


def _lines(path: Path) -> list[bytes]:
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LedgerError(path=path, problem=error.strerror or error) from error
    if len(data) > MAX_BYTES:
        raise LedgerError(path=path, problem=f"it is larger than {MAX_BYTES} bytes")
    return data.splitlines()
