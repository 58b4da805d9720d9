"""Every backend by name: the one place where a backend becomes known, and what is asked of one by its name."""

from __future__ import annotations

from dataclasses import MISSING, fields

from codegen.device import Device
from codegen.errors import ScheduleFieldError, TrellisError, UnknownBackendError
from codegen.schedules.schedule import BACKWARD_VARIANTS, VARIANTS, Schedule, Value
from codegen.schedules.triton import TritonSchedule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Spec

SCHEDULES: dict[str, type[Schedule]] = {}
"""The class of each backend's schedules, in the order in which backends are offered."""


def register(kind: type[Schedule]) -> None:
    """Make the backend of these schedules known: its name is then an implementation, and the tuner offers it.

    Args:
        kind: a frozen dataclass that answers every question of `Schedule`; what it calls `compiler` is imported when
            its first kernel is wanted. Worker processes of the tuner import it by its name.

    Raises:
        TrellisError: another class has that name.
    """
    known = SCHEDULES.setdefault(kind.backend, kind)
    if known is not kind:
        raise TrellisError(detail=f"the backend {kind.backend!r} has schedules of {known.__qualname__} already")


for _kind in (TvmSchedule, TritonSchedule):
    register(_kind)


def backends() -> tuple[str, ...]:
    """The names of all backends."""
    return tuple(SCHEDULES)


def kind_of(backend: str) -> type[Schedule]:
    """The class of a backend's schedules.

    Raises:
        UnknownBackendError: no such backend.
    """
    if backend not in SCHEDULES:
        raise UnknownBackendError(name=backend, known=", ".join(SCHEDULES))
    return SCHEDULES[backend]


def first_choice(device: Device) -> str:
    """The backend that serves a call on `device` which names none."""
    return next(name for name, kind in SCHEDULES.items() if device.kind in kind.first_for)


def variants_of(operator: str, backend: str, direction: str = "forward") -> tuple[str, ...]:
    """The variants of `operator` in one of `codegen.spec.DIRECTIONS` that `backend` has kernels for.

    Raises:
        UnknownBackendError: no such backend.
    """
    return kind_of(backend).variants_of(operator, direction)


def default(backend: str, spec: Spec, device: Device) -> Schedule:
    """The schedule to use where nothing better is known; always legal where any is.

    Raises:
        UnknownBackendError: no such backend.
    """
    return kind_of(backend).default(spec, device)


def unchosen(backend: str, spec: Spec, device: Device) -> tuple[Schedule, ...]:
    """What the default would be of each variant of that backend that none is of; some may be illegal for `spec`.

    Raises:
        UnknownBackendError: no such backend.
    """
    return kind_of(backend).unchosen(spec, device)


def from_settings(backend: str, settings: dict[str, object]) -> Schedule:
    """The schedule that stored plain data describes; a field that came later than the data has its default.

    Raises:
        UnknownBackendError: no such backend.
        ScheduleFieldError: a field that is unknown, missing and without a default, of the wrong type, or outside its
            choices.
    """
    kind = kind_of(backend)
    groups = (*VARIANTS.values(), *BACKWARD_VARIANTS.values())
    variants = tuple(dict.fromkeys(variant for group in groups for variant in group))
    allowed: dict[str, tuple[Value, ...]] = {"variant": variants, **kind.choices}
    known = {field.name for field in fields(kind)}
    later = {field.name for field in fields(kind) if field.default is not MISSING}
    for name in sorted((known ^ settings.keys()) - (later - settings.keys())):
        reason = "missing" if name in allowed else "unknown field"
        raise ScheduleFieldError(field=name, value=settings.get(name), backend=backend, reason=reason)
    for name, value in settings.items():
        # Of one type too: 16.0 == 16 and True == 1, but a template writes them otherwise.
        if not any(type(value) is type(each) and value == each for each in allowed[name]):
            reason = f"expected one of {allowed[name]}"
            raise ScheduleFieldError(field=name, value=value, backend=backend, reason=reason)
    return kind(**settings)  # type: ignore[arg-type]


def schedule_of_key(key: str) -> Schedule:
    """The schedule whose `key()` this is, as `explain` prints it; a field that is left out has its default.

    Raises:
        UnknownBackendError, ScheduleFieldError: as `from_settings`.

    Example:
        >>> schedule_of_key("tvm:variant=recurrent,tile_tokens=16,vector_width=16,accumulators=8,threads=1").variant
        'recurrent'
    """
    backend, _, assignments = key.partition(":")
    settings: dict[str, object] = {}
    for assignment in assignments.split(","):
        name, equals, value = assignment.partition("=")
        if not equals or name in settings:
            reason = "it is given twice" if equals else "expected backend:name=value,name=value"
            raise ScheduleFieldError(field=name, value=value, backend=backend, reason=reason)
        settings[name] = int(value) if value.isdecimal() else value
    return from_settings(backend, settings)
