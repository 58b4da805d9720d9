"""Forks in the middle of other threads' calls, imports and compiles: parent and child compute on."""

from __future__ import annotations

import sys

import pytest

from tests.stress.script import run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and kernels, need Linux")

CHILDREN = """
steps = {dim: Step(dim) for dim in range(3, 40)}
compiling, stop, failed = [None], threading.Event(), []

def compile_one_after_another():
    try:
        for dim, step in steps.items():
            compiling[0] = dim
            step.check()
            if stop.is_set():
                return
    except BaseException as error:
        failed.append(repr(error))

def in_a_child(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            print(repr(error), flush=True)
        finally:
            os._exit(status)
    for _ in range(1800):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"

"""

FIRST_COMPILE = """
# TVM's import takes most of a first compile.
thread = threading.Thread(target=compile_one_after_another)
thread.start()
drawn = random.Random(SEED)
results = []
for number in range(3):
    time.sleep(drawn.uniform(0.0, 0.6))
    results.append(in_a_child(steps[39].check if number else steps[compiling[0]].check))
stop.set()
thread.join()
assert results == [0, 0, 0], results
assert failed == [], failed
steps[38].check()
"""

FIRST_IMPORT = """
import importlib.abc
looking = threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    # Finds nothing, late; whoever asks holds the lock of the module until then.
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            looking.set()
            time.sleep(0.5)
        return None

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=compile_one_after_another)
stop.set()
thread.start()
assert looking.wait(60), "nobody imported it"
result = in_a_child(steps[3].check)
thread.join()
assert result == 0, result
assert failed == [], failed
"""

CALLS = """
steps[3].check()
def call():
    try:
        while not stop.is_set():
            steps[3].check()
    except BaseException as error:
        failed.append(repr(error))

def call_on_two():
    torch.set_num_threads(min(2, cores))
    steps[3].check()

threads = [threading.Thread(target=call), threading.Thread(target=compile_one_after_another)]
for thread in threads:
    thread.start()
drawn = random.Random(SEED)
results = []
for number in range(8):
    time.sleep(drawn.uniform(0.0, 0.1))
    results.append(in_a_child(call_on_two if number % 2 else steps[3].check))
stop.set()
for thread in threads:
    thread.join()
assert results == [0] * 8, results
assert failed == [], failed
steps[3].check()
"""


def test_children_forked_in_the_middle_of_a_first_compile(tmp_path):
    run(CHILDREN + FIRST_COMPILE.replace("SEED", "1"), tmp_path)


@pytest.mark.parametrize("module", ["codegen.backends.tvm.compile", "tvm_ffi", "tvm", "jinja2"])
def test_a_child_forked_while_another_thread_looks_for_a_module(module, tmp_path):
    run(CHILDREN + FIRST_IMPORT.replace("MODULE", repr(module)), tmp_path)


def test_children_forked_in_the_middle_of_calls(tmp_path):
    run(CHILDREN + CALLS.replace("SEED", "1"), tmp_path)
