"""A schedule that calls of this thread run on because their caller says so, in the place of winner and default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from codegen.errors import UnknownKernelError
from codegen.schedules.registry import schedule_of_key
from codegen.schedules.schedule import Schedule
from codegen.spec import FAMILY_OPERATORS, OPERATORS, Problem


@dataclass(frozen=True)
class Forced:
    """A schedule, and the operator whose calls run on it; None for every call."""

    schedule: Schedule
    operator: str | None


_FORCED: ContextVar[Forced | None] = ContextVar("trellis_ops_forced_schedule", default=None)

current = _FORCED.get
"""What is forced in this thread, or None; every call asks."""


def forced_for(problem: Problem) -> Schedule | None:
    """The schedule that calls of `problem` are to run on; None where the best that is known serves them."""
    found = current()
    if found is None or found.operator not in (None, problem.operator):
        return None
    return found.schedule


@contextlib.contextmanager
def with_schedule(schedule: str | Schedule, operator: str | None = None) -> Iterator[Schedule]:
    """Within the block, calls of this thread run on `schedule` and on nothing else; `explain` says so.

    A schedule changes a result only by rounding. It never gives way: a call that it cannot compute raises. One with
    more threads than torch may use is cut to those. The block of another thread, or an inner one, does not add up with
    it. The reverse pass of a call takes the schedule where it runs within the block too, on a CPU; elsewhere it takes
    the best that is known. `torch.compile` traces calls within the block, and cannot trace the block itself.

    Args:
        schedule: a `Schedule`, or its key, as `explain` prints it and `make report` lists it.
        operator: whose calls run on it, a name of `codegen.spec.OPERATORS` or `FAMILY_OPERATORS`; None for every call.
            A model calls several operators, and a schedule rarely fits all of them.

    Yields:
        The schedule.

    Raises:
        UnknownBackendError, ScheduleFieldError: a text that is the key of no schedule.
        UnknownKernelError: an operator that there is not.
        TypeError: something else than a schedule or a text.
        In the block, by a call: IllegalScheduleError, if the schedule cannot compute it on its device; and
            ImplementationError, if its backend cannot, or if the call names another implementation.

    Example:
        >>> with trellis_ops.with_schedule("tvm:variant=fused,tile_tokens=16,threads=1", "trellis_attention"):
        ...     y, _ = trellis_attention(q, k, v, target, log_decay, step_size)  # doctest: +SKIP
    """
    if isinstance(schedule, str):
        schedule = schedule_of_key(schedule)
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is {schedule!r}, but must be a Schedule or its key as a str")
    known = (*OPERATORS, *FAMILY_OPERATORS)
    if operator is not None and operator not in known:
        raise UnknownKernelError(name=operator, known=", ".join(known))
    before = _FORCED.set(Forced(schedule, operator))
    try:
        yield schedule
    finally:
        _FORCED.reset(before)
