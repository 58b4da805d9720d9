from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from codegen import render
from codegen.device import cpu
from codegen.kernels.build import operator_digest
from codegen.spec import Problem, Spec, bucket
from tests.tuner.conftest import STEP, TRAIN, UPDATE, rendered_from
from trellis_ops import forget
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import resolve
from trellis_ops.specs.workload import NamedSpec
from tuner.budget import Budget
from tuner.errors import NothingMeasuredError
from tuner.search.search import Status
from tuner.search.study import search_study
from tuner.search.tune import tune
from tuner.space.space import space_of
from tuner.workers.pool import Workers
from tuner.workers.worker import Result
from tuning_db import Outcome, Record, utc_now


def run(session, spec=STEP, budget=None, statuses: list[Status] | None = None):
    show = statuses.append if statuses is not None else lambda status: None
    return search_study(spec, session, show, budget=budget)


def settings_of(searched) -> list[dict]:
    return [each.settings for each in searched.tried]


def test_the_default_comes_first_and_a_second_run_goes_on(session):
    statuses: list[Status] = []
    first = run(session, UPDATE, statuses=statuses)
    assert settings_of(first)[0] == first.space.default.settings()
    assert len(first.tried) == 3
    assert [status.trials for status in statuses] == [0, 1, 2, 3]
    assert statuses[-1].best is not None
    assert statuses[-1].best <= statuses[-1].default
    second = run(session, UPDATE, Budget(trials=5))
    assert len(second.tried) == 5
    assert len(optuna.get_all_study_names(session.storage)) == 1
    tried = settings_of(second)
    assert all(tried.count(settings) == 1 for settings in tried)


def test_a_budget_of_seconds_measures_at_least_the_default(session):
    assert settings_of(run(session, budget=Budget(seconds=1e-6))) == [space_of(STEP, "tvm", cpu()).default.settings()]


def test_a_search_ends_when_every_point_was_tried(session):
    statuses: list[Status] = []
    searched = run(session, STEP, Budget(trials=10_000), statuses)
    assert searched.exhausted
    assert len(searched.tried) == len(searched.space.schedules)
    assert statuses[-1].share == 1.0
    assert all(each.outcome is Outcome.ok for each in searched.tried)
    again = run(session, STEP, Budget(trials=10_000))
    assert len(again.tried) == len(searched.tried)


def test_earlier_winners_come_right_after_the_default(session):
    space = space_of(UPDATE, "tvm", cpu())
    winner = list(space.schedules.values())[-1]
    remember(session, UPDATE, {"variant": "update", "gone": 3}, "older templates")
    remember(session, UPDATE, winner.settings(), "old templates")
    tried = settings_of(run(session, UPDATE, Budget(trials=2)))
    assert tried == [space.default.settings(), winner.settings()]


def remember(session, spec: Spec, settings: dict, digest: str) -> None:
    """Commit a winner of another machine, of older templates, and of another spec in the bucket."""
    near = replace(spec, problem=replace(spec.problem, heads=1, batch=spec.problem.heads))
    session.store.commit(
        Record(
            spec=near.key(),
            bucket=bucket(spec).key(),
            device="another-machine",
            backend="tvm",
            template_digest=digest.replace(" ", "-"),
            schedule=settings,
            outcome=Outcome.ok,
            seconds=1.0,
            created=utc_now(),
        )
    )


