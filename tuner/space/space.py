"""What may be tried for a spec: every legal schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.schedules.registry import from_settings
from codegen.schedules.schedule import Schedule, Value
from codegen.spec import Spec
from tuner.space.legal import Settings, legal_schedules


@dataclass(frozen=True)
class Space:
    """The legal schedules of one spec, backend and device; a few hundred at most.

    Attributes:
        schedules: all of them, by key, the default first.
    """

    schedules: dict[str, Schedule]

    @property
    def default(self) -> Schedule:
        """The schedule to beat."""
        return next(iter(self.schedules.values()))

    def choices(self) -> dict[str, tuple[Value, ...]]:
        """For each field, the values that some legal schedule has."""
        every = [schedule.settings() for schedule in self.schedules.values()]
        return {name: tuple(dict.fromkeys(settings[name] for settings in every)) for name in every[0]}

    def at(self, settings: Settings) -> Schedule:
        """The legal schedule with these settings.

        Raises:
            KeyError: there is none.
        """
        return self.schedules[from_settings(self.default.backend, dict(settings)).key()]

    def has(self, settings: Mapping[str, object]) -> bool:
        """Whether these are the settings of a legal schedule, types included: 16.0 is no 16."""
        try:
            return from_settings(self.default.backend, dict(settings)).key() in self.schedules
        except TrellisError:
            return False


def space_of(spec: Spec, backend: str, device: Device) -> Space:
    """The space to search for `spec`. Raises NoScheduleError if it is empty."""
    return Space({schedule.key(): schedule for schedule in legal_schedules(spec, backend, device)})
