"""What a GPU run does, and how much of its time each part may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from codegen.device import Device
from codegen.kernels.build import operator_digest
from codegen.spec import Spec
from trellis_ops.specs.workload import NamedSpec
from tuner.gpu_run.ledger import Ledger
from tuner.measure.baselines.rivals import is_of_rules
from tuner.toolchain import toolchain
from tuner.verify.check import allowed_digest
from tuner.workers.pool import Workers
from tuning_db import Store

SHARES = {
    **{"correct": 0.24, "sanitizer": 0.1, "tuned": 0.26, "tuned rules": 0.12, "precision": 0.04, "tvm": 0.04},
    **{"timed": 0.12, "timed rules": 0.08},
}
"""Of the time; what a stage leaves is there for the next."""


@dataclass(frozen=True)
class GpuRun:
    """One run on one card.

    Attributes:
        device, backend: the card, and whose kernels run there.
        workload: what is tuned and timed.
        workers: the processes in which kernels run.
        ledger: what was found so far.
        store: where winners go.
        candidates: folder of the lists that were prepared.
        seconds: how long all of it may take.
        most: candidates of each spec that are measured at most; None for as many as the time allows.
        started: when it began, on the clock of `time.monotonic`.
    """

    device: Device
    backend: str
    workload: tuple[NamedSpec, ...]
    workers: Workers
    ledger: Ledger
    store: Store
    candidates: Path
    seconds: float
    most: int | None = None
    started: float = field(default_factory=time.monotonic)

    def parts(self, stage: str) -> tuple[tuple[str, tuple[NamedSpec, ...]], ...]:
        """The workload of a stage in its order, by names of `SHARES`: TRELLIS' operators, then those of any rule."""
        rules = tuple(each for each in self.workload if is_of_rules(each.spec))
        own = tuple(each for each in self.workload if each not in rules)
        return ((stage, own), (f"{stage} rules", rules))

    def left_for(self, stage: str) -> float:
        """Seconds until `stage` must end, so that those after it have their shares."""
        until = 0.0
        for name, share in SHARES.items():
            until += share * self.seconds
            if name == stage:
                break
        return self.started + until - time.monotonic()

    def state_of(self, spec: Spec) -> str:
        """What a finding about `spec` depends on: templates, versions of what compiles them, what counts as right."""
        versions = toolchain(self.backend)
        tools = ", ".join(f"{name} {versions[name]}" for name in sorted(versions) if name != "optuna")
        return f"{operator_digest(spec.problem, self.backend)}; {tools}; allowed {allowed_digest()}"
