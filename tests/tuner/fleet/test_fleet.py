"""Many processes, one study, on a real PostgreSQL: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.tuner.fleet import member, postgresql
from tuner.sampler import RELEASED, held_point
from tuner.studies import open_storage

PROGRAMS = postgresql.programs()
WORKERS, PATIENCE_SECONDS = 4, 240

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed: apt-get install postgresql")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    assert PROGRAMS is not None
    with postgresql.server(PROGRAMS) as served:
        yield served


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.tuner.fleet.member", url, str(folder), "0.05"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )


def study_of(url: str) -> optuna.Study:
    storage = open_storage(url)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (names := optuna.get_all_study_names(storage)):
        assert time.monotonic() < deadline, "no worker made the study"
        time.sleep(0.1)
    (name,) = names
    return optuna.load_study(study_name=name, storage=storage)


def kill_in_mid_trial(worker: subprocess.Popen[str], study: optuna.Study) -> int:
    """Kill `worker` while it runs a trial, which cannot end meanwhile; the trial's number."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        os.kill(worker.pid, signal.SIGSTOP)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if f"|{worker.pid}|" in trial.user_attrs.get("owner", ""):
                os.kill(worker.pid, signal.SIGKILL)
                worker.wait()
                return trial.number
        os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("the worker never ran a trial")


def test_four_workers_that_pretend_to_measure_lose_nothing_when_one_is_killed(url, tmp_path):
    workers = [start(url, tmp_path / str(number)) for number in range(WORKERS)]
    study = study_of(url)
    lost = kill_in_mid_trial(workers[0], study)
    said = []
    for worker in workers[1:]:
        output, errors = worker.communicate(timeout=PATIENCE_SECONDS)
        assert worker.returncode == 0, errors
        said.append(output.strip())
    alone = member.run(f"sqlite:///{tmp_path / 'alone.db'}", tmp_path / "alone", 0.0)
    points = [schedule.settings() for schedule in alone.space.schedules.values()]
    trials = study.get_trials()
    done = [trial.params for trial in trials if trial.state is TrialState.COMPLETE]
    assert sorted(map(str, done)) == sorted(map(str, points)), "every point once, and none twice"
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert trials[lost].state is TrialState.FAIL
    assert RELEASED not in trials[lost].user_attrs
    assert held_point(trials[lost]) in done, "what the killed worker was at was tried by another"
    assert set(said) == {member.winner(alone).key()}
    owners = {trial.user_attrs["owner"] for trial in trials if trial.state is TrialState.COMPLETE}
    assert len(owners) >= WORKERS - 1, "all of them worked"
