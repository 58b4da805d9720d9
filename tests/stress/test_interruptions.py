"""Ctrl-C in the middle of calls and of compiles, in a process of its own: the next call is right."""

from __future__ import annotations

import sys

import pytest

from tests.stress.script import run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels need Linux")

PRELUDE = """
def interrupted(work, seconds, patience=60.0):
    # Calls `work` until a real SIGINT, `seconds` from now, ends it; how long the first call took if it came to an end.
    begun, first = time.monotonic(), None
    try:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
        while time.monotonic() < begun + seconds + patience:
            work()
            first = first or time.monotonic() - begun
    except KeyboardInterrupt:
        return first
    raise AssertionError("the interruption was lost")

drawn = random.Random(SEED)
"""

CALLS = """
x = make_inputs(2, 300, 4, 16, 16, 16)
leaves = x.leaves()
torch.set_num_threads(min(2, cores))
right, _ = trellis_attention(*x.args, chunk_size=16, phi_eps=1e-2, implementation="eager")

def attention():
    return trellis_attention(*x.args, chunk_size=16, phi_eps=1e-2, implementation="tvm")[0]

def gradient():
    y, _ = trellis_attention(*leaves.args, chunk_size=16, phi_eps=1e-2, implementation="eager")
    return torch.autograd.grad(y.sum(), leaves.args)

step = Step(5)
step.check()
attention()
incoming = gradient()
for number in range(18):
    interrupted((step.call, attention, gradient)[number % 3], drawn.uniform(0.0, 0.02))
    step.check()
    assert float((attention() - right).norm()) <= 1e-5 * float(right.norm())
    if number % 3 == 2:
        assert all(torch.equal(one, other) for one, other in zip(gradient(), incoming))
"""

COMPILES = """
# The first call imports TVM; it is interrupted early, the others anywhere in a compile.
seconds = FIRST
for dim in range(3, 7):
    step = Step(dim)
    interrupted(step.call, drawn.uniform(0.0, seconds))
    step.check()
    whole = Step(20 + dim)
    begun = time.monotonic()
    whole.check()
    seconds = time.monotonic() - begun
"""


def test_calls_are_interrupted(tmp_path):
    run(PRELUDE.replace("SEED", "1") + CALLS, tmp_path)


@pytest.mark.parametrize("seed", [1, 2])
def test_compiles_are_interrupted(seed, tmp_path):
    run(PRELUDE.replace("SEED", str(seed)) + COMPILES.replace("FIRST", "2.0"), tmp_path)
