"""Many threads that compile and call at once, and many that live for one call."""

from __future__ import annotations

from tests.stress.script import run

EIGHT_SPECS = """
def update():
    x = make_inputs(1, 9, 2, 6, 6, 5)
    right = reference.update(x.k, x.target, x.log_decay, x.step_size, rule=rule, chunk_size=4)
    def check():
        given = memory_update(x.k, x.target, x.log_decay, x.step_size, phi_eps=1e-2, chunk_size=4, implementation="tvm")
        for one, other in zip(given, right):
            assert float((one - other).norm()) <= 1e-5 * float(other.norm())
    return check

def readout(transpose):
    x = make_inputs(1, 9, 2, 6, 6, 5)
    gates = x.log_decay, x.step_size
    states, codes, _ = (t.float() for t in reference.update(x.k, x.target, *gates, rule=rule, chunk_size=4))
    read = x.target if transpose else x.q
    options = {"chunk_size": 4, "transpose": transpose}
    right = reference.readout(read, x.k, states, codes, *gates, **options)
    def check():
        given = memory_readout(read, x.k, states, codes, *gates, **options, implementation="tvm")
        assert float((given - right).norm()) <= 1e-5 * float(right.norm())
    return check

checks = [*(Step(dim).check for dim in (3, 4, 5, 6, 7)), update(), readout(False), readout(True)]
failed, start = [], threading.Barrier(len(checks))

def work(number):
    try:
        start.wait()
        for turn in range(20 * len(checks)):
            checks[(number + turn) % len(checks)]()
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=work, args=(number,)) for number in range(len(checks))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert failed == [], failed
"""


def test_eight_threads_compile_and_call_eight_specs_at_once(tmp_path):
    run(EIGHT_SPECS, tmp_path)


# TVM makes a pool for every thread that calls a kernel of several, so not as many threads as there might be.
SHORT_LIVED = """
torch.set_num_threads(min(2, cores))
step, failed = Step(5), []
step.check()

def work():
    try:
        step.check()
    except BaseException as error:
        failed.append(repr(error))

for together in [1] * 40 + [4] * 10:
    threads = [threading.Thread(target=work) for _ in range(together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert failed == [], failed
step.check()
"""


def test_threads_that_live_for_one_call(tmp_path):
    run(SHORT_LIVED, tmp_path)
