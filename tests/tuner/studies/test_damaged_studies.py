"""Rows that no search writes, planted in a storage: each costs a trial at most, never `tune`, `report` or `show`."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import optuna
import pytest

from codegen.device import cpu
from tests.tuner.conftest import STEP
from tests.tuner.studies.fleet.member import PretendingWorkers, pretended_seconds
from tuner.budget import Budget
from tuner.measure.timed import Timing
from tuner.records.history import histories
from tuner.report import report
from tuner.report.page import render_page
from tuner.report.why import why_lines
from tuner.search.finals import finalists_of
from tuner.search.search import Searched
from tuner.search.study import StudySession, search_study
from tuner.search.winner import Beside, winner_record
from tuner.studies.damaged_trials import DAMAGE
from tuner.studies.studies import open_storage
from tuning_db import Outcome, Store

DEEP, LONG = "[" * 100_000, "9" * 5_001

ATTRIBUTE = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = $TRIAL AND key = ?"
PARAMETER = "UPDATE trial_params SET {} WHERE trial_id = $TRIAL AND param_name = 'threads'"
VALUE = "UPDATE trial_values SET {} WHERE trial_id = $TRIAL"
TRIAL = "UPDATE trials SET {} WHERE trial_id = $TRIAL"
STUDY = "UPDATE study_user_attributes SET value_json = ? WHERE key = ?"

PLANTED: dict[str, tuple[str, tuple[object, ...]]] = {
    "outcome is no JSON": (ATTRIBUTE, ("{", "outcome")),
    "outcome is empty": (ATTRIBUTE, ("", "outcome")),
    "outcome is NULL": (ATTRIBUTE, (None, "outcome")),
    "outcome is unknown": (ATTRIBUTE, ('"splendid"', "outcome")),
    "outcome is a number": (ATTRIBUTE, ("NaN", "outcome")),
    "outcome is a list": (ATTRIBUTE, ("[1]", "outcome")),
    "outcome is nested": (ATTRIBUTE, (DEEP, "outcome")),
    "outcome is long": (ATTRIBUTE, (LONG, "outcome")),
    "outcome is no text": (ATTRIBUTE, (b"\xff\xfe", "outcome")),
    "reason is a number": (ATTRIBUTE, ("7", "reason")),
    "reason rewrites the terminal": (ATTRIBUTE, ('"\\u001b[2Jgone"', "reason")),
    "reason is missing": ("DELETE FROM trial_user_attributes WHERE trial_id = $TRIAL AND key = 'reason'", ()),
    "outcome is missing": ("DELETE FROM trial_user_attributes WHERE trial_id = $TRIAL AND key = 'outcome'", ()),
    "owner is a number": (ATTRIBUTE, ("3", "owner")),
    "errors is no JSON": (ATTRIBUTE, ("nothing", "errors")),
    "an attribute of the system is no JSON": (
        "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES ($TRIAL, 'x', '}')",
        (),
    ),
    "the point is a number": (
        "REPLACE INTO trial_system_attributes (trial_id, key, value_json) VALUES ($TRIAL, 'fixed_params', '3')",
        (),
    ),
    "distribution is no JSON": (PARAMETER.format("distribution_json = 'x'"), ()),
    "distribution is unknown": (PARAMETER.format('distribution_json = \'{"name": "Cauchy", "attributes": {}}\''), ()),
    "distribution is empty": (PARAMETER.format("distribution_json = '{}'"), ()),
    "distribution is a list": (PARAMETER.format("distribution_json = '[]'"), ()),
    "distribution lacks its choices": (
        PARAMETER.format('distribution_json = \'{"name": "CategoricalDistribution", "attributes": {}}\''),
        (),
    ),
    "distribution has other choices": (
        PARAMETER.format(
            'distribution_json = \'{"name": "CategoricalDistribution", "attributes": {"choices": [true, 1.0, null]}}\''
        ),
        (),
    ),
    "distribution is another": (
        PARAMETER.format(
            'distribution_json = \'{"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": false}}\''
        ),
        (),
    ),
    "setting is beyond its choices": (PARAMETER.format("param_value = 99"), ()),
    "setting is NULL": (PARAMETER.format("param_value = NULL"), ()),
    "setting is text": (PARAMETER.format("param_value = 'two'"), ()),
    "setting is huge": (PARAMETER.format("param_value = 1e300"), ()),
    "setting has another name": (PARAMETER.format("param_name = 'ravens'"), ()),
    "setting is missing": ("DELETE FROM trial_params WHERE trial_id = $TRIAL AND param_name = 'threads'", ()),
    "all settings are missing": ("DELETE FROM trial_params WHERE trial_id = $TRIAL", ()),
    "time is NULL": (VALUE.format("value = NULL"), ()),
    "time is text": (VALUE.format("value = 'soon'"), ()),
    "time is negative": (VALUE.format("value = -1e300"), ()),
    "time is zero": (VALUE.format("value = 0"), ()),
    "time is infinite": (VALUE.format("value = NULL, value_type = 'INF_NEG'"), ()),
    "time is of no known type": (VALUE.format("value_type = 'NAN'"), ()),
    "time is of another objective": (VALUE.format("objective = 5"), ()),
    "time is missing": ("DELETE FROM trial_values WHERE trial_id = $TRIAL", ()),
    "two times": (
        "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES ($TRIAL, 1, 2.0, 'FINITE')",
        (),
    ),
    "state is unknown": (TRIAL.format("state = 'DREAMING'"), ()),
    "it runs elsewhere in the year 9999": (
        TRIAL.format("state = 'RUNNING', datetime_start = '9999-01-01 00:00:00.000000'")
        + "; UPDATE trial_user_attributes SET value_json = '\"a|b|c|1|2\"' WHERE trial_id = $TRIAL AND key = 'owner'",
        (),
    ),
    "it waits": (TRIAL.format("state = 'WAITING'"), ()),
    "its start is no date": (TRIAL.format("datetime_start = 'yesterday'"), ()),
    "number is NULL": (TRIAL.format("number = NULL"), ()),
    "number is huge": (TRIAL.format("number = 9000000000000000000"), ()),
    "number is another's": (TRIAL.format("number = 1"), ()),
    "number is text": (TRIAL.format("number = 'one'"), ()),
    "the study's spec is no JSON": (STUDY, ("{", "spec")),
    "the study's spec is a number": (STUDY, ("12", "spec")),
    "the study's device is no text": (STUDY, (b"\xff", "device")),
    "the study lacks its toolchain": ("DELETE FROM study_user_attributes WHERE key = 'toolchain'", ()),
    "the study's direction is unknown": ("UPDATE study_directions SET direction = 'SIDEWAYS'", ()),
    "the study has no direction": ("DELETE FROM study_directions", ()),
    "the study has the other direction": ("UPDATE study_directions SET direction = 'MAXIMIZE'", ()),
    "another study's attributes are no JSON": (
        "INSERT INTO study_system_attributes (study_id, key, value_json) VALUES (2, 'x', '{')",
        (),
    ),
    "another study's direction is unknown": (
        "UPDATE study_directions SET direction = 'UP' WHERE study_id = 2",
        (),
    ),
}


def session(folder: Path, trials: int) -> StudySession:
    storage = open_storage(f"sqlite:///{folder / 'studies.db'}")
    store = Store(folder / "tuning_db", folder / "shipped")
    return StudySession(cpu(), "tvm", store, Budget(trials=trials), PretendingWorkers(0.0), storage=storage)


@pytest.fixture(scope="module")
def searched_before(tmp_path_factory) -> Path:
    """A storage with a study of three trials, and one of someone else."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRELLIS_OPS_CACHE", str(folder))
        begun = session(folder, 3)
        found = search_study(STEP, begun)
        others = optuna.create_study(storage=begun.storage, study_name="someone else's")
        others.set_user_attr("backend", 3)
    assert len(found.tried) == 3
    begun.storage.engine.dispose()
    return folder / "studies.db"


