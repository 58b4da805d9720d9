"""Configurations that are known to be miscompiled, from the readable list `known_bad.json` beside this file.

A check finds wrong values only where a candidate shows them; what others have found, with a public issue, is never
compiled here, by the search or by a call.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from codegen.device import Device

LIST = Path(__file__).with_name("known_bad.json")

Settings = dict[str, int | str]


@dataclass(frozen=True)
class KnownBad:
    """One entry of the list.

    Attributes:
        backend: whose schedules it is about.
        archs: on which devices, as compilers call them.
        settings: the values of each field that are bad together; fields that it does not name may have any.
        reason: what goes wrong, in one sentence.
        issues: where that was reported and found.
    """

    backend: str
    archs: tuple[str, ...]
    settings: dict[str, tuple[int | str, ...]]
    reason: str
    issues: tuple[str, ...]

    def covers(self, backend: str, settings: Settings, device: Device) -> bool:
        """Whether a schedule with these settings is known bad on `device`."""
        if backend != self.backend or device.arch not in self.archs:
            return False
        return all(settings.get(name) in values for name, values in self.settings.items())


def why_known_bad(backend: str, settings: Settings, device: Device) -> str | None:
    """Why the list denies a schedule on `device`, with the first issue; None if it does not."""
    for entry in known_bad():
        if entry.covers(backend, settings, device):
            return f"{entry.reason} ({entry.issues[0]})"
    return None


@functools.cache
def known_bad() -> tuple[KnownBad, ...]:
    """The list."""
    return tuple(
        KnownBad(
            entry["backend"],
            tuple(entry["archs"]),
            {name: tuple(values) for name, values in entry["settings"].items()},
            entry["reason"],
            tuple(entry["issues"]),
        )
        for entry in json.loads(LIST.read_text())
    )
