"""Real processes: one that is killed, and two that tune at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from codegen.device import cpu
from tests.tuner.conftest import FINAL_SECONDS, UPDATE
from tuner.budget import Budget
from tuner.cli import main
from tuner.search.study import StudySession, search_study
from tuner.studies.owner import NAMELESS_FOR, SILENT_FOR, is_lost, this_process
from tuner.studies.studies import open_storage, outcomes, release_lost_trials, take
from tuner.studies.telling import ended, fail, is_given_up, release, tell
from tuner.workers.pool import Workers
from tuning_db import Store, default_store

ROOT = Path(__file__).resolve().parents[2]
UPDATE_TEXT = "operator=memory_update, tokens=32, heads=2, dim=8, slots=8, chunk=8"
PATIENCE_SECONDS = 300

COMPILERS = 1
TUNER = f"""
import functools, sys
from tuner import cli
from tuner.__main__ import run
cli.Workers = functools.partial(cli.Workers, compilers={COMPILERS})
cli.StudySession = functools.partial(cli.StudySession, final_seconds={FINAL_SECONDS})
sys.exit(run())
"""
"""`python -m tuner`, with fewer processes and short finals."""


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TUNER, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def tuning(url: str, *specs: str, budget: str) -> Sequence[str]:
    texts = [part for spec in specs for part in ("--spec", spec)]
    return ("tune", "--no-slots", "--no-offline", "--budget", budget, "--storage", url, *texts)


def finished(storage: optuna.storages.RDBStorage) -> int:
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return sum("outcome" in trial.user_attrs for study in studies for trial in study.get_trials(deepcopy=False))


def test_a_killed_tuner_loses_at_most_the_trials_that_had_begun(tmp_path: Path, workers: Workers):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = open_storage(url)
    process = start(*tuning(url, f"update: {UPDATE_TEXT}", budget="10000"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while finished(storage) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(storage)
    assert before >= 3

    session = StudySession(cpu(), "tvm", Store(tmp_path / "db"), Budget(trials=before + 2), workers, storage=storage)
    again = search_study(UPDATE, session)
    (study,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=study, storage=storage).get_trials()
    assert len(again.tried) == before + 2
    assert sum(trial.state is TrialState.RUNNING for trial in trials) == 0
    begun = 1 + COMPILERS  # One that was measured, the others compiled ahead.
    assert sum(trial.state is TrialState.FAIL for trial in trials) <= begun
    tried = [each.settings for each in again.tried]
    assert all(tried.count(settings) == 1 for settings in tried)


def test_a_terminated_tuner_says_that_it_can_go_on(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = open_storage(url)
    process = start(*tuning(url, f"update: {UPDATE_TEXT}", budget="10000"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while finished(storage) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said


@pytest.mark.usefixtures("shared_workers")
def test_two_tuners_share_a_study_and_a_database(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = open_storage(url)
    common = f"update: {UPDATE_TEXT}"
    own = ["a: operator=trellis_step, tokens=1, chunk=1, heads=1, dim=4, slots=4"]
    own += ["b: operator=trellis_step, tokens=1, chunk=1, heads=1, dim=6, slots=4"]
    other = start(*tuning(url, common, own[0], budget="3"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not optuna.get_all_study_names(storage) and time.monotonic() < deadline:
        time.sleep(0.02)
    # The second is this process, which has begun already: it tries its first candidate beside the other's first.
    assert main([*tuning(url, common, own[1], budget="3")]) == 0
    said, _ = other.communicate()
    assert other.returncode == 0, said
    operators = [record.spec.partition("/")[0] for record in default_store().records(cpu().key(), layer="user")]
    assert sorted(operators) == ["memory_update-forward", "trellis_step-forward", "trellis_step-forward"]
    for name in optuna.get_all_study_names(storage):
        trials = optuna.load_study(study_name=name, storage=storage).get_trials()
        tried = [trial.params for trial in trials if "outcome" in trial.user_attrs]
        assert len(tried) >= 3
        assert all(tried.count(settings) == 1 for settings in tried)


def test_a_trial_whose_process_died_before_it_wrote_its_name_is_released_at_once(tmp_path: Path):
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=storage)
    study.ask()
    assert release_lost_trials(study, storage) == 1
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL]
    take(study, storage, {})
    assert release_lost_trials(study, storage) == 0, "this process lives"


def test_without_a_lock_a_trial_without_a_name_is_given_time():
    storage = optuna.storages.RDBStorage("sqlite://")
    study = optuna.create_study(storage=storage)
    study.ask()
    assert release_lost_trials(study, storage) == 0
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING]


def test_a_trial_is_lost_when_its_process_is_gone():
    now = datetime.now()
    host, boot, namespace, process, started = this_process().split("|")
    here = f"{host}|{boot}|{namespace}"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert not is_lost(this_process(), now, now)
    assert is_lost(f"{here}|{dead.pid}|1", now, now)
    assert is_lost(f"{here}|{process}|{started}0", now, now), "a process id that was given out again"
    assert not is_lost(None, now, now)
    assert is_lost(None, now - NAMELESS_FOR - timedelta(seconds=1), now)


@pytest.mark.parametrize("place", range(3))
def test_a_process_that_cannot_be_looked_up_from_here_is_given_time(place):
    # Two containers of one host name: what runs under an id here says nothing about the other.
    now, parts = datetime.now(), this_process().split("|")
    parts[place], parts[3] = "another", "999999999"
    owner = "|".join(parts)
    assert not is_lost(owner, now - SILENT_FOR / 2, now)
    assert is_lost(owner, now - SILENT_FOR - timedelta(seconds=1), now)
    assert is_lost(owner, now + SILENT_FOR + timedelta(seconds=1), now), "a clock that is wrong makes nobody wait"
    assert not is_lost(owner, now - timedelta(hours=9), now, beats=True), "in another time zone, and alive"


@pytest.mark.parametrize("owner", ["", "x", "a|b|c", "a|b|c|d|e", "||||", "host|123|456", 7, [], {}, True])
def test_an_owner_that_no_version_wrote_is_given_time(owner):
    now = datetime.now()
    assert not is_lost(owner, now, now)
    assert is_lost(owner, now - SILENT_FOR - timedelta(seconds=1), now)


def test_a_process_in_another_pid_namespace_of_this_host_is_not_taken_for_dead():
    code = "from tuner.studies.owner import this_process; print(this_process(), flush=True); input()"
    command = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", code]
    if shutil.which("unshare") is None or subprocess.run([*command[:4], "true"], check=False).returncode != 0:
        pytest.skip("a PID namespace cannot be made here")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        owner, now = running.stdout.readline().strip(), datetime.now()
        lost = is_lost(owner, now, now)
        running.communicate("\n")
    assert owner.split("|")[0] == this_process().split("|")[0], "it has this host's name"
    assert not lost


@pytest.mark.parametrize("moment", ["before", "between"])
def test_what_is_said_of_a_trial_that_others_gave_up_is_dropped(tmp_path, moment):
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=storage)
    trial = study.ask()

    class GivenUpMeanwhile(dict):
        def items(self):
            yield "outcome", "ok"
            fail(study, trial.number)

    if moment == "before":
        fail(study, trial.number)
    assert not tell(study, trial, GivenUpMeanwhile() if moment == "between" else {"outcome": "ok"}, values=1.0)
    assert is_given_up(study, trial)
    release(study, trial)
    fail(study, trial.number)
    assert study.get_trials()[0].state is TrialState.FAIL
    assert ended(study.get_trials()) == []
    assert not outcomes(study.get_trials())
