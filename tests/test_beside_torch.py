"""Operators beside everything else in a process, which is a real one: pinning, spinning, forks, loaders, threads."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from codegen.backends.tvm import runtime as tvm_runtime
from codegen.device import cpu
from codegen.kernels.build import build
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case, check_attention

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 240

PRELUDE = """
import os, sys, threading, time
import torch
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import trellis_attention

cores = len(os.sched_getaffinity(0))
inputs = make_inputs(2, 40, 4, 8, 8, 8)
torch.set_num_threads(1)  # While eager runs: torch's own threads do not survive a fork either.
expected, _ = trellis_attention(*inputs.args, chunk_size=16, implementation="eager")
torch.set_num_threads(cores)

def check():
    y, _ = trellis_attention(*inputs.args, chunk_size=16, implementation="tvm")
    assert_close(y, expected, 1e-5)

def tasks():
    return len(os.listdir("/proc/self/task"))

def in_a_child(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    return "hangs"

"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads and their cores are read from /proc")


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("TVM_", "OMP_"))} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_nothing_is_pinned():
    run("""
    allowed = os.sched_getaffinity(0)
    check()
    later = []
    thread = threading.Thread(target=lambda: later.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    assert later == [allowed]
    for task in os.listdir("/proc/self/task"):
        assert os.sched_getaffinity(int(task)) == allowed, task
    """)


@linux
def test_nothing_spins_after_a_call():
    # TVM's own default spins for longer than these pauses, which would then cost as much processor time as they last.
    run("""
    check()
    spent = slept = 0.0
    for _ in range(50):
        check()
        processor, wall = time.process_time(), time.perf_counter()
        time.sleep(0.02)
        spent += time.process_time() - processor
        slept += time.perf_counter() - wall
    assert spent < 0.3 * slept, (spent, slept)
    """)


@linux
def test_a_forked_child_may_call_after_its_parent_did():
    run("""
    before = tasks()
    check()
    assert (tasks() > before) is (cores > 1)
    assert in_a_child(check) == 0

    def in_a_thread_too():
        check()
        failed = []
        def work():
            try:
                check()
            except BaseException as error:
                failed.append(error)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert failed == []
        assert in_a_child(check) == 0  # And so may its own child.

    assert in_a_child(in_a_thread_too) == 0
    check()
    """)


@linux
def test_a_forked_child_may_be_the_first_to_call():
    run("""
    assert in_a_child(check) == 0
    check()
    """)


@linux
def test_a_fork_waits_while_another_thread_compiles_but_not_for_ever():
    run("""
    from codegen.interruption import unforked
    unforked._LONGEST_WAIT_SECONDS = 2.0
    held, done, forked = threading.Event(), threading.Event(), []
    def hold(seconds):
        with unforked.unforked():
            held.set()
            done.wait(seconds)
            forked.append(False)
    first = threading.Thread(target=hold, args=(0.5,))
    first.start()
    held.wait()
    assert in_a_child(lambda: check() if forked else 1 / 0) == 0
    first.join()
    forked.clear(), held.clear()
    threading.Thread(target=hold, args=(None,), daemon=True).start()
    held.wait()
    assert in_a_child(lambda: 1 / 0 if forked else check()) == 0
    done.set()
    """)


@linux
def test_a_fork_that_waited_goes_before_what_another_thread_does_next():
    run("""
    from codegen.interruption import unforked
    held, wait, went_on = threading.Event(), threading.Event(), []
    def work():
        with unforked.unforked():
            with unforked.unforked():
                held.set()
            wait.wait(0.5)
        went_on.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    assert in_a_child(lambda: 1 / 0 if went_on else check()) == 0
    thread.join()
    assert went_on == [True]
    """)


@linux
def test_a_fork_in_the_middle_of_work_does_not_wait_for_another_that_waits_for_that_work():
    run("""
    from codegen.interruption import unforked
    unforked._LONGEST_WAIT_SECONDS = 300.0
    other = threading.Thread(target=lambda: in_a_child(lambda: None))
    with unforked.unforked():
        other.start()
        time.sleep(0.3)
        assert in_a_child(check) == 0
    other.join(60)
    assert not other.is_alive()
    """)


@linux
def test_workers_of_a_data_loader_call_the_operator():
    run("""
    class Read(torch.utils.data.Dataset):
        def __len__(self):
            return 6
        def __getitem__(self, index):
            y, _ = trellis_attention(*inputs.args, chunk_size=16, implementation="tvm")
            return y * index

    check()
    loader = torch.utils.data.DataLoader(
        Read(), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=120
    )
    for index, y in enumerate(loader):
        assert_close(y[0], expected * index, 1e-5)
    assert index == 5
    check()
    """)


@linux
def test_several_threads_call_at_once_the_first_time_too(tmp_path):
    code = """
    failed, start = [], threading.Barrier(4)
    def work(number):
        try:
            mine = make_inputs(2, 40, 4, 8, 8, 8, seed=number)
            wanted, _ = trellis_attention(*mine.args, chunk_size=16, implementation="eager")
            start.wait()
            for _ in range(20):
                y, _ = trellis_attention(*mine.args, chunk_size=16, implementation="tvm")
                assert_close(y, wanted, 1e-5)
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    """
    run(code, TRELLIS_OPS_CACHE=str(tmp_path))


@linux
def test_the_number_of_torch_s_threads_may_change_at_any_time():
    run("""
    for threads in (cores, 1, cores + 3, 1, cores):
        torch.set_num_threads(threads)
        check()
    """)


@pytest.mark.parametrize("workers", [1, 2, cpu().cores, cpu().cores + 3])
def test_any_number_of_workers_does_all_tasks(workers):
    case = Case(heads=5)
    spec = case.spec
    made = build(spec, dataclasses.replace(default("tvm", spec, cpu()), variant="fused"), cpu())
    # With `threads=1` the kernel leaves the pool as it is, whatever the number of its tasks.
    left_alone = dataclasses.replace(made, kernels=tuple(dataclasses.replace(each, threads=1) for each in made.kernels))
    tvm_runtime.limit_workers(workers)
    check_attention(lambda spec: left_alone, case)


def test_a_kernel_wakes_as_many_threads_as_its_schedule_says():
    case = Case(heads=5)
    number = tvm_runtime.load().get_global_func("runtime.NumThreads")
    for threads in (n for n in (2, 4) if n <= cpu().cores):
        schedule = dataclasses.replace(default("tvm", case.spec, cpu()), variant="fused", threads=threads)
        made = build(case.spec, schedule, cpu())
        check_attention(lambda spec, made=made: made, case)
        assert number() == threads
