"""Slot count and chunk size: a short study of three objectives, time per token, state bytes and recall.

A rule of one pass has as many slots as D_v, one that is solved as D_k, and a rule that takes nothing from the start of
a chunk has no chunk size: its points are fewer.
"""

from __future__ import annotations

import functools
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
from codegen.recurrence.of_rule import used_chunk_states
from codegen.rule import SOLVE, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default, from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Problem, Spec, bucket
from tuner.budget import Budget, Clock
from tuner.errors import NothingMeasuredError
from tuner.experiments.quality import PAIRS, RULE, recall_by_pairs
from tuner.measure.rule_cost import state_bytes
from tuner.processes.interruption import stop_if_interrupted
from tuner.search.progress import SlotStatus
from tuner.search.study import StudySession
from tuner.space.pareto import front_of, knee_of
from tuner.space.sampler import FreshSampler, untried
from tuner.studies.damaged_trials import Expected
from tuner.studies.shared_storage import Heart, fail_silent_trials
from tuner.studies.studies import continued_study, take
from tuner.studies.telling import release, tell
from tuner.toolchain import toolchain
from tuner.workers.worker import Candidate
from tuning_db import FRONT_HEADS, FrontRow, Outcome, Recommendation, Store, utc_now

SLOTS = (16, 32, 64, 128)
CHUNKS = (1, 16, 32, 64)
DIM = 64
HEADS = FRONT_HEADS

BUDGET = Budget(seconds=60.0)
"""Enough for all points on a machine with two cores."""

_TOKENS, _EXACT_TOKENS = 4096, 512
_DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)


def recommend(
    session: StudySession, budget: Budget, show: Callable[[SlotStatus], None], rule: Rule | None = None
) -> tuple[Recommendation, SlotStatus]:
    """Measure slot counts and chunk sizes, and store the knee of their front as what "auto" reads.

    A study that exists is continued; when a new winner changes which schedules are measured, a new one begins. Of a
    rule that is named nothing is stored: "auto" is for TRELLIS.

    Raises:
        NothingMeasuredError: no point could be measured.
    """
    studied = rule or RULE
    schedules = {
        (slots, chunk): known_schedule(_spec(studied, slots, chunk), session.backend, session.device, session.store)
        for slots, chunk in itertools.product(_slots(studied), _chunks(studied))
    }
    study = _study(session, studied, schedules)
    points = [{"slots": slots, "chunk": chunk} for slots, chunk in schedules]
    clock = Clock(budget)
    with Heart(session.storage) as heart:
        while True:
            stop_if_interrupted()
            fail_silent_trials(study, session.storage)
            rows = _rows(study.get_trials(deepcopy=False), studied)
            status = SlotStatus(len(rows), len(points), max(clock.share(len(rows)), len(rows) / len(points)))
            show(status)
            if not untried(study, points) or (rows and clock.spent(len(rows))):
                break
            _one_trial(study, session, studied, schedules, heart)
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
    if rule is None:
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


def _slots(rule: Rule) -> tuple[int, ...]:
    return SLOTS if rule.passes == 2 and rule.link != SOLVE else (DIM,)


def _chunks(rule: Rule) -> tuple[int, ...]:
    return CHUNKS if rule.is_trellis or used_chunk_states(rule, True) else CHUNKS[:1]


def _spec(rule: Rule, slots: int, chunk: int) -> Spec:
    # The lengths that the workload tunes, so that its winners serve; time per token hardly depends on the length.
    tokens = _EXACT_TOKENS if chunk == 1 else _TOKENS
    operator = "trellis_attention" if rule.is_trellis else "memory_attention"
    return Spec(rule, Problem(operator, 1, tokens, HEADS, DIM, DIM, slots, chunk))


def _distributions(rule: Rule) -> dict[str, CategoricalDistribution]:
    return {"slots": CategoricalDistribution(_slots(rule)), "chunk": CategoricalDistribution(_chunks(rule))}


def _study(session: StudySession, rule: Rule, schedules: dict[tuple[int, int], Schedule]) -> optuna.Study:
    about = [
        session.device.key(),
        str(toolchain(session.backend)),
        operator_digest(_spec(rule, DIM, 1).problem, session.backend),
        f"time, state bytes, recall of {PAIRS} by {rule.key()}",
    ]
    about += [schedule.key() for schedule in schedules.values()]
    name = f"slots and chunk {session.backend} {hashlib.sha256('|'.join(about).encode()).hexdigest()[:12]}"
    points = [{"slots": slots, "chunk": chunk} for slots, chunk in schedules]
    expected = Expected(
        _DIRECTIONS, lambda point: any(_same(point, each) for each in points), functools.partial(_row, rule=rule)
    )
    return continued_study(session.storage, name, FreshSampler(points, _distributions(rule), seed=0), expected)


def _same(point: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return point == other and all(type(value) is int for value in point.values())


def _one_trial(
    study: optuna.Study, session: StudySession, rule: Rule, schedules: dict[tuple[int, int], Schedule], heart: Heart
) -> None:
    trial = take(study, session.storage, _distributions(rule))
    heart.beat_for([trial])
    slots, chunk = trial.params["slots"], trial.params["chunk"]
    spec, schedule = _spec(rule, slots, chunk), schedules[slots, chunk]
    try:
        result = session.workers.evaluate(
            Candidate(spec, session.device, session.backend, schedule.settings(), session.policy.name)
        )
        shares = recall_by_pairs(slots, chunk, dim=DIM, rule=rule) if result.outcome is Outcome.ok else {}
    except BaseException:
        release(study, trial)
        raise
    attributes: dict[str, object] = {"outcome": result.outcome.value, "reason": result.reason}
    if result.seconds is None:
        tell(study, trial, attributes, state=TrialState.PRUNED)
    else:
        attributes["recall"] = {str(pairs): share for pairs, share in shares.items()}
        recall = statistics.fmean(shares.values())
        values = [result.seconds / spec.problem.tokens, _state_bytes(rule, slots), recall]
        tell(study, trial, attributes, values=values)


def _state_bytes(rule: Rule, slots: int) -> int:
    return state_bytes(Spec(rule, Problem(heads=1, dim_k=DIM, dim_v=DIM, slots=slots)))


def _rows(trials: list[FrozenTrial], rule: Rule) -> list[FrontRow]:
    return [_row(trial, rule) for trial in trials if trial.state is TrialState.COMPLETE]


def _row(trial: FrozenTrial, rule: Rule) -> FrontRow:
    slots, chunk = trial.params["slots"], trial.params["chunk"]
    seconds, _, share = trial.values
    return FrontRow(
        slots=slots,
        chunk=chunk,
        seconds_per_token=seconds,
        state_bytes=_state_bytes(rule, slots),
        recall=share,
        recall_by_pairs=dict(trial.user_attrs["recall"]),
    )


def _reasons(study: optuna.Study) -> str:
    reasons = (trial.user_attrs.get("reason") for trial in study.get_trials(deepcopy=False))
    return "; ".join(dict.fromkeys(str(reason) for reason in reasons if reason))
