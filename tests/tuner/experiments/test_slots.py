from __future__ import annotations

from dataclasses import replace

import pytest

from codegen.device import cpu
from codegen.kernels.build import operator_digest
from codegen.rule import Rule
from codegen.rules import NAMED
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec, bucket
from tuner.budget import Budget
from tuner.errors import NothingMeasuredError
from tuner.experiments import slots
from tuner.experiments.quality import PAIRS, recall
from tuner.search.progress import SlotStatus
from tuner.space.pareto import front_of, knee_of
from tuner.space.space import space_of
from tuner.workers.compile_queue import Job
from tuner.workers.worker import Result
from tuning_db import FrontRow, Outcome, Record, utc_now

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is tuned for this device")


def row(slots: int, seconds: float, share: float, chunk: int = 1) -> FrontRow:
    return FrontRow(slots=slots, chunk=chunk, seconds_per_token=seconds, state_bytes=slots * 512, recall=share)


def test_the_front_has_what_no_other_beats_in_all_three():
    fast, middle, best = row(16, 1.0, 0.2), row(32, 2.0, 0.6), row(64, 4.0, 0.7)
    beaten = [row(16, 1.0, 0.1), row(48, 2.5, 0.6), row(128, 9.0, 0.5)]
    assert front_of([best, *beaten, fast, middle]) == [fast, middle, best]


def test_a_slower_row_with_a_smaller_state_is_on_the_front_unless_it_recalls_no_more():
    large, small, worse = row(64, 1.0, 0.5), row(16, 2.0, 0.4), row(16, 3.0, 0.4, chunk=16)
    assert front_of([worse, small, large]) == [large, small]
    assert knee_of([large, small]) == large


def test_of_equal_rows_the_smaller_state_stays():
    assert front_of([row(64, 1.0, 0.5), row(16, 1.0, 0.5)]) == [row(16, 1.0, 0.5)]


@pytest.mark.parametrize(
    ("front", "slots"),
    [
        ([row(16, 1.0, 0.2), row(32, 2.0, 0.65), row(64, 4.0, 0.7)], 32),
        ([row(16, 1.0, 0.2), row(32, 2.0, 0.25), row(64, 4.0, 0.7)], 64),
        ([row(16, 1.0, 0.2), row(64, 4.0, 0.7)], 64),
        ([row(16, 1.0, 0.2)], 16),
    ],
    ids=["above the line", "below the line", "two rows", "one row"],
)
def test_the_knee_is_furthest_above_the_line_between_the_ends(front, slots):
    assert knee_of(front).slots == slots


def test_an_empty_front_has_no_knee():
    with pytest.raises(ValueError, match="empty front"):
        knee_of(front_of([]))


def test_recall_is_repeatable_grows_with_slots_and_is_near_chance_without_writes():
    small, large = recall(4, 16, dim=16), recall(32, 16, dim=16)
    assert small == recall(4, 16, dim=16)
    assert 0.0 < small < large < 1.0
    assert recall(4, 16, dim=16, seed=1) == pytest.approx(small, abs=0.05)


def test_recall_of_few_pairs_in_many_slots_is_perfect(monkeypatch):
    assert max(PAIRS) > 64
    monkeypatch.setattr("tuner.experiments.quality.PAIRS", (8,))
    assert recall(64, 1) == 1.0


def test_nothing_is_recalled_of_what_was_not_written(monkeypatch):
    monkeypatch.setattr("tuner.experiments.quality.STEP_SIZE", 0.0)
    chance = sum(1 / pairs for pairs in PAIRS) / len(PAIRS)
    assert recall(16, 16, dim=16) == pytest.approx(chance, abs=0.01)


