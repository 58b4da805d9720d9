"""What may be tried for a spec: every legal schedule, and the same as Optuna distributions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from optuna.distributions import CategoricalDistribution

from codegen.device import Device
from codegen.legality import why_illegal
from codegen.schedule import SCHEDULES, Schedule, Value, default, from_settings, variants_of
from codegen.spec import Spec
from tuner.errors import NoScheduleError

Settings = dict[str, Value]


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


def legal_schedules(spec: Spec, backend: str, device: Device) -> tuple[Schedule, ...]:
    """Every schedule that `why_illegal` has nothing against, the default first.

    Raises:
        NoScheduleError: there is none.
    """
    fields: dict[str, tuple[Value, ...]] = {
        "variant": variants_of(spec.problem.operator, backend, spec.problem.direction),
        **SCHEDULES[backend].choices,
    }
    every = (
        from_settings(backend, dict(zip(fields, values, strict=True))) for values in itertools.product(*fields.values())
    )
    legal = [schedule for schedule in every if why_illegal(spec, schedule, device) is None]
    first = default(backend, spec, device)
    if first not in legal:
        reason = why_illegal(spec, first, device) or f"the default {first.key()} is not among the choices"
        raise NoScheduleError(backend=backend, spec=spec.key(), device=device.key(), reason=reason)
    return tuple(sorted(legal, key=lambda schedule: schedule != first))


def space_of(spec: Spec, backend: str, device: Device) -> Space:
    """The space to search for `spec`.

    Optuna's distributions span a box, and not all of a box is legal: `tuner.sampler` proposes only the points of
    `schedules`.
    """
    legal = legal_schedules(spec, backend, device)
    distributions = {
        name: CategoricalDistribution(tuple(dict.fromkeys(schedule.settings()[name] for schedule in legal)))
        for name in legal[0].settings()
    }
    return Space({schedule.key(): schedule for schedule in legal}, distributions)
