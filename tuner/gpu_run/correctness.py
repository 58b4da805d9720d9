"""The first stage: every kernel against the oracle on the card, the default schedule of each variant."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from codegen.device import Device
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from trellis_ops.specs.workload import NamedSpec
from tuner.errors import NoScheduleError
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.offline.family_specs import specs_of_every_form
from tuner.offline.gpu_check import specs
from tuner.space.legal import first_of_variants, legal_schedules
from tuner.workers.compile_queue import Job
from tuner.workers.worker import Candidate
from tuning_db import Outcome

_SECONDS = 0.05
_MOST_TOKENS = 512


def check_all(run: GpuRun, listed: tuple[NamedSpec, ...] | None = None) -> Iterator[Entry]:
    """Check what was not checked yet, as far as the time goes; findings as they come, old ones included.

    All are compiled from the start, since a card has many cores beside it, and whatever is ready first goes first.
    """
    todo: dict[Job, tuple[str, str]] = {}
    workers = run.workers
    for named, schedule in kernels_to_check(run, listed):
        name, state = f"{named.name} {schedule.key()}", run.state_of(named.spec)
        known = run.ledger.find("correct", name, state)
        if known is not None:
            yield known
        else:
            todo[workers.submit(_candidate(run, named.spec, schedule))] = name, state
    while job := workers.compiled_within([*todo], run.left_for("correct")):
        if run.left_for("correct") <= 0:
            break
        yield run.ledger.add(_checked(run, job, *todo.pop(job)))
    workers.withdraw([*todo])


def kernels_to_check(run: GpuRun, listed: tuple[NamedSpec, ...] | None = None) -> list[tuple[NamedSpec, Schedule]]:
    """Every spec of the GPU check and every form of any rule, or `listed`, with the first schedule of each variant."""
    return list(_kernels(run.backend, run.device, _every_spec() if listed is None else listed))


def _every_spec() -> tuple[NamedSpec, ...]:
    return (*specs(), *specs_of_every_form())


@functools.lru_cache(maxsize=4)
def _kernels(backend: str, device: Device, listed: tuple[NamedSpec, ...]) -> tuple[tuple[NamedSpec, Schedule], ...]:
    found = list[tuple[NamedSpec, Schedule]]()
    for named in listed:
        try:
            legal = legal_schedules(named.spec, backend, device)
        except NoScheduleError:
            continue
        found += [(named, schedule) for schedule in first_of_variants(legal)]
    return tuple(found)


def _candidate(run: GpuRun, spec: Spec, schedule: Schedule) -> Candidate:
    # What is checked has sizes of its own; at this size runs are compared bit by bit. A small launch leaves time for
    # more kernels: some that no one would choose take a third of a second for thousands of single tokens.
    small = replace(spec, problem=replace(spec.problem, batch=1, tokens=min(spec.problem.tokens, _MOST_TOKENS)))
    return Candidate(small, run.device, run.backend, schedule.settings(), seconds=_SECONDS)


def _checked(run: GpuRun, job: Job, name: str, state: str) -> Entry:
    result = run.workers.evaluate(job)
    ok = result.outcome is Outcome.ok
    text = "right" if ok else f"{result.outcome.value}: {result.reason}"
    return Entry(stage="correct", name=name, state=state, ok=ok, text=text, values=dict(result.errors))
