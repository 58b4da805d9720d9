"""What each precision of a dot costs on this card: error against the oracle, and time, by type of the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default, from_settings, kind_of
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from trellis_ops.specs.workload import NamedSpec
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.workers.compile_queue import Job
from tuner.workers.worker import Candidate
from tuning_db import Outcome

DTYPES = ("float32", "float16", "bfloat16")
_SECONDS = 0.2


def time_precisions(run: GpuRun) -> Iterator[Entry]:
    """The first forward of the workload that has dots, in every type and every legal precision."""
    todo: dict[Job, tuple[str, str]] = {}
    for name, spec, schedule in precisions(run):
        state = run.state_of(spec)
        known = run.ledger.find("precision", name, state)
        if known is not None:
            yield known
        else:
            candidate = Candidate(spec, run.device, run.backend, schedule.settings(), seconds=_SECONDS)
            todo[run.workers.submit(candidate)] = name, state
    while job := run.workers.compiled_within([*todo], run.left_for("precision")):
        if run.left_for("precision") <= 0:
            break
        name, state = todo.pop(job)
        result = run.workers.evaluate(job)
        ok = result.outcome is Outcome.ok
        values = {"seconds": result.seconds, "errors": result.errors}
        text = "" if ok else f"{result.outcome.value}: {result.reason}"
        # A precision that is not enough is no fault of a kernel: nothing picks it.
        expected = ok or result.outcome is Outcome.wrong_answer
        yield run.ledger.add(Entry(stage="precision", name=name, state=state, ok=expected, text=text, values=values))
    run.workers.withdraw([*todo])


def precisions(run: GpuRun) -> Iterator[tuple[str, Spec, Schedule]]:
    """A name, a spec and a schedule for each type of input and each precision, where several are legal for it."""
    named = next(filter(_has_dots, run.workload), None)
    if named is None:
        return
    of_dots = kind_of(run.backend).choices.get("dot_precision", ())
    for dtype in DTYPES:
        spec = replace(named.spec, problem=replace(named.spec.problem, dtype=dtype))
        usual = default(run.backend, spec, run.device).settings()
        every = {each: from_settings(run.backend, {**usual, "dot_precision": each}) for each in of_dots}
        legal = {each: schedule for each, schedule in every.items() if not why_illegal(spec, schedule, run.device)}
        if len(legal) > 1:
            for precision, schedule in legal.items():
                yield f"{dtype} {precision}", spec, schedule


def _has_dots(named: NamedSpec) -> bool:
    problem = named.spec.problem
    return problem.operator == "trellis_attention" and problem.direction == "forward" and problem.chunk > 1
