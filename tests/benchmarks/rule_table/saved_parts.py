"""Measured parts in a file that only grows, one line of JSON each, so that a table may be stopped at any moment."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.rule_table.parts import Found
from trellis_ops.files import regular_file


@dataclass(frozen=True)
class Saved:
    """A part of a rule as it was measured.

    Attributes:
        rule, part: of what.
        setting: all that it depends on; see `tests.benchmarks.rule_table.parts.setting_of`.
        found: what was measured.
        when: date and time, UTC.
        load: of the machine, before.
    """

    rule: str
    part: str
    setting: str
    found: Found
    when: str
    load: str


def now() -> str:
    """Date and time, UTC, to the minute."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")


class SavedParts:
    """The file; the newest of a rule, part and setting counts.

    Raises:
        ValueError: a line that is no part; a last line without an end, of a run that was killed, is left out instead.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str, str], Saved] = {}
        whole, _, _ = (regular_file.read_bytes(path) if path.exists() else b"").rpartition(b"\n")
        self._length = len(whole) + 1 if whole else 0
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._know(Saved(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {path} is no measured part ({error}); move the file away"
                ) from error

    def find(self, rule: str, part: str, setting: str) -> Saved | None:
        """What is known."""
        return self._known.get((rule, part, setting))

    def add(self, saved: Saved) -> None:
        """Append it, on the disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(vars(saved)).encode() + b"\n"
        if self._path.exists():
            os.truncate(self._path, self._length)
        with regular_file.open_to_append(self._path) as file:
            regular_file.append(file, self._path, line, sync=True)
        self._length += len(line)
        self._know(saved)

    def _know(self, saved: Saved) -> None:
        self._known[saved.rule, saved.part, saved.setting] = saved