def test_interruption_releases_the_running_trial(session, monkeypatch):
    calls = []

    def interrupted(candidate):
        calls.append(candidate)
        raise KeyboardInterrupt

    monkeypatch.setattr(session.workers, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(session)
    monkeypatch.undo()
    searched = run(session, budget=Budget(trials=1))
    (name,) = optuna.get_all_study_names(session.storage)
    states = [trial.state for trial in optuna.load_study(study_name=name, storage=session.storage).trials]
    assert len(calls) == 1
    assert states.count(TrialState.RUNNING) == 0
    assert settings_of(searched) == [searched.space.default.settings()]


IDLE = replace(STEP, problem=replace(STEP.problem, dim_v=6))
"""The spec whose default does nothing."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Templates with one fault for each test: a sign of STEP's second schedule, IDLE's default, and UPDATE's syntax."""
    folder = tmp_path_factory.mktemp("broken") / "templates"
    shutil.copytree(render.TEMPLATES, folder)

    def only(spec: Spec, key: str, broken: str, right: str) -> str:
        at_fault = f"schedule.key() == '{key}' and problem.dim_v == {spec.problem.dim_v}"
        return f"{{{{ {broken} if {at_fault} else {right} }}}}"

    path, update = folder / "tvm" / "memory_step.py.j2", folder / "tvm" / "memory_update.py.j2"
    text, count = re.subn(r"- U\[", only(STEP, bad_step(), "'+'", "'-'") + " U[", path.read_text())
    assert count >= 1, "the write to the state is no longer written as '- U['; break another sign"
    idle = space_of(IDLE, "tvm", cpu()).default.key()
    text, count = re.subn(r"\{\{ programs \}\}", only(IDLE, idle, "'T.serial(0)'", "programs"), text)
    assert count >= 1, "the loop over programs is no longer {{ programs }}; make the kernel idle elsewhere"
    path.write_text(text)
    update.write_text(update.read_text() + "{% if %}")
    return folder


def bad_step() -> str:
    return list(space_of(STEP, "tvm", cpu()).schedules)[1]


@pytest.fixture(scope="module")
def workers_of_broken() -> Iterator[Workers]:
    """Processes of their own, as those of other templates are replaced, and each takes seconds to start."""
    with Workers(compilers=1) as started:
        yield started


@pytest.fixture
def at_fault(session, broken, workers_of_broken):
    """A session that makes kernels of the broken templates."""
    with rendered_from(broken):
        yield replace(session, workers=workers_of_broken)


def test_a_broken_candidate_is_recorded_and_cannot_win(at_fault, progress):
    session, bad = at_fault, space_of(STEP, "tvm", cpu()).schedules[bad_step()]
    remember(session, STEP, bad.settings(), "digest")
    tuned = tune(NamedSpec("step", STEP), session, progress)
    trials = run(session).tried
    assert trials[1].settings == bad.settings()
    assert trials[1].outcome is Outcome.wrong_answer
    assert "S_k: relative error" in trials[1].reason
    assert len(trials) == 3, "the study goes on"
    assert trials[2].outcome is Outcome.ok
    assert tuned.winner != bad.key()
    assert tuned.failures == {Outcome.wrong_answer: 1}


def test_a_default_that_is_wrong_is_replaced_and_that_is_said(at_fault, progress):
    default = space_of(IDLE, "tvm", cpu()).default
    tuned = tune(NamedSpec("step", IDLE), at_fault, progress)
    assert tuned.winner != default.key()
    assert tuned.record.default_seconds is None
    assert "the default schedule was not right" in tuned.record.reason


def test_a_run_whose_only_worker_was_killed_measures_its_default_in_the_finals(session, progress, monkeypatch):
    monkeypatch.setattr(session.workers, "evaluate", lambda job: Result(Outcome.killed, "by hand"))
    tuned = tune(NamedSpec("step", STEP), replace(session, budget=Budget(trials=1)), progress)
    assert tuned.winner == tuned.default
    assert tuned.failures == {Outcome.killed: 1}
    assert tuned.record.default_seconds == tuned.record.seconds > 0


def test_a_template_that_does_not_parse_fails_its_spec_with_the_reason(at_fault, progress):
    with pytest.raises(NothingMeasuredError, match=r"memory_update\.py\.j2"):
        tune(NamedSpec("update", UPDATE), replace(at_fault, budget=Budget(trials=2)), progress)
    assert at_fault.store.records() == ()


def test_a_winner_is_committed_with_where_it_comes_from(session, progress):
    tuned = tune(NamedSpec("update", UPDATE), session, progress)
    (record,) = session.store.records(cpu().key())
    assert record == tuned.record
    assert (record.spec, record.bucket) == (UPDATE.key(), bucket(UPDATE).key())
    assert record.template_digest == operator_digest(Problem("memory_update"), "tvm")
    assert space_of(UPDATE, "tvm", cpu()).at(record.schedule).key() == tuned.winner
    assert {"python", "torch", "optuna", "apache-tvm"} <= record.toolchain.keys()
    assert record.policy.startswith("cpu-warm: pinned threads")
    assert record.trials == 3
    assert min(record.seconds, record.default_seconds, record.eager_seconds, record.ceiling_share) > 0
    match = session.store.lookup(
        spec=UPDATE.key(),
        bucket=bucket(UPDATE).key(),
        device=cpu().key(),
        backend="tvm",
        template_digest=record.template_digest,
    )
    assert match is not None
    assert match.how == "exact"


def test_a_tuned_backward_is_what_a_training_step_runs(session, progress, monkeypatch):
    tuned = tune(NamedSpec("train", TRAIN), replace(session, budget=Budget(trials=1)), progress)
    monkeypatch.setattr(resolve, "default_store", lambda: session.store)
    forget()
    try:
        found = resolve.resolve(Request(TRAIN, torch.device("cpu"), float64=False), None)
    finally:
        forget()
    assert found.origin == "exact winner"
    assert found.match is not None
    assert found.match.record == tuned.record