@pytest.fixture
def small_study(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLOTS": (4, 8), "CHUNKS": (1, 8), "DIM": 8, "HEADS": 2}.items():
        monkeypatch.setattr(slots, name, value)
    monkeypatch.setattr(slots, "_TOKENS", 32)
    monkeypatch.setattr(slots, "_EXACT_TOKENS", 32)


def test_the_study_stores_the_knee_of_its_front(session, small_study):
    statuses: list[SlotStatus] = []
    slots.recommend(session, Budget(trials=1), statuses.append)
    assert [status.measured for status in statuses] == [0, 1]
    found, last = slots.recommend(session, Budget(trials=100), statuses.append)
    assert (last.measured, last.points) == (4, 4)
    assert [status.measured for status in statuses] == [0, 1, 1, 2, 3, 4]
    assert session.store.recommendation(cpu().key()) == found
    assert found.front == front_of(found.front)
    chosen = knee_of(found.front)
    assert (found.slots, found.chunk, found.recall) == (chosen.slots, chosen.chunk, chosen.recall)
    assert found.state_bytes == found.slots * (8 + 8) * 4
    for each in found.front:
        assert list(each.recall_by_pairs) == [str(pairs) for pairs in PAIRS]
        assert sum(each.recall_by_pairs.values()) / len(PAIRS) == pytest.approx(each.recall)


def test_the_study_of_a_rule_has_its_points_and_stores_nothing(session, small_study):
    rule = NAMED["titans"].rule
    found, last = slots.recommend(session, Budget(trials=100), lambda status: None, rule)
    assert (last.measured, last.points) == (2, 2)
    assert {each.slots for each in found.front} == {8}
    assert found.state_bytes == 2 * 8 * 8 * 4
    assert session.store.recommendation(cpu().key()) is None
    hebbian, _ = slots.recommend(session, Budget(trials=100), lambda status: None, NAMED["gla"].rule)
    assert [(each.slots, each.chunk) for each in hebbian.front] == [(8, 1)]


def test_a_rule_of_two_passes_has_every_slot_count(session, small_study):
    _, last = slots.recommend(session, Budget(trials=1), lambda status: None, NAMED["gsa"].rule)
    assert last.points == 2


@pytest.mark.parametrize("name", ["linear", "deltanet", "rwkv7", "oja", "titans", "mesanet", "yaad"])
def test_any_rule_recalls_few_pairs_and_repeats_itself(monkeypatch, name):
    monkeypatch.setattr("tuner.experiments.quality.PAIRS", (8,))
    rule = NAMED[name].rule
    assert recall(32, 1, dim=32, rule=rule) == recall(32, 1, dim=32, rule=rule) == 1.0


@pytest.mark.parametrize("name", [name for name, each in NAMED.items() if not each.rule.is_trellis])
def test_no_rule_recalls_what_was_not_written(monkeypatch, name):
    monkeypatch.setattr("tuner.experiments.quality.STEP_SIZE", 0.0)
    monkeypatch.setattr("tuner.experiments.quality.PAIRS", (24,))
    assert recall(16, 16, dim=16, rule=NAMED[name].rule) < 0.15


def test_a_study_in_which_nothing_compiles_recommends_nothing(session, monkeypatch, small_study):
    failed = Result(Outcome.compile_error, "'missing' is undefined")
    monkeypatch.setattr(session.workers, "submit", lambda candidate: Job(candidate, failed))
    with pytest.raises(NothingMeasuredError, match="'missing' is undefined"):
        slots.recommend(session, Budget(trials=100), lambda status: None)
    assert session.store.recommendation(cpu().key()) is None


def test_the_winner_of_the_bucket_is_the_best_schedule_known(session):
    spec = Spec(Rule(phi_eps=1e-2, step_size="token"), Problem(tokens=32, heads=3, chunk=8, dim_k=8, dim_v=8, slots=8))
    assert slots.known_schedule(spec, "tvm", cpu(), session.store) == default("tvm", spec, cpu())
    winner = list(space_of(spec, "tvm", cpu()).schedules.values())[-1]
    record = Record(
        spec=bucket(spec).key(),
        bucket=bucket(spec).key(),
        device=cpu().key(),
        backend="tvm",
        template_digest=operator_digest(Problem(), "tvm"),
        schedule=dict(winner.settings()),
        outcome=Outcome.ok,
        seconds=1.0,
        created=utc_now(),
    )
    session.store.commit(record)
    assert slots.known_schedule(spec, "tvm", cpu(), session.store) == winner
    longer = replace(spec, problem=replace(spec.problem, tokens=64))
    assert slots.known_schedule(longer, "tvm", cpu(), session.store) == default("tvm", longer, cpu())
