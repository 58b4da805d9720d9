"""Ranks of one job that run the same kernels: the leader's selection, broadcast once per spec.

Machines of a job may hold different tuning databases, and kernels with other schedules round otherwise, so that
replicas would drift apart. Agreeing is asked for by `agree_across_ranks`, not done behind a user's back: it makes the
first call of a spec a collective operation, and a job in which only some ranks make that call would wait for ever.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from codegen.errors import TrellisError
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import from_settings
from codegen.spec import Spec
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import resolve
from trellis_ops.dispatch.forced_schedule import forced_for
from trellis_ops.dispatch.resolve import Resolution

LEADER = 0
"""The rank within the group whose selection counts."""


@dataclass
class _Agreement:
    """What a group agreed on so far.

    Attributes:
        group: whose ranks agree; None for all ranks of the job.
        settled: by key of the spec.
    """

    group: dist.ProcessGroup | None
    settled: dict[str, Resolution]


_agreement: _Agreement | None = None


def begin(group: dist.ProcessGroup | None) -> None:
    """Agree anew, with nothing settled yet; `operators.agreement` says what a user is promised."""
    global _agreement
    _agreement = _Agreement(group, {})


def resolution_of(request: Request, implementation: str | None) -> Resolution:
    """What a checked call runs: the leader's selection where ranks agree, else this rank's own."""
    own = resolve.resolve(request, implementation)
    if _agreement is None or not _takes_part(request, implementation):
        return own
    if own.schedule is None and request.spec.problem.direction != "forward":
        # A backward without kernels is the eager implementation's on every rank, which agrees with itself.
        return own
    key = request.spec.key()
    if key not in _agreement.settled:
        _agreement.settled[key] = _broadcast(request.spec, own, _agreement.group)
    return _agreement.settled[key]


def expected_of(request: Request, implementation: str | None) -> Resolution:
    """What a checked call would run as far as this rank knows; no other rank is asked."""
    if _agreement is not None and _takes_part(request, implementation):
        known = _agreement.settled.get(request.spec.key())
        if known is not None:
            return known
    return resolve.resolve(request, implementation)


def _takes_part(request: Request, implementation: str | None) -> bool:
    forced = resolve.forced_implementation(implementation) or forced_for(request.spec.problem)
    return dist.is_initialized() and forced is None and not request.float64


def _broadcast(spec: Spec, own: Resolution, group: dist.ProcessGroup | None) -> Resolution:
    settings = None if own.schedule is None else own.schedule.settings()
    said: list[dict[str, Any]] = [{"spec": spec.key(), "implementation": own.implementation, "settings": settings}]
    dist.broadcast_object_list(said, group=group, group_src=LEADER)
    if dist.get_rank(group) == LEADER:
        return own
    (heard,) = said
    try:
        return _followed(spec, own, heard)
    except TrellisError as error:
        warnings.warn(f"rank {dist.get_rank()} does not run what the leader runs: {error}", stacklevel=2)
        return replace(own, said=(*own.said, f"the leader's selection is not used: {error}"))


def _followed(spec: Spec, own: Resolution, heard: dict[str, Any]) -> Resolution:
    if heard["spec"] != spec.key():
        raise TrellisError(detail=f"it was at {heard['spec']} while this rank was at {spec.key()}")
    note = f"its own choice would have been: {own.origin}"
    if heard["settings"] is None:
        return Resolution("eager", own.device, None, "the leader's selection", None, (note,))
    schedule = from_settings(heard["implementation"], dict(heard["settings"]))
    schedule = schedule.within_threads(torch.get_num_threads(), own.device)
    if reason := why_illegal(spec, schedule, own.device):
        raise TrellisError(detail=f"{schedule.key()} is illegal on {own.device.key()}: {reason}")
    return Resolution(heard["implementation"], own.device, schedule, "the leader's selection", None, (note,))
