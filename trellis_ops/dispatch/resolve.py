"""Which implementation serves a call: exact winner, then its bucket's winner, then the default schedule, then eager.

A schedule that the caller forces comes before all of them.

Importing this module reads the machine and the index of the tuning database; no compiler is imported and no GPU is
started before the first call.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass, replace
from typing import TypedDict

import torch

from codegen.backends import backend
from codegen.device import Device, cpu, cuda_device
from codegen.errors import ImplementationError, ScheduleFieldError
from codegen.interruption.whole_imports import whole_imports
from codegen.kernels.build import operator_digest
from codegen.schedules.legality import require_legal, why_illegal
from codegen.schedules.registry import backends, default, first_choice, from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, bucket
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch.forced_schedule import forced_for
from tuning_db import Match, Store, default_store

VARIABLE = "TRELLIS_OPS_IMPLEMENTATION"

FORCED_SCHEDULE = "forced schedule"
"""The origin of a schedule that the caller forces."""


class Place(TypedDict):
    """Where the tuning database would have a winner."""

    spec: str
    bucket: str
    device: str
    backend: str
    template_digest: str


@dataclass(frozen=True)
class Resolution:
    """What a call will run, and why not something better.

    Attributes:
        implementation: "eager" or the name of a backend, such as "tvm" or "triton".
        device: where it runs.
        schedule: how the kernel computes; None for eager.
        origin: "forced schedule", "forced", "exact winner", "bucket winner", "default schedule" or "fallback".
        match: the tuning record behind a winner.
        said: of `notes`, what was found out on the way.
        default: the schedule that serves where the winner's does not compile; None for eager.
        is_forced: whether the call, or the environment, named the implementation, or its schedule.
        unknown: what the tuning database was asked for and has no record of; None if it has one, or was not asked.
    """

    implementation: str
    device: Device
    schedule: Schedule | None = None
    origin: str = "fallback"
    match: Match | None = None
    said: tuple[str, ...] = ()
    default: Schedule | None = None
    is_forced: bool = False
    unknown: Place | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each better choice that was passed over.

        The nearest record is looked for in the files of all devices, which no call needs and each would read.
        """
        return self.said if self.unknown is None else (*self.said, _why_no_record(self.unknown))


@functools.cache
def store() -> Store:
    """The tuning database of this process."""
    with whole_imports():
        return default_store()


def device_of(device: torch.device) -> Device:
    """The machine behind a torch device."""
    if device.type == "cuda":
        return cuda_device(torch.cuda.current_device() if device.index is None else device.index)
    return cpu()


def forced_implementation(implementation: str | None) -> str | None:
    """What a call names, or else the environment; None if neither does."""
    return os.environ.get(VARIABLE) or None if implementation is None else implementation


def implementations() -> tuple[str, ...]:
    """What a call may name."""
    return ("eager", *backends())


def resolve(request: Request, implementation: str | None) -> Resolution:
    """Find what serves a checked call; `implementation`, or TRELLIS_OPS_IMPLEMENTATION, forces one.

    float64 is left to the eager implementation. So is a backward without kernels, whatever its forward was forced to.

    Raises:
        ImplementationError: a forced implementation that is unknown or cannot run the call.
        IllegalScheduleError: a forced schedule that cannot compute it.
    """
    return best_known(usual(request, implementation), request.spec)


def usual(request: Request, implementation: str | None) -> Resolution:
    """What serves a checked call while no winner is known, of a forced schedule itself; raises as `resolve` does.

    Of a backward it looks at no length and no batch, so that they may be symbolic.
    """
    spec, device = request.spec, device_of(request.device)
    schedule = forced_for(spec.problem)
    if schedule is not None:
        return _on_schedule(schedule, request, implementation, device)
    if request.float64:
        # The environment is for calls that have a choice.
        refused = None if implementation == "eager" or spec.problem.direction != "forward" else implementation
        return _eager(refused, "float64 inputs run on the eager implementation only", device)
    forced = forced_implementation(implementation)
    refused = forced if spec.problem.direction == "forward" else None
    if forced is not None and forced not in implementations():
        return _eager(refused, f"no such implementation; choose one of {implementations()}", device)
    if forced == "eager":
        return Resolution("eager", device, origin="forced", said=("eager was asked for",))
    if request.device.type not in ("cpu", "cuda"):
        return _eager(refused, f"tensors are on {request.device}; kernels exist for CPUs and GPUs", device)
    name = forced or first_choice(device)
    reason = backend(name).why_unavailable(device)
    if reason is not None:
        broken = None if forced else backend(name).why_broken()
        if broken is not None:
            say_eager(broken)
        return _eager(refused, reason, device)
    schedule = _default(name, spec, device)
    illegal = why_illegal(spec, schedule, device)
    if illegal is not None:
        return _eager(refused, f"the default schedule is illegal: {illegal}", device)
    return Resolution(name, device, schedule, "default schedule", default=schedule, is_forced=forced is not None)


