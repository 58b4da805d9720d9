"""All implementations of one case, timed in turn, and what came out."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codegen.device import Device
from codegen.spec import Spec
from tests.benchmarks.results.targets import Target
from tests.benchmarks.subjects.calls import Call, Subject, subject
from tests.benchmarks.subjects.cases import Case
from tests.benchmarks.subjects.rivals import CEILING, COMPILE, EAGER, Rivals
from tests.benchmarks.turns import ratio, sample, take_turns
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import Explanation, explain, forget
from trellis_ops.dispatch import resolve
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timed, Timing
from tuner.verify.inputs.trellis import torch_device
from tuning_db import Store, TuningDatabaseWarning

DEFAULT, TUNED = "default schedule", "tuned"
IMPLEMENTATIONS = (EAGER, COMPILE, DEFAULT, TUNED)

_SECONDS = 6.0
_ROUNDS = 200
_LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Entry:
    """A kernel in a comparison.

    Attributes:
        call: None where it could not run; then `note` says why.
        note: which schedule ran, from which record.
    """

    call: Call | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """What one case gave.

    Attributes:
        notes: by implementation.
        timings: by implementation, those that ran, and of what the case would take at the nearer limit of the
            machine; samples of the same index were taken in the same round.
    """

    case: Case
    notes: dict[str, str]
    timings: dict[str, Timing]

    def share(self, implementation: str) -> float | None:
        """How much of the machine's nearer limit, as it was in the same round: the median; None if it did not run."""
        return self.ratio(CEILING, implementation)

    def ratio(self, base: str, implementation: str) -> float | None:
        """How many times as fast as `base`: the median over the rounds; None if one of them did not run."""
        if base not in self.timings or implementation not in self.timings:
            return None
        return ratio(self.timings[base], self.timings[implementation])

    def targets(self) -> list[Target]:
        """What the tuned operator must reach."""
        name, least = self.case.name, self.case.least
        # A comparison with something that did not run is open; one of something that did not run is lost.
        nothing = None if TUNED in self.timings else 0.0
        to_eager, to_compile = self.ratio(EAGER, TUNED), self.ratio(COMPILE, TUNED)
        candidates = (
            (to_eager, least.to_eager, "eager", self._at_the_ceiling(to_eager), "{:.1f}x".format),
            (to_compile, least.to_compile, "torch.compile", self._at_the_ceiling(to_compile), "{:.1f}x".format),
            (self.share(TUNED), least.share, "of the ceiling", "", "{:.0%}".format),
        )
        return [
            Target(name, nothing if found is None else found, limit, True, of, remark, shown)
            for found, limit, of, remark, shown in candidates
            if limit is not None
        ]

    def _at_the_ceiling(self, found: float | None) -> str:
        """What `found` would be if the tuned operator took no longer than the machine's limit lets it."""
        share = self.share(TUNED)
        return "" if found is None or share is None else f"{found / share:.1f}x at the ceiling"


@torch.no_grad()
def compare(case: Case, device: Device, rivals: Rivals, compile_limit: float) -> Comparison:
    """Prepare, check and time every implementation of `case`.

    Raises:
        AssertionError: one of them does not give what eager gives.
    """
    bound = subject(case.spec, torch_device(device))
    notes = rivals.prepare(case.spec, compile_limit)
    entries = _tuned_and_default(bound)
    calls = {name: entry.call for name, entry in entries.items() if entry.call is not None}
    theirs = rivals.results()
    _check(bound, theirs, calls)
    samplers = {name: rivals.sampler(name) for name in theirs}
    samplers |= {name: functools.partial(sample, Timed(call, bound.reset), device) for name, call in calls.items()}
    rivals.prepare_ceiling(case.spec.problem.dtype, cost_of(case.spec))
    samplers[CEILING] = rivals.sampler(CEILING)
    timings = take_turns(samplers, seconds=_SECONDS, rounds=_ROUNDS, least=_LEAST_ROUNDS)
    return Comparison(case, notes | {name: entry.note for name, entry in entries.items()}, timings)


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
        patch.setattr(resolve, "store", lambda: empty)
        yield


def _check(bound: Subject, theirs: dict[str, Tensor], calls: dict[str, Call]) -> None:
    found = dict(theirs)
    for name, call in calls.items():
        bound.reset()
        found[name] = call.y().float().cpu()
    bound.reset()
    tolerance = TOLERANCE[bound.inputs.q.dtype]
    for name, y in found.items():
        assert_close(y, theirs[EAGER], 2 * tolerance, f"{name} of {key(bound.spec)}")


def key(spec: Spec) -> str:
    """The problem in words that fit a table's heading."""
    p = spec.problem
    return f"{p.operator} B{p.batch} H{p.heads} T{p.tokens} D{p.dim_k} M{p.slots} C{p.chunk} {p.dtype}"
