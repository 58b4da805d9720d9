"""Candidates that hang, crash, take all memory or are wrong: real ones, in real processes.

For each the search goes on, and the trial names the kind; for each kind but a timeout the finals are held without it,
and the winner is right.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codegen import render
from codegen.backends import backend as compiler
from codegen.device import cpu
from codegen.kernels.build import build, operator_digest
from codegen.schedules.registry import default
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Problem
from tests.tuner.workers.faulty_templates import FAULTS, at_fault, spec_of, write_faulty_templates
from tuner.budget import Budget
from tuner.search.finals import judge
from tuner.search.study import StudySession, search_study
from tuner.space.space import space_of
from tuner.studies.studies import open_storage
from tuner.verify.check import check
from tuner.workers.limits import Limits, peak_bytes
from tuner.workers.pool import Workers
from tuner.workers.worker import Candidate, Finals
from tuning_db import Outcome, Record, Store, utc_now


def limits() -> Limits:
    """Short ones, and memory that is more than this process ever had: the peak told of a worker is never less.

    A slow machine hands out two thirds of a GiB of memory per second.
    """
    peak_here = peak_bytes(resource.getrusage(resource.RUSAGE_SELF))
    memory = max(2**30, peak_here * 3 // 2)
    return Limits(compile_seconds=30.0, run_seconds=8.0 + 1.5 * memory / 2**30, memory_bytes=memory)


ENDS = {
    "endless_loop": ("timeout", "checking took longer than"),
    "segmentation_fault": ("crashed", "crashed with SIGSEGV while checking"),
    "abort": ("crashed", "crashed with SIGABRT while checking"),
    "exit": ("crashed", "ended with exit code 3 while checking"),
    "all_memory": ("out_of_memory", "MiB it may allocate, while checking"),
    "wrong_result": ("wrong_answer", "y: relative error"),
    "wrong_sometimes": ("unstable", "differ in y"),
    "nan_in_a_tail_row": ("wrong_answer", "y: 1 of"),
    "unwritten_output": ("wrong_answer", "never written"),
    "compiler_never_ends": ("timeout", "compiling took longer than"),
    "compiler_takes_all_memory": ("out_of_memory", "MemoryError"),
    "compiler_aborts": ("crashed", "crashed with SIGABRT while compiling"),
    "does_not_render": ("compile_error", "'missing' is undefined"),
    "does_not_compile": ("compile_error", "broken"),
}

# A candidate that never ends would take its limit once more.
ONE_OF_EACH_KIND = ("segmentation_fault", "all_memory", "wrong_result", "wrong_sometimes", "compiler_aborts")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers that render from templates with all faults in them: one that compiles ahead, one that measures."""
    folder = tmp_path_factory.mktemp("faulty") / "templates"
    write_faulty_templates(folder)
    with pytest.MonkeyPatch.context() as patch, Workers(limits(), compilers=1) as workers:
        patch.setattr(render, "TEMPLATES", folder)
        render._environment.cache_clear()
        render.template_digest.cache_clear()
        yield workers
    render._environment.cache_clear()
    render.template_digest.cache_clear()


def session_of(workers: Workers, folder: Path, fault: str) -> StudySession:
    """A session in whose searches the schedule at fault comes second."""
    store = Store(folder / "tuning_db", folder / "shipped")
    storage = open_storage(f"sqlite:///{folder / 'studies.db'}")
    session = StudySession(cpu(), "tvm", store, Budget(trials=3), workers, storage=storage)
    spec = spec_of(fault)
    store.commit(
        Record(
            spec=spec.key(),
            bucket=spec.key(),
            device="another-machine",
            backend="tvm",
            template_digest="others",
            schedule=at_fault(default("tvm", spec, cpu()).settings()),
            outcome=Outcome.ok,
            seconds=1.0,
            created=utc_now(),
        )
    )
    return session


@pytest.mark.parametrize("fault", FAULTS)
def test_a_candidate_at_fault_costs_itself_only(faulty: Workers, tmp_path: Path, fault: str):
    session, spec = session_of(faulty, tmp_path, fault), spec_of(fault)
    searched = search_study(spec, session)
    bad = searched.space.at(at_fault(searched.space.default.settings()))
    (failed,) = [each for each in searched.tried if each.outcome is not Outcome.ok]
    assert failed.settings == bad.settings()
    outcome, reason = ENDS[fault]
    assert failed.outcome.value == outcome, failed.reason
    assert reason in failed.reason
    assert len(searched.tried) == min(3, len(searched.space.schedules)), "the study goes on"

    known = session.store.failures.known(
        spec=spec.key(),
        device=cpu().key(),
        backend="tvm",
        template_digest=operator_digest(Problem("trellis_step"), "tvm"),
        toolchain=compiler("tvm").toolchain(),
    )
    (record,) = known.values()
    assert (record.schedule, record.outcome.value) == (bad.settings(), outcome)


