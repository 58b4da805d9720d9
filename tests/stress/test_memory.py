"""The memory of a process that calls small operators a hundred thousand times."""

from __future__ import annotations

import sys

import pytest

from tests.stress.script import run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

MOST_BYTES = 2 * 2**20
"""What the allocator may keep more after the first tenth of the calls: less than 24 bytes of each step."""

FLAT = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

x = make_inputs(1, 4, 1, 4, 4, 4)
token, states = [t[:, 0] if t.dim() > 1 else t for t in x.args], x.initial_state
offsets = torch.tensor([0, 1, 4])
leaves = x.leaves()

def step():
    trellis_step(*token, states, implementation="tvm")

def chunked():
    trellis_step(*token, states, gradient_state=(kept_k, kept_v), implementation="tvm")

def attention():
    trellis_attention(*x.args, chunk_size=2, initial_state=states, output_final_state=True, implementation="tvm")

def packed():
    trellis_attention(*x.args, chunk_size=2, cu_seqlens=offsets, implementation="tvm")

def gradient():
    y, _ = trellis_attention(*leaves.args, chunk_size=2, implementation="eager")
    torch.autograd.grad(y.sum(), leaves.args)

kept_k, kept_v = (s.clone() for s in states)
for call, times in ((step, 100_000), (chunked, 10_000), (attention, 40_000), (packed, 5_000), (gradient, 500)):
    for _ in range(times // 10):
        call()
    before = resident()
    for _ in range(times):
        call()
    print(call.__name__, resident() - before)
"""


def test_memory_is_flat_over_a_hundred_thousand_calls(tmp_path):
    grown = dict(line.split() for line in run(FLAT, tmp_path).splitlines())
    assert set(grown) == {"step", "chunked", "attention", "packed", "gradient"}
    assert {name: int(size) for name, size in grown.items() if int(size) > MOST_BYTES} == {}