def _on_schedule(schedule: Schedule, request: Request, implementation: str | None, device: Device) -> Resolution:
    name = schedule.backend
    reason = backend(name).why_unavailable(device)
    if implementation not in (None, name):
        raise ImplementationError(name=implementation, reason=f"the schedule {schedule.key()} is forced")
    if request.float64:
        reason = "float64 inputs run on the eager implementation only"
    elif request.device.type not in ("cpu", "cuda"):
        reason = f"tensors are on {request.device}; kernels exist for CPUs and GPUs"
    if reason is not None:
        raise ImplementationError(name=name, reason=f"its schedule {schedule.key()} is forced, and {reason}")
    followed = schedule.within_threads(torch.get_num_threads(), device)
    require_legal(request.spec, followed, device)
    notes = [f"the threads are cut to the {torch.get_num_threads()} that torch may use"] * (followed != schedule)
    return Resolution(name, device, followed, FORCED_SCHEDULE, None, tuple(notes), followed, is_forced=True)


def best_known(found: Resolution, spec: Spec) -> Resolution:
    """The winner that is known for `spec`, or its bucket's, in place of the default schedule of `usual`."""
    if found.schedule is None or found.origin == FORCED_SCHEDULE:
        return found
    name, device = found.implementation, found.device
    place: Place = {
        "spec": spec.key(),
        "bucket": bucket(spec).key(),
        "device": device.key(),
        "backend": name,
        "template_digest": operator_digest(spec.problem, name),
    }
    match = store().lookup(**place, stand_ins=device.with_more_cores(store().devices()))
    if match is None:
        return replace(found, unknown=place)
    notes = list(found.said)
    if match.record.device != place["device"]:
        notes.append(_stands_in(match, device))
    schedule, problem = _usable(match, name, spec, device)
    if match.how == "bucket":
        notes.append(f"no record of {spec.key()}: the winner of its shape bucket stands in")
    if schedule is None:
        notes.append(f"the {match.how} winner in {match.path} is not used: {problem}")
        return replace(found, said=tuple(notes))
    followed = schedule.within_threads(torch.get_num_threads(), device)
    if followed != schedule:
        notes.append(f"the winner's threads are cut to the {torch.get_num_threads()} that torch may use")
    return replace(found, schedule=followed, origin=f"{match.how} winner", match=match, said=tuple(notes))


def _default(name: str, spec: Spec, device: Device) -> Schedule:
    """The default for as many cores as torch may use: how to compute depends on how many compute."""
    cores = min(device.cores, torch.get_num_threads()) if device.kind == "cpu" else device.cores
    return default(name, spec, replace(device, cores=cores))


def _usable(match: Match, name: str, spec: Spec, device: Device) -> tuple[Schedule | None, str]:
    try:
        schedule = from_settings(name, dict(match.record.schedule))
    except ScheduleFieldError as error:
        return None, str(error)
    if match.record.device != device.key():
        schedule = schedule.within_threads(device.cores, device)
    illegal = why_illegal(spec, schedule, device)
    if illegal is not None:
        return None, illegal
    now = backend(name).toolchain()
    then = match.record.toolchain
    changed = [
        f"{package} {then.get(package)} -> {now[package]}" for package in now if then.get(package) != now[package]
    ]
    if changed:
        # Another compiler may miscompile what was right, so its kernel must pass the oracle here before it is trusted.
        return None, f"it was checked with another toolchain ({', '.join(changed)}); `make tune` checks it again"
    return schedule, ""


def _stands_in(match: Match, device: Device) -> str:
    return (
        f"no record for {device.cores} of this CPU's cores: the winner of {match.record.device} stands in, on at most "
        f"{device.cores} threads; `make tune CORES={device.cores}` measures with as many"
    )


def _why_no_record(place: Place) -> str:
    misses = store().near_misses(**place)
    if not misses:
        return f"no tuning record of {place['spec']} for {place['device']}; `make tune` makes one"
    nearest = misses[0]
    return f"the nearest tuning record in {nearest.path} differs in {', '.join(nearest.differs)}; `make tune` makes one"


def _eager(forced: str | None, reason: str, device: Device) -> Resolution:
    if forced is not None:
        raise ImplementationError(name=forced, reason=reason)
    return Resolution("eager", device, said=(reason,))


@functools.cache
def say_eager(reason: str) -> None:
    """Warn once for each reason for which plain PyTorch computes where kernels would be the first choice."""
    warnings.warn(f"plain PyTorch computes in place of kernels: {reason}", stacklevel=2)
