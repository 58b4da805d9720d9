"""The last stage: winners beside what a user would run without them."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.campaign.ledger import Entry
from tuner.campaign.plan import Campaign
from tuner.campaign.warm_up import WarmUp
from tuner.cost import cost_of
from tuner.errors import WorkerError
from tuner.side_by_side import KERNEL
from tuner.worker import Candidate
from tuner.workload import NamedSpec

SECONDS = 3.0


def time_all(campaign: Campaign, warm: WarmUp) -> Iterator[Entry]:
    """Time the winner of each spec that has one and was not timed beside all that is ready, as far as the time goes."""
    for named in campaign.workload:
        state = campaign.state_of(named.spec)
        won = campaign.ledger.find("tuned", named.name, state)
        known, ready = campaign.ledger.find("timed", named.name, state), warm.ready(named.spec)
        complete = known is not None and ready <= set(known.values.get("ready", ()))
        if not complete and won is not None and won.ok and campaign.left_for("timed") > 0:
            yield campaign.ledger.add(_timed(campaign, named, won, state, ready))
        elif known is not None:
            yield known


def _timed(campaign: Campaign, named: NamedSpec, won: Entry, state: str, ready: frozenset[str]) -> Entry:
    spec, device = named.spec, campaign.device
    candidate = Candidate(spec, device, campaign.backend, dict(won.values["schedule"]))
    try:
        found = campaign.workers.side_by_side(candidate, SECONDS, ready)
        ceiling = campaign.workers.ceiling(device, spec.problem.dtype, cost_of(spec).bytes)
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
