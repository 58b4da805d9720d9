"""Many processes, one study, on a real PostgreSQL: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from codegen.device import cpu
from tests.tuner.studies.fleet import member, postgresql
from tuner.space.sampler import held_point
from tuner.space.space import space_of
from tuner.studies.studies import open_storage
from tuner.studies.telling import RELEASED

PROGRAMS = postgresql.programs()
WORKERS, PATIENCE_SECONDS = 3, 240

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed: apt-get install postgresql")


@pytest.fixture
def url() -> Iterator[str]:
    assert PROGRAMS is not None
    with postgresql.server(PROGRAMS) as served:
        yield served


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.tuner.studies.fleet.member", url, str(folder), "0.05"]
    # Of several samplers that use all cores, each waits for the threads of the others.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe, root = subprocess.PIPE, Path(__file__).parents[4]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root, env=environment)


def study_of(url: str) -> optuna.Study:
    storage = open_storage(url)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (names := optuna.get_all_study_names(storage)):
        assert time.monotonic() < deadline, "no worker made the study"
        time.sleep(0.1)
    (name,) = names
    return optuna.load_study(study_name=name, storage=storage)


def some_may_take_a_trial(url: str, study: optuna.Study) -> bool:
    """Whether nobody stands still with the lock of those that take trials, for which the others would wait."""
    engine = open_storage(url).engine
    key = zlib.crc32(study.study_name.encode())
    for _ in range(20):
        with engine.connect() as connection:
            if connection.execute(sqlalchemy.text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar():
                return True
        time.sleep(0.02)
    return False


def stop_in_mid_trial(worker: subprocess.Popen[str], study: optuna.Study, url: str) -> int:
    """Stop `worker` while it runs a trial, which cannot end meanwhile; the trial's number."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        os.kill(worker.pid, signal.SIGSTOP)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if f"|{worker.pid}|" in trial.user_attrs.get("owner", "") and some_may_take_a_trial(url, study):
                return trial.number
        os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("the worker never ran a trial")


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def points_and_fastest() -> tuple[list[dict[str, object]], str]:
    """The settings of every point, and the key of the one that any number of searches must find."""
    schedules = list(space_of(member.SPEC, "tvm", cpu()).schedules.values())
    fastest = min(schedules, key=lambda schedule: member.pretended_seconds(schedule.settings()))
    return [schedule.settings() for schedule in schedules], fastest.key()


def test_workers_that_pretend_to_measure_lose_nothing_when_one_is_killed_and_one_declared_dead(url, tmp_path):
    """What the second says of the trial it had begun comes too late and is dropped; it keeps its search."""
    killed, stopped, other = (start(url, tmp_path / str(number)) for number in range(WORKERS))
    study = study_of(url)
    of_stopped, of_killed = (stop_in_mid_trial(each, study, url) for each in (stopped, killed))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_until(lambda: study.get_trials()[of_stopped].state is TrialState.FAIL, "nobody missed the one that stopped")
    os.kill(stopped.pid, signal.SIGCONT)
    said = []
    for worker in (stopped, other):
        output, errors = worker.communicate(timeout=PATIENCE_SECONDS)
        assert worker.returncode == 0, errors
        said.append(output.strip())
    trials, (points, fastest) = study.get_trials(), points_and_fastest()
    assert said == [fastest] * 2
    done = [trial.params for trial in trials if trial.state is TrialState.COMPLETE]
    assert sorted(map(str, done)) == sorted(map(str, points)), "every point once, and none twice"
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    for lost in (of_killed, of_stopped):
        assert trials[lost].state is TrialState.FAIL, "what came too late does not count"
        assert held_point(trials[lost]) in done, "what they were at was tried by another"
    assert RELEASED not in trials[of_killed].user_attrs
    owners = {trial.user_attrs["owner"] for trial in trials if trial.state is TrialState.COMPLETE}
    assert len(owners) >= WORKERS - 1, "all of them worked"
