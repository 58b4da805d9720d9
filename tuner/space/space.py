"""What may be tried for a spec: every legal schedule, and the same as Optuna distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import CategoricalDistribution

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.schedules.registry import from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tuner.space.legal import Settings, legal_schedules


@dataclass(frozen=True)
class Space:
    """The legal schedules of one spec, backend and device; a few hundred at most.

    Attributes:
        schedules: all of them, by key, the default first.
        distributions: for each field, the values that some legal schedule has.
    """

    schedules: dict[str, Schedule]
    distributions: dict[str, CategoricalDistribution]

    @property
    def default(self) -> Schedule:
        """The schedule to beat."""
        return next(iter(self.schedules.values()))

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
    """The space to search for `spec`.

    Optuna's distributions span a box, and not all of a box is legal: `tuner.space.sampler` proposes only the points of
    `schedules`.
    """
    legal = legal_schedules(spec, backend, device)
    distributions = {
        name: CategoricalDistribution(tuple(dict.fromkeys(schedule.settings()[name] for schedule in legal)))
        for name in legal[0].settings()
    }
    return Space({schedule.key(): schedule for schedule in legal}, distributions)
