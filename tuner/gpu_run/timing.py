"""The last stage: winners beside what a user would run without them."""

from __future__ import annotations

from collections.abc import Iterator

from trellis_ops.specs.workload import NamedSpec
from tuner.errors import WorkerError
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.gpu_run.warm_up import WarmUp
from tuner.measure.cost import cost_of
from tuner.measure.side_by_side import KERNEL
from tuner.workers.worker import Candidate

SECONDS = 3.0


def time_all(run: GpuRun, warm: WarmUp) -> Iterator[Entry]:
    """Time the winner of each spec that has one and was not timed beside all that is ready, as far as the time goes."""
    for stage, part in run.parts("timed"):
        for named in part:
            state = run.state_of(named.spec)
            won = run.ledger.find("tuned", named.name, state)
            known, ready = run.ledger.find("timed", named.name, state), warm.ready(named.spec)
            complete = known is not None and ready <= set(known.values.get("ready", ()))
            if not complete and won is not None and won.ok and run.left_for(stage) > 0:
                yield run.ledger.add(_timed(run, named, won, state, ready))
            elif known is not None:
                yield known


def _timed(run: GpuRun, named: NamedSpec, won: Entry, state: str, ready: frozenset[str]) -> Entry:
    spec, device = named.spec, run.device
    candidate = Candidate(spec, device, run.backend, dict(won.values["schedule"]))
    try:
        found = run.workers.side_by_side(candidate, SECONDS, ready)
        ceiling = run.workers.ceiling(device, spec.problem.dtype, cost_of(spec).bytes)
    except WorkerError as error:
        return Entry(stage="timed", name=named.name, state=state, ok=False, text=str(error))
    cost, seconds = cost_of(spec), found.seconds[KERNEL]
    values = {
        "seconds": found.seconds,
        "of_bandwidth": cost.bytes / ceiling.bandwidth / seconds,
        "of_matrix": cost.flops / ceiling.flops / seconds,
        "ready": sorted(ready),
    }
    text = "; ".join(f"{name} left out: {reason}" for name, reason in found.left_out.items())
    return Entry(stage="timed", name=named.name, state=state, ok=True, text=text, values=values)
