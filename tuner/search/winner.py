"""The record of a winner: what it was for, how fast it is, against what, and who measured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codegen.device import Device
from codegen.kernels.build import operator_digest
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, bucket
from tuner.measure.timed import Timing
from tuner.toolchain import toolchain
from tuning_db import Outcome, Record, shortened, utc_now


@dataclass(frozen=True)
class Beside:
    """What a winner is compared with.

    Attributes:
        default: times of the default schedule in the same rounds; None if it was not right.
        eager_seconds: of the eager implementation.
        ceiling_share: share of the machine's measured ceiling that the winner reaches.
        trials: candidates that were tried.
    """

    default: Timing | None
    eager_seconds: float | None
    ceiling_share: float | None
    trials: int


def winner_record(
    spec: Spec,
    schedule: Schedule,
    device: Device,
    timing: Timing,
    beside: Beside,
    *,
    reason: str,
    policy: str,
    source: str,
) -> Record:
    """The record to commit; `reason` says why it won, `policy` how times were taken, `source` what was run."""
    settings: dict[str, Any] = dict(schedule.settings())
    return Record(
        spec=spec.key(),
        bucket=bucket(spec).key(),
        device=device.key(),
        backend=schedule.backend,
        template_digest=operator_digest(spec.problem, schedule.backend),
        schedule=settings,
        outcome=Outcome.ok,
        reason=shortened(reason),
        seconds=timing.seconds,
        spread=timing.spread,
        default_seconds=None if beside.default is None else beside.default.seconds,
        eager_seconds=beside.eager_seconds,
        ceiling_share=beside.ceiling_share,
        trials=beside.trials,
        policy=policy,
        toolchain=toolchain(schedule.backend),
        created=utc_now(),
        source=shortened(source, 500),
    )