def commit(again: StudySession, found: Searched) -> None:
    best = finalists_of(found)[0]
    beside = Beside(default=None, eager_seconds=None, ceiling_share=None, trials=len(found.tried))
    timing = Timing((pretended_seconds(best.settings()),) * 3)
    record = winner_record(STEP, best, cpu(), timing, beside, reason="made up", policy="", source="a test")
    again.store.commit(record)


def groups() -> Iterator[tuple[str, ...]]:
    """What is planted together: into each of the three trials something else, and into the study one thing."""
    of_trials = [name for name, (statement, _) in PLANTED.items() if "$TRIAL" in statement]
    yield from (tuple(of_trials[begin : begin + 3]) for begin in range(0, len(of_trials), 3))
    yield from ((name,) for name in PLANTED if name not in of_trials)


def plant(path: Path, names: Iterable[str]) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for trial, name in enumerate(names, start=1):
            statements, values = PLANTED[name]
            for statement in statements.replace("$TRIAL", str(trial)).split(";"):
                assert connection.execute(statement, values).rowcount > 0
    connection.close()


@pytest.mark.parametrize("planted", list(groups()), ids=lambda names: "; ".join(names))
@pytest.mark.filterwarnings("ignore:study .* of this storage is damaged")
def test_a_row_that_nobody_wrote_stops_nothing(searched_before, tmp_path, planted):
    path = tmp_path / "studies.db"
    path.write_bytes(searched_before.read_bytes())
    plant(path, planted)
    again = session(tmp_path, 6)
    lines = list(report.study_lines(again.storage))
    found = search_study(STEP, again)
    right = [each for each in found.tried if each.outcome is Outcome.ok]
    points = sorted(str(sorted(each.settings.items())) for each in right)
    every = sorted(str(sorted(schedule.settings().items())) for schedule in found.space.schedules.values())
    assert points == every, "each point counts once, whatever was planted"
    assert all(each.seconds == pretended_seconds(each.settings) for each in right), "and nothing that was planted does"
    commit(again, found)
    lines += report.study_lines(again.storage)
    (history,) = histories(again.store, again.storage, None)
    assert len(history.trials()) == len(every)
    lines += why_lines(history)
    assert STEP.key() in render_page(again.store, again.storage, None)
    assert "\x1b" not in "".join(lines)
    again.storage.engine.dispose()


def test_what_is_damaged_is_said_once_and_in_the_report(searched_before, tmp_path):
    path = tmp_path / "studies.db"
    path.write_bytes(searched_before.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '\"splendid\"' WHERE key = 'outcome'")
    connection.close()
    storage = open_storage(f"sqlite:///{path}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = "\n".join([*report.study_lines(storage), *report.study_lines(storage)])
    assert [str(each.message) for each in caught] == [
        "study 1 of this storage is damaged: trial 0 counts as not tried: its outcome is 'splendid'"
    ]
    assert "3 trials count as not tried, first number 0: its outcome is 'splendid'" in said
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    assert all(DAMAGE in trial.user_attrs for trial in study.get_trials())
    with sqlite3.connect(path) as connection:
        kept = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    connection.close()
    assert kept == (3,), "the rows stay as they are"
    storage.engine.dispose()
