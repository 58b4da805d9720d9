"""The record of a winner: what it was for, how fast it is, against what, and who measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from codegen.device import Device
from codegen.kernels.build import operator_digest
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, bucket
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timing
from tuner.policy import stated
from tuner.search.finals import FINAL_ROUNDS, Verdict
from tuner.search.search import Searched
from tuner.session import Session
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


def commit_winner(
    spec: Spec, session: Session, searched: Searched, timings: Mapping[str, Timing], verdict: Verdict
) -> Record:
    """Measure what the winner of the finals is compared with, and commit its record.

    Raises:
        WorkerError: eager PyTorch, or the machine's ceiling, could not be measured.
        tuning_db.TuningDatabaseError: the record could not be stored.
    """
    device, workers = session.device, session.workers
    timing, cost = timings[verdict.winner], cost_of(spec)
    ceiling = workers.ceiling(device, spec.problem.dtype, cost.bytes)
    beside = Beside(
        default=timings.get(searched.space.default.key()),
        eager_seconds=workers.eager(spec, device).seconds,
        ceiling_share=ceiling.share(cost, timing.seconds),
        trials=len(searched.tried),
    )
    record = winner_record(
        spec,
        searched.space.schedules[verdict.winner],
        device,
        timing,
        beside,
        reason=verdict.reason,
        policy=stated(session.policy, device, FINAL_ROUNDS),
        source=session.source,
    )
    if session.with_compile:
        record = replace(record, compile_seconds=workers.compiled(spec, device).seconds)
    session.store.commit(record)
    return record


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
