"""What is in effect: one row for each spec, marked where no call takes it; numbers that cannot be are marked too."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from codegen.device import cpu
from tests.support.winner_record import winner_record
from tests.tuner.conftest import STEP, UPDATE
from tests.tuner.studies.fleet.member import PretendingWorkers
from tuner.budget import Budget
from tuner.records.history import histories
from tuner.report import report
from tuner.report.page import render_page
from tuner.report.why import why_lines
from tuner.search.finals import Verdict
from tuner.search.standing import standings, why_passed_over
from tuner.search.strategy import right
from tuner.search.study import StudySession, search_study
from tuner.search.tune import Tuned
from tuner.space.space import space_of
from tuner.studies.studies import open_storage
from tuning_db import Store

EARLIER, LATER = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
OTHER_TEMPLATES = "0123456789abcdef"
SCHEDULE = space_of(UPDATE, "tvm", cpu()).default


def record(**changes):
    return winner_record(UPDATE, SCHEDULE, **({"created": EARLIER} | changes))


@pytest.fixture
def storage(tmp_path: Path):
    opened = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    yield opened
    opened.engine.dispose()


def test_the_shipped_and_the_users_record_of_one_spec_are_one_row(tmp_path, storage):
    shipped = Store(tmp_path / "shipped", tmp_path / "none")
    shipped.commit(record(created=LATER, template_digest=OTHER_TEMPLATES, seconds=2.0))
    store = Store(tmp_path / "user", tmp_path / "shipped")
    store.commit(record(seconds=1e-3))
    assert len(store.records()) == 2
    (history,) = histories(store, storage, None)
    assert (history.layer, history.record.seconds, history.passed_over) == ("user", 1e-3, None)
    said = "\n".join(report.known_lines(store, None))
    assert said.count(UPDATE.key()) == 1
    assert "not in effect" not in said
    assert render_page(store, storage, None).count("<tr data-spec=") == 1


def test_where_nothing_is_in_effect_the_newest_is_shown_and_marked(tmp_path, storage):
    store = Store(tmp_path / "user", tmp_path / "none")
    store.put([record(template_digest=OTHER_TEMPLATES), record(template_digest=OTHER_TEMPLATES[::-1], created=LATER)])
    (one,) = standings(store.records())
    assert one.record.created == LATER
    assert "not in effect: it was made of other templates" in "\n".join(report.known_lines(store, None))
    (history,) = histories(store, storage, None)
    assert "not in effect: it was made of other templates" in list(why_lines(history))[1]
    assert 'data-effect="no"' in render_page(store, storage, None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"device": "nvidia-h200", "toolchain": {}}, None),
        ({"spec": "a spec of another version"}, "this version cannot use it"),
        ({"backend": "another"}, "this version cannot use it"),
        ({"schedule": SCHEDULE.settings() | {"threads": True}}, "this version cannot use it"),
        ({"schedule": SCHEDULE.settings() | {"tile_tokens": 64, "variant": "fused"}}, "its schedule is illegal"),
        ({"toolchain": {"apache-tvm": "0.1"}}, "another toolchain (apache-tvm 0.1, here "),
    ],
)
def test_why_no_call_takes_a_record(changes, why):
    found = why_passed_over(record(**changes))
    assert found is None if why is None else why in found


def test_a_share_above_the_ceiling_is_marked(store, storage):
    above = record(ceiling_share=1.31)
    assert report.performance_text(above).endswith(
        "131%? of the ceiling (more than the ceiling cannot be, a probe of it was disturbed)"
    )
    assert "?" not in report.performance_text(record(ceiling_share=1.0))
    store.commit(above)
    assert 'data-ceiling="1.31">131%?<' in render_page(store, storage, None)
    verdict = Verdict(SCHEDULE.key(), 0.0, 0.01, "default kept")
    tuned = Tuned("mine", above, verdict, SCHEDULE.key(), SCHEDULE.key(), {}, 1, True)
    assert "More than the ceiling cannot be, a probe of it was disturbed for mine: tune again" in "\n".join(
        report.tuned_lines([tuned])
    )


def test_another_that_was_faster_in_the_search_is_explained(store, storage):
    session = StudySession(cpu(), "tvm", store, Budget(trials=4), PretendingWorkers(0.0), storage=storage)
    found = search_study(STEP, session)
    (fastest, best), (slower, second) = right(found.tried)[:2]
    store.commit(winner_record(STEP, found.space.at(second)))
    (history,) = histories(store, storage, None)
    line = next(line for line in why_lines(history) if "the best other" in line)
    assert f"{fastest / slower:.2f}x the winner's" in line
    assert line.endswith("; less there and not in the finals, which time both in turn")
    store.commit(winner_record(STEP, found.space.at(best)))
    (history,) = histories(store, storage, None)
    assert not any("less there" in line for line in why_lines(history))


@pytest.mark.parametrize("changes", [{"policy": "cpu-cold: other"}, {"toolchain": {"apache-tvm": "0.1"}}])
def test_a_study_of_another_compiler_or_policy_is_not_a_records(store, storage, changes):
    session = StudySession(cpu(), "tvm", store, Budget(trials=2), PretendingWorkers(0.0), storage=storage)
    search_study(STEP, session)
    written = winner_record(STEP, space_of(STEP, "tvm", cpu()).default)
    for each, has in ((written, True), (replace(written, **changes), False)):
        store.commit(each)
        (history,) = histories(store, storage, None)
        assert (history.study is not None) == has
