"""Every legal schedule of a spec, in one order everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from codegen.device import Device
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, default, variants_of
from codegen.schedules.schedule import Schedule, Value
from codegen.spec import Spec
from tuner.errors import NoScheduleError

Settings = dict[str, Value]


def changes(schedule: Schedule, default: Schedule) -> int:
    """In how many settings `schedule` differs from `default`; the simpler of two has fewer."""
    usual = default.settings()
    return sum(usual[name] != value for name, value in schedule.settings().items())


def legal_schedules(spec: Spec, backend: str, device: Device) -> tuple[Schedule, ...]:
    """Every schedule that `why_illegal` has nothing against, the default first.

    Raises:
        NoScheduleError: there is none.
    """
    fields: dict[str, tuple[Value, ...]] = {
        "variant": variants_of(spec.problem.operator, backend, spec.problem.direction),
        **SCHEDULES[backend].choices,
    }
    # Not from_settings, which would look every choice up among the choices.
    kind: Callable[..., Schedule] = SCHEDULES[backend]
    every = (kind(**dict(zip(fields, values, strict=True))) for values in itertools.product(*fields.values()))
    legal = [schedule for schedule in every if why_illegal(spec, schedule, device) is None]
    first = default(backend, spec, device)
    if first not in legal:
        reason = why_illegal(spec, first, device) or f"the default {first.key()} is not among the choices"
        raise NoScheduleError(backend=backend, spec=spec.key(), device=device.key(), reason=reason)
    return tuple(sorted(legal, key=lambda schedule: schedule != first))


def first_of_variants(legal: Sequence[Schedule]) -> list[Schedule]:
    """The default, and of each other variant what differs least from it with the smallest tile, soonest compiled.

    Args:
        legal: what `legal_schedules` gives.
    """
    first, *others = legal
    nearest: dict[str, Schedule] = {first.variant: first}
    for each in sorted(others, key=lambda each: (each.tile, changes(each, first))):
        nearest.setdefault(each.variant, each)
    return list(nearest.values())
