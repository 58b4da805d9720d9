"""Slot count and chunk size: a short study of three objectives, time per token, state bytes and recall."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections.abc import Callable, Mapping

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default, from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec, bucket
from tuner.budget import Budget, Clock
from tuner.errors import NothingMeasuredError
from tuner.experiments.quality import PAIRS, RULE, recall_by_pairs
from tuner.interruption import stop_if_interrupted
from tuner.measure.cost import state_bytes
from tuner.search.progress import SlotStatus
from tuner.search.study import StudySession
from tuner.space.pareto import front_of, knee_of
from tuner.space.sampler import FreshSampler, untried
from tuner.studies.damaged_trials import Expected
from tuner.studies.shared_storage import Heart, fail_silent_trials
from tuner.studies.studies import continued_study, take
from tuner.telling import release, tell
from tuner.toolchain import toolchain
from tuner.workers.worker import Candidate
from tuning_db import FRONT_HEADS, FrontRow, Outcome, Recommendation, Store, utc_now

SLOTS = (16, 32, 64, 128)
CHUNKS = (1, 16, 32, 64)
DIM = 64
HEADS = FRONT_HEADS

BUDGET = Budget(seconds=60.0)
"""Enough for all points on a machine with two cores."""

_MEASURES = f"time, state bytes, recall of {PAIRS} by {RULE.key()}"
_TOKENS, _EXACT_TOKENS = 4096, 512
_DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)


def recommend(
    session: StudySession, budget: Budget, show: Callable[[SlotStatus], None]
) -> tuple[Recommendation, SlotStatus]:
    """Measure slot counts and chunk sizes, and store the knee of their front as what "auto" reads.

    A study that exists is continued; when a new winner changes which schedules are measured, a new one begins.

    Raises:
        NothingMeasuredError: no point could be measured.
    """
    schedules = {
        (slots, chunk): known_schedule(_spec(slots, chunk), session.backend, session.device, session.store)
        for slots, chunk in itertools.product(SLOTS, CHUNKS)
    }
    study = _study(session, schedules)
    points = [{"slots": slots, "chunk": chunk} for slots, chunk in schedules]
    clock = Clock(budget)
    with Heart(session.storage) as heart:
        while True:
            stop_if_interrupted()
            fail_silent_trials(study, session.storage)
            rows = _rows(study.get_trials(deepcopy=False))
            status = SlotStatus(len(rows), len(points), max(clock.share(len(rows)), len(rows) / len(points)))
            show(status)
            if not untried(study, points) or (rows and clock.spent(len(rows))):
                break
            _one_trial(study, session, schedules, heart)
    if not rows:
        raise NothingMeasuredError(spec="slots and chunk", reasons=_reasons(study))
    front = front_of(rows)
    knee = knee_of(front)
    recommendation = Recommendation(
        device=session.device.key(),
        slots=knee.slots,
        chunk=knee.chunk,
        seconds_per_token=knee.seconds_per_token,
        state_bytes=knee.state_bytes,
        recall=knee.recall,
        front=front,
        toolchain=toolchain(session.backend),
        created=utc_now(),
        source=session.source,
    )
    session.store.recommend(recommendation)
    return recommendation, status


def known_schedule(spec: Spec, backend: str, device: Device, store: Store) -> Schedule:
    """The winner that is known for `spec` or its bucket, else the default."""
    match = store.lookup(
        spec=spec.key(),
        bucket=bucket(spec).key(),
        device=device.key(),
        backend=backend,
        template_digest=operator_digest(spec.problem, backend),
    )
    fallback = default(backend, spec, device)
    if match is None:
        return fallback
    try:
        schedule = from_settings(backend, dict(match.record.schedule))
    except TrellisError:
        return fallback
    return fallback if why_illegal(spec, schedule, device) else schedule


def _spec(slots: int, chunk: int) -> Spec:
    # The lengths that the workload tunes, so that its winners serve; time per token hardly depends on the length.
    tokens = _EXACT_TOKENS if chunk == 1 else _TOKENS
    return Spec(RULE, Problem(tokens=tokens, heads=HEADS, dim_k=DIM, dim_v=DIM, slots=slots, chunk=chunk))


def _distributions() -> dict[str, CategoricalDistribution]:
    return {"slots": CategoricalDistribution(SLOTS), "chunk": CategoricalDistribution(CHUNKS)}


def _study(session: StudySession, schedules: dict[tuple[int, int], Schedule]) -> optuna.Study:
    about = [
        session.device.key(),
        str(toolchain(session.backend)),
        operator_digest(Problem(), session.backend),
        _MEASURES,
    ]
    about += [schedule.key() for schedule in schedules.values()]
    name = f"slots and chunk {session.backend} {hashlib.sha256('|'.join(about).encode()).hexdigest()[:12]}"
    points = [{"slots": slots, "chunk": chunk} for slots, chunk in schedules]
    expected = Expected(_DIRECTIONS, lambda point: any(_same(point, each) for each in points), _row)
    return continued_study(session.storage, name, FreshSampler(points, _distributions(), seed=0), expected)


def _same(point: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return point == other and all(type(value) is int for value in point.values())


def _one_trial(
    study: optuna.Study, session: StudySession, schedules: dict[tuple[int, int], Schedule], heart: Heart
) -> None:
    trial = take(study, session.storage, _distributions())
    heart.beat_for([trial])
    slots, chunk = trial.params["slots"], trial.params["chunk"]
    spec, schedule = _spec(slots, chunk), schedules[slots, chunk]
    try:
        result = session.workers.evaluate(
            Candidate(spec, session.device, session.backend, schedule.settings(), session.policy.name)
        )
        shares = recall_by_pairs(slots, chunk, dim=DIM) if result.outcome is Outcome.ok else {}
    except BaseException:
        release(study, trial)
        raise
    attributes: dict[str, object] = {"outcome": result.outcome.value, "reason": result.reason}
    if result.seconds is None:
        tell(study, trial, attributes, state=TrialState.PRUNED)
    else:
        attributes["recall"] = {str(pairs): share for pairs, share in shares.items()}
        recall = statistics.fmean(shares.values())
        values = [result.seconds / spec.problem.tokens, _state_bytes(slots, chunk), recall]
        tell(study, trial, attributes, values=values)


def _state_bytes(slots: int, chunk: int) -> int:
    return state_bytes(Problem(heads=1, dim_k=DIM, dim_v=DIM, slots=slots, chunk=chunk))


def _rows(trials: list[FrozenTrial]) -> list[FrontRow]:
    return [_row(trial) for trial in trials if trial.state is TrialState.COMPLETE]


def _row(trial: FrozenTrial) -> FrontRow:
    slots, chunk = trial.params["slots"], trial.params["chunk"]
    seconds, _, share = trial.values
    return FrontRow(
        slots=slots,
        chunk=chunk,
        seconds_per_token=seconds,
        state_bytes=_state_bytes(slots, chunk),
        recall=share,
        recall_by_pairs=dict(trial.user_attrs["recall"]),
    )


def _reasons(study: optuna.Study) -> str:
    reasons = (trial.user_attrs.get("reason") for trial in study.get_trials(deepcopy=False))
    return "; ".join(dict.fromkeys(str(reason) for reason in reasons if reason))
