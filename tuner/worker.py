"""One candidate, from settings to a result: compiled, checked, and only then timed.

This is the one place where what goes wrong with a candidate is caught. What goes in and what comes out is plain data,
so that the work can be done in another process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from codegen.device import Device
from codegen.errors import IllegalScheduleError, ScheduleFieldError, TrellisError
from codegen.program import Program, build
from codegen.schedule import from_settings
from codegen.spec import Spec
from tuner.check import check
from tuner.inputs import timing_inputs
from tuner.launch import bind
from tuner.measure import Timed, Timing, measure
from tuner.space import Settings
from tuning_db import Outcome, shortened

NOISY = 0.25
"""A candidate whose spread exceeds this is timed once more, for longer."""

_ROUNDS = 30
_REASON = 500


@dataclass(frozen=True)
class Candidate:
    """What to try.

    Attributes:
        spec, device: what for.
        backend, settings: the schedule, as a tuning record stores it.
        seconds: about how long to time it.
    """

    spec: Spec
    device: Device
    backend: str
    settings: Settings
    seconds: float = 0.2


@dataclass(frozen=True)
class Result:
    """What became of a candidate.

    Attributes:
        outcome: only `ok` can win.
        reason: why not ok.
        seconds: median of one call; None unless it was right.
        spread: relative spread of `seconds`.
        errors: relative error of each output, as far as they were compared.
        compile_seconds: from template to kernel.
    """

    outcome: Outcome
    reason: str = ""
    seconds: float | None = None
    spread: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    compile_seconds: float = 0.0


def evaluate(candidate: Candidate) -> Result:
    """Compile, check and time `candidate`; whatever it does wrong becomes the result's outcome and reason."""
    result, call = _prepare(candidate)
    if call is None:
        return result
    try:
        timing = _time(call, candidate)
    except Exception as error:
        return replace(result, outcome=Outcome.launch_error, reason=_said(error))
    return replace(result, seconds=timing.seconds, spread=timing.spread)


def contest(candidates: Sequence[Candidate], *, seconds: float, rounds: int) -> dict[int, Timing]:
    """Check `candidates` of one device once more, and time them in turn; by place, those that were right.

    What won in an earlier run, or under another version of a compiler, is thereby checked by this one.
    """
    prepared = {place: _prepare(candidate)[1] for place, candidate in enumerate(candidates)}
    calls = {str(place): call for place, call in prepared.items() if call is not None}
    if not calls:
        return {}
    timings = measure(calls, candidates[0].device, seconds=seconds, rounds=rounds)
    return {int(place): timing for place, timing in timings.items()}


def _prepare(candidate: Candidate) -> tuple[Result, Timed | None]:
    """The candidate compiled and checked: what came of it, and if it was right the call to time."""
    started = time.perf_counter()
    try:
        schedule = from_settings(candidate.backend, dict(candidate.settings))
        program = build(candidate.spec, schedule, candidate.device)
    except (IllegalScheduleError, ScheduleFieldError) as error:
        return Result(Outcome.illegal, _said(error)), None
    except Exception as error:
        return Result(Outcome.compile_error, _said(error), compile_seconds=time.perf_counter() - started), None
    compile_seconds = time.perf_counter() - started
    try:
        checked = check(program, candidate.spec)
        right = checked.outcome is Outcome.ok
        result = Result(checked.outcome, checked.reason, errors=checked.errors, compile_seconds=compile_seconds)
        return result, timed(program, candidate.spec) if right else None
    except Exception as error:
        return Result(Outcome.launch_error, _said(error), compile_seconds=compile_seconds), None


def timed(program: Program, spec: Spec) -> Timed:
    """A call of `program` at the full size of `spec`, to be timed."""
    launch = bind(program, timing_inputs(spec, program.device))
    return Timed(launch.run, launch.reset_states)


def _time(call: Timed, candidate: Candidate) -> Timing:
    timing = measure({"it": call}, candidate.device, seconds=candidate.seconds, rounds=_ROUNDS)["it"]
    if timing.spread <= NOISY:
        return timing
    return measure({"it": call}, candidate.device, seconds=4 * candidate.seconds, rounds=4 * _ROUNDS)["it"]


def _said(error: Exception) -> str:
    known = isinstance(error, TrellisError)
    return shortened(str(error) if known else f"{type(error).__name__}: {error}", _REASON)