@pytest.mark.parametrize("fault", ONE_OF_EACH_KIND)
def test_the_finals_are_held_without_a_candidate_at_fault(faulty: Workers, fault: str):
    spec = spec_of(fault)
    space = space_of(spec, "tvm", cpu())
    bad = space.at(at_fault(space.default.settings()))
    schedules = [bad, *(schedule for schedule in space.schedules.values() if schedule != bad)][:3]
    timings = faulty.finals(
        Finals(tuple(Candidate(spec, cpu(), "tvm", each.settings()) for each in schedules), 0.05, 5)
    )
    assert timings.keys() == set(range(1, len(schedules)))
    verdict = judge({schedules[place].key(): each for place, each in timings.items()}, schedules[1].key())
    assert check(build(spec, space.schedules[verdict.winner], cpu()), spec).outcome is Outcome.ok


def test_a_candidate_that_failed_is_not_tried_again(faulty: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    session, spec = session_of(faulty, tmp_path, "wrong_result"), spec_of("wrong_result")
    search_study(spec, session)
    tried = []
    monkeypatch.setattr(
        faulty, "submit", lambda candidate: tried.append(candidate) or Workers.submit(faulty, candidate)
    )
    elsewhere = replace(session, storage=open_storage(f"sqlite:///{tmp_path / 'others.db'}"))
    again = search_study(spec, elsewhere)
    (failed,) = [each for each in again.tried if each.outcome is not Outcome.ok]
    assert failed.outcome is Outcome.wrong_answer
    assert failed.reason.startswith("known since 20")
    assert failed.settings not in [candidate.settings for candidate in tried]
    assert len(tried) == len(again.tried) - 1


def test_a_worker_that_is_killed_by_hand_costs_its_candidate(faulty: Workers, tmp_path: Path):
    session, spec = session_of(faulty, tmp_path, "endless_loop"), spec_of("endless_loop")
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.02):
            for worker in list(faulty._serving.values()):
                if worker.phase.name == "checking" and worker._elapsed > 1.0:
                    os.kill(worker.pid, signal.SIGKILL)
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    searched = search_study(spec, session)
    stop.set()
    killer.join()
    (failed,) = [each for each in searched.tried if each.outcome is not Outcome.ok]
    assert failed.outcome is Outcome.killed
    assert "ended with SIGKILL, by hand" in failed.reason
    assert not (tmp_path / "tuning_db" / "failures").exists(), "which is no fault of the candidate"
    assert len(searched.tried) == min(3, len(searched.space.schedules))


def test_a_worker_that_is_killed_while_it_waits_is_replaced(faulty: Workers):
    candidate = Candidate(spec_of("abort"), cpu(), "tvm", _default("abort"))
    assert faulty.evaluate(candidate).outcome is Outcome.ok
    for worker in [*faulty._serving.values(), *faulty._compilers]:
        os.kill(worker.pid, signal.SIGKILL)
    assert faulty.evaluate(candidate).outcome is Outcome.ok


def test_what_a_worker_started_ends_with_it(faulty: Workers):
    candidate = Candidate(spec_of("compiler_never_ends"), cpu(), "tvm", at_fault(_default("compiler_never_ends")))
    before = set(faulty._compilers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faulty, "limits", Limits(compile_seconds=4.0))
        for worker in before:
            worker.stop()
            del faulty._compilers[worker]
        job = faulty.submit(candidate)
        (worker,) = faulty._compilers
        assert faulty.first_compiled([job]).compiled.outcome is Outcome.timeout
    deadline = time.monotonic() + 5.0
    while sessions_of(worker.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sessions_of(worker.pid) == [], "the process that the compiler started lives on"


def test_an_interruption_ends_the_running_candidate(faulty: Workers, monkeypatch: pytest.MonkeyPatch):
    candidate = Candidate(spec_of("endless_loop"), cpu(), "tvm", at_fault(_default("endless_loop")))
    job = faulty.first_compiled([faulty.submit(candidate)])

    def interrupted() -> None:
        if any(worker.phase.name == "checking" for worker in faulty._serving.values()):
            raise KeyboardInterrupt

    monkeypatch.setattr("tuner.workers.pool.stop_if_interrupted", interrupted)
    pids = [worker.pid for worker in faulty._serving.values()]
    with pytest.raises(KeyboardInterrupt):
        faulty.evaluate(job)
    monkeypatch.undo()
    assert not any(sessions_of(pid) for pid in pids)


def _default(fault: str) -> dict[str, int | str]:
    width = min(16, cpu().vector_bits // 32)
    return TvmSchedule("recurrent", width, width, accumulators=4, threads=1).settings()


def sessions_of(leader: int) -> list[int]:
    """The processes of the session that `leader` began, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found
