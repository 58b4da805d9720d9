"""All implementations of one case, timed in turn in one process, and what came out."""

from __future__ import annotations

import functools
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from codegen.device import Device
from codegen.spec import Spec
from tests.benchmarks.calls import Call, Subject, subject
from tests.benchmarks.cases import Case
from tests.benchmarks.compiled import compile_eager
from tests.relative_error import TOLERANCE, assert_close
from trellis_ops import Explanation, dispatch, explain, forget
from tuner.ceiling import ceiling_of
from tuner.cost import cost_of
from tuner.inputs import torch_device
from tuner.measure import Timed, Timing, measure
from tuning_db import Store, TuningDatabaseWarning

EAGER, COMPILE, DEFAULT, TUNED = "eager", "torch.compile", "default schedule", "tuned"
IMPLEMENTATIONS = (EAGER, COMPILE, DEFAULT, TUNED)

_SECONDS = 6.0
_ROUNDS = 200
_LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Entry:
    """One implementation in a comparison.

    Attributes:
        call: None where it could not run; then `note` says why.
        note: which schedule ran, from which record; what was compiled.
    """

    call: Call | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """What one case gave.

    Attributes:
        notes: by implementation.
        timings: by implementation, those that ran; samples of the same index were taken in the same round.
        shares: by implementation, the share of the nearer measured limit of the machine.
    """

    case: Case
    notes: dict[str, str]
    timings: dict[str, Timing]
    shares: dict[str, float]

    def ratio(self, base: str, implementation: str) -> float | None:
        """How many times as fast as `base`: the median over the rounds; None if one of them did not run."""
        if base not in self.timings or implementation not in self.timings:
            return None
        pairs = zip(self.timings[base].samples, self.timings[implementation].samples, strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


@torch.no_grad()
def compare(case: Case, device: Device, compile_limit: float) -> Comparison:
    """Prepare, check and time every implementation of `case`.

    Raises:
        AssertionError: one of them does not give what eager gives.
    """
    bound = subject(case.spec, torch_device(device))
    entries = {
        EAGER: Entry(bound.eager, f"trellis_ops.eager.{bound.eager.function.__name__}"),
        COMPILE: _compiled(bound, compile_limit),
    }
    entries |= _tuned_and_default(bound)
    calls = {name: entry.call for name, entry in entries.items() if entry.call is not None}
    _check(bound, calls)
    cost = cost_of(case.spec)
    ceiling = ceiling_of(device, case.spec.problem.dtype, cost.bytes)
    timed = {name: Timed(call, functools.partial(_settle, bound, call)) for name, call in calls.items()}
    timings = measure(timed, device, seconds=_SECONDS, rounds=_ROUNDS, least=_LEAST_ROUNDS)
    shares = {name: ceiling.share(cost, timing.seconds) for name, timing in timings.items()}
    return Comparison(case, {name: entry.note for name, entry in entries.items()}, timings, shares)


def _settle(bound: Subject, call: Call) -> None:
    # A call that is not timed, so that no sample pays for the caches and the spinning threads of what ran before it.
    bound.reset()
    call()
    bound.reset()


def _compiled(bound: Subject, limit: float) -> Entry:
    made = compile_eager(bound, limit)
    return Entry(made.call, made.note)


def _tuned_and_default(bound: Subject) -> dict[str, Entry]:
    """Both through the public operator: a call is resolved once, so its plan keeps what was known at the first call."""
    operator, args, kwargs = bound.operator.function, bound.operator.args, bound.operator.kwargs
    forget()
    known = explain(operator, *args, **kwargs)
    if known.schedule is None:
        reason = f"no kernel: {'; '.join(known.notes)}"
        return {DEFAULT: Entry(None, reason), TUNED: Entry(None, reason)}
    # Forced and not forced are two plans; the first is made while no record is known, so it runs the default.
    forced = Call(operator, args, {**kwargs, "implementation": known.implementation})
    with without_records():
        default = explain(operator, *args, **forced.kwargs)
        assert default.origin == "default schedule", default
        forced()
    bound.reset()
    return {DEFAULT: Entry(forced, f"{default.schedule}"), TUNED: Entry(bound.operator, _origin(known))}


def _origin(known: Explanation) -> str:
    if known.record is None:
        return f"no record: default schedule. {'; '.join(known.notes).replace(known.spec, 'this spec')}"
    return f"{known.schedule}; {known.origin} from {known.record}"


@contextmanager
def without_records() -> Iterator[None]:
    """Calls that are resolved inside find an empty tuning database."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningDatabaseWarning)
        empty = Store(user=None, shipped=Path(folder))
        patch.setattr(dispatch, "store", lambda: empty)
        yield


def _check(bound: Subject, calls: dict[str, Call]) -> None:
    results: dict[str, Any] = {}
    for name, call in calls.items():
        bound.reset()
        results[name] = call.y().clone()
    bound.reset()
    tolerance = TOLERANCE[results[EAGER].dtype]
    for name, y in results.items():
        assert_close(y, results[EAGER], 2 * tolerance, f"{name} of {key(bound.spec)}")


def key(spec: Spec) -> str:
    """The problem in words that fit a table's heading."""
    p = spec.problem
    return f"{p.operator} B{p.batch} H{p.heads} T{p.tokens} D{p.dim_k} M{p.slots} C{p.chunk} {p.dtype}"
