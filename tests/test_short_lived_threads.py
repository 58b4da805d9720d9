"""Kernels on several threads, called by many threads of Python: right, with few threads of the system."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from codegen.backends.tvm import thread_owners
from codegen.backends.tvm.thread_owners import lend, may_own, most_owners
from codegen.device import cpu

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc"),
    pytest.mark.skipif(cpu().cores == 1, reason="on one core no kernel has two threads"),
]

PRELUDE = """
import os, sys, threading
import torch
from codegen.backends.tvm import thread_owners
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import explain, memory_update, trellis_attention

inputs = make_inputs(2, 40, 4, 8, 8, 8)
torch.set_num_threads(2)
assert "threads=2" in explain(trellis_attention, *inputs.args, chunk_size=16, implementation="tvm").schedule
torch.set_num_threads(1)
expected, _ = trellis_attention(*inputs.args, chunk_size=16, implementation="eager")
torch.set_num_threads(2)

def check():
    y, _ = trellis_attention(*inputs.args, chunk_size=16, implementation="tvm")
    assert_close(y, expected, 1e-5)

def tasks():
    return len(os.listdir("/proc/self/task"))

def in_threads(works):
    failed = []
    def guarded(work):
        try:
            work()
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [], failed

check()
base = tasks()
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("TVM_", "OMP_"))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_threads_one_after_the_other_do_not_pile_up():
    # Without a limit some 250 are left of these at their most.
    said = run("""
    most = 0
    for _ in range(400):
        in_threads([check])
        most = max(most, tasks())
    print(most - base)
    """)
    workers = cpu().cores - 1
    assert int(said) <= (most_owners() + 3) * (1 + workers)


def test_many_threads_at_once_are_right_and_few():
    said = run("""
    start, called = threading.Barrier(24), threading.Barrier(24)
    counts = []
    def work():
        start.wait()
        for _ in range(20):
            check()
        called.wait()
        counts.append(tasks())
    in_threads([work] * 24)
    print(max(counts) - base)
    """)
    workers = cpu().cores - 1
    assert int(said) <= 24 + most_owners() * workers + 2 * (1 + workers)


def test_a_thread_that_lasts_gets_a_pool_of_its_own_once_there_is_room():
    run("""
    from codegen.backends.tvm import runtime as tvm_runtime
    release, full = threading.Event(), threading.Barrier(thread_owners.most_owners() + 1)
    owning = []
    def hold():
        check()
        full.wait()
        release.wait()
    def last():
        full.wait()
        check()
        owning.append(tvm_runtime._workers.owns)
        release.set()
        for thread in holders:
            thread.join()
        for _ in range(100_000):
            check()
            if tvm_runtime._workers.owns:
                break
        owning.append(tvm_runtime._workers.owns)
    holders = [threading.Thread(target=hold) for _ in range(thread_owners.most_owners())]
    for thread in holders:
        thread.start()
    in_threads([last])
    assert owning == [False, True], owning
    """)


def test_what_a_kernel_refuses_is_refused_in_any_thread_and_tensors_are_let_go():
    run("""
    import gc, weakref
    from codegen.device import cpu
    from trellis_ops.operators import registered
    from trellis_ops.operators.plan import plan
    settings = ("ln_silu", "ln_silu", "identity", 1e-6, 16, "bilevel")
    compiled = plan(registered.attention_request, (*inputs.args, None, None, None), settings, "tvm").operator
    thread_owners._threads.owners = [os.getpid()] * thread_owners.most_owners()
    said, gone = [], []
    def work():
        try:
            compiled.kernels[0](8, *inputs.args)
        except (TypeError, ValueError) as error:
            said.append(type(error))
        mine = make_inputs(2, 40, 4, 8, 8, 8)
        y, _ = trellis_attention(*mine.args, chunk_size=16, implementation="tvm")
        assert_close(y, expected, 1e-5)
        gone.extend(weakref.ref(each) for each in (*mine.args, y))
    in_threads([work])
    assert len(said) == 1
    gc.collect()
    assert [each() is None for each in gone] == [True] * len(gone)
    """)


def test_a_fork_of_a_thread_that_lends_runs_kernels_itself():
    run("""
    thread_owners._threads.owners = [os.getpid()] * thread_owners.most_owners()
    def work():
        check()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                check()
                in_threads([check] * 3)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        check()
    in_threads([work] * 2)
    """)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> thread_owners._Threads:
    """Those of a process that has none yet."""
    made = thread_owners._Threads()
    monkeypatch.setattr(thread_owners, "_threads", made)
    return made


def test_the_main_thread_owns_a_pool_and_others_as_long_as_there_is_room(threads):
    assert may_own()
    release, answers = threading.Event(), []

    def ask() -> None:
        answers.append(may_own())
        release.wait()

    asking = [threading.Thread(target=ask) for _ in range(most_owners() + 2)]
    for each in asking:
        each.start()
    while len(answers) < len(asking):
        release.wait(0.01)
    assert sorted(answers) == [False] * 2 + [True] * most_owners()
    release.set()
    for each in asking:
        each.join()


def test_what_a_hand_raises_is_raised_where_it_was_asked_for(threads):
    def fail() -> None:
        raise ValueError(threading.current_thread().name)

    for _ in range(3):
        with pytest.raises(ValueError, match="trellis-ops kernels"):
            lend(fail)
    assert threads.hands == 1
    assert threads.waiting == 0


def test_as_many_hands_work_at_once_as_there_may_be(threads):
    most = min(thread_owners._MOST_HANDS, most_owners())
    meeting = threading.Barrier(most, timeout=60)
    lending = [threading.Thread(target=lend, args=(meeting.wait,)) for _ in range(3 * most)]
    for each in lending:
        each.start()
    for each in lending:
        each.join()
    assert not meeting.broken
    assert (threads.hands, threads.waiting) == (most, 0)
