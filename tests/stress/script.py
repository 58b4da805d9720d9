"""What the scripts of these tests share: a small call with a known result. Each runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 400

PRELUDE = """
import os, random, signal, sys, threading, time
import torch
from codegen.rule import Rule
from tests.support.inputs import make_inputs
from trellis_ops import memory_readout, memory_update, reference, trellis_attention, trellis_step

torch.set_num_threads(1)  # Torch's own threads do not survive a fork.
cores = len(os.sched_getaffinity(0))
rule = Rule(phi_eps=1e-2)

class Step:
    # A call of trellis_step with D_k = `dim`, which has a kernel of its own, and what it should give.
    def __init__(self, dim):
        self.inputs = make_inputs(2, 1, 2, dim, 7, 9)
        self.token = self.inputs.token(0)
        self.y, self.states = reference.step(*self.token, self.inputs.initial_state, rule=rule)

    def call(self):
        states = tuple(s.clone() for s in self.inputs.initial_state)
        y = trellis_step(*self.token, states, phi_eps=1e-2, implementation="tvm")
        return y, states

    def check(self):
        y, states = self.call()
        for one, other in zip((y, *states), (self.y, *self.states)):
            assert float((one - other).norm()) <= 1e-5 * float(other.norm())

"""


def run(code: str, cache: Path, **environment: str) -> str:
    """What a script prints; its kernels are compiled into `cache`.

    Raises:
        AssertionError: it failed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TVM_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        env=kept | {"TRELLIS_OPS_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
