"""What all measurements of one run share."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.device import Device
from codegen.spec import Spec
from tuner.budget import Budget
from tuner.policy import Policy, policy_for
from tuner.space.legal import Settings
from tuner.workers.pool import Workers
from tuner.workers.worker import Candidate
from tuning_db import Store


@dataclass(frozen=True)
class Session:
    """One run on one machine.

    Attributes:
        device: the machine.
        backend: the compiler whose kernels are measured.
        store: where winners go.
        budget: for each spec.
        workers: the processes that compile, check and time.
        with_compile: whether `torch.compile` is measured too.
        source: the command that runs, for the records.
        timing: name of the policy by which times are taken; that of the device unless given.
        final_seconds: how long the finals of one spec last, compilation aside.
    """

    device: Device
    backend: str
    store: Store
    budget: Budget
    workers: Workers
    with_compile: bool = False
    source: str = "python -m tuner tune"
    timing: str | None = None
    final_seconds: float = 3.0

    @property
    def policy(self) -> Policy:
        """How times are taken. Raises PolicyError if `timing` names none for the device."""
        return policy_for(self.device, self.timing)

    def candidate(self, spec: Spec, settings: Settings) -> Candidate:
        """The schedule with these settings as a candidate for `spec` in this session."""
        return Candidate(spec, self.device, self.backend, settings, self.policy.name)
