from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.tuning_db.examples import record
from tuning_db import Failures, Outcome, Record, Store, settings_key
from tuning_db import failures as module

TOOLCHAIN = {"apache-tvm": "0.27.0"}


def failure(**changes: object) -> Record:
    usual = {"outcome": Outcome.crashed, "reason": "crashed with SIGSEGV", "seconds": None, "toolchain": TOOLCHAIN}
    return replace(record(), **(usual | changes))


def known(failures: Failures, of: Record, **changes: object) -> dict:
    asked = {"spec": of.spec, "device": of.device, "backend": of.backend, "template_digest": of.template_digest}
    return failures.known(**(asked | {"toolchain": TOOLCHAIN} | changes))


def test_a_failure_is_found_by_all_that_winners_are_found_by_and_its_toolchain(tmp_path: Path):
    failures, one = Failures(tmp_path), failure()
    assert failures.remember(one)
    assert known(Failures(tmp_path), one) == {settings_key(one.schedule): one}
    for name, other in (("spec", "another"), ("backend", "triton"), ("template_digest", "ab12")):
        assert known(failures, one, **{name: other}) == {}
    assert known(failures, one, toolchain={"apache-tvm": "0.28.0"}) == {}


def test_one_failure_of_a_candidate_is_kept_and_of_each_schedule_one(tmp_path: Path):
    failures = Failures(tmp_path)
    failures.remember(failure(schedule={"threads": 1, "width": 4}))
    failures.remember(failure(schedule={"width": 4, "threads": 1}, outcome=Outcome.timeout))
    failures.remember(failure(schedule={"width": 8, "threads": 1}))
    found = known(failures, failure())
    assert sorted(each.outcome.value for each in found.values()) == ["crashed", "timeout"]


@pytest.mark.parametrize("outcome", [Outcome.killed, Outcome.illegal, Outcome.ok])
def test_what_says_nothing_about_a_candidate_is_not_kept(tmp_path: Path, outcome: Outcome):
    assert not Failures(tmp_path).remember(failure(outcome=outcome, seconds=1.0))
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_go_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST", 3)
    failures = Failures(tmp_path)
    for number in range(5):
        failures.remember(failure(schedule={"threads": number}, created=f"2025-01-0{number + 1}T00:00:00Z"))
    assert sorted(dict(key)["threads"] for key in known(failures, failure())) == [2, 3, 4]


def test_failures_are_no_winners_and_no_devices(tmp_path: Path):
    store = Store(tmp_path, tmp_path / "shipped")
    store.failures.remember(failure())
    assert store.records() == ()
    assert store.devices() == ()
    assert Store(None, tmp_path / "shipped").failures.remember(failure()) is False


def test_a_damaged_file_is_a_warning_and_nothing_known(tmp_path: Path):
    failures = Failures(tmp_path)
    failures.remember(failure())
    (path,) = (tmp_path / "failures").glob("*.json")
    path.write_text("{")
    with pytest.warns(UserWarning, match="not a file of this database"):
        assert known(Failures(tmp_path), failure()) == {}
