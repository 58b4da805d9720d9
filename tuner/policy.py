"""How times are taken: policies by name, so that a record can say which one its numbers come from."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.device import Device
from tuner.errors import PolicyError


@dataclass(frozen=True)
class Policy:
    """One way to take times.

    Attributes:
        name: as records and the command line have it.
        on_cpu: whether it is for CPUs, or for GPUs.
        cold: whether caches hold something else before each call.
        graph: whether calls are replayed from a CUDA graph, without what launching them costs.
        text: the same in words.
    """

    name: str
    on_cpu: bool
    cold: bool
    graph: bool
    text: str


POLICIES = (
    Policy("cpu-warm", True, False, False, "pinned threads, warm caches, one call after another"),
    Policy("cpu-cold", True, True, False, "pinned threads, caches filled with something else before each call"),
    Policy("gpu-graph", False, True, True, "events around replays of a graph, inputs in rotation past the L2 cache"),
    Policy("gpu-events", False, True, False, "events around launches, inputs in rotation past the L2 cache"),
)
"""Every policy; the first for a device is its default: on a GPU a decode step takes less than what launches it."""


def policy_for(device: Device, name: str | None = None) -> Policy:
    """The policy called `name`, or the default for `device`.

    Raises:
        PolicyError: there is none of that name for such a device.
    """
    fitting = [policy for policy in POLICIES if policy.on_cpu == (device.kind == "cpu")]
    for policy in fitting:
        if name in (None, policy.name):
            return policy
    raise PolicyError(name=name, device=device.key(), known=", ".join(policy.name for policy in fitting))


def stated(policy: Policy, device: Device, rounds: int) -> str:
    """The policy as a record states it, its name first."""
    cores = f", {device.cores} cores" if policy.on_cpu else ""
    return f"{policy.name}: {policy.text}{cores}; medians of up to {rounds} interleaved rounds"
