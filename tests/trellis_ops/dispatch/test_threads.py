"""Kernels compute on the threads that torch may use when they are called."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import trellis_ops
from codegen.device import cpu
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.support.inputs import make_inputs
from tests.support.winner_record import winner_record
from trellis_ops import explain, trellis_attention
from trellis_ops.dispatch import resolve
from tuning_db import Store, TuningDatabaseWarning

ROOT = Path(__file__).resolve().parents[3]
SIZES = (1, 24, 2, 16, 16, 8)
SPEC = Spec(Rule(), Problem("trellis_attention", *SIZES, chunk=8))
MOST = min(2, cpu().cores)

# Heads as many as threads: the default's variant is then the same for one thread and for two, and so are the results.
SCRIPT = """
import torch
from tests.support.inputs import make_inputs
from trellis_ops import explain, trellis_attention
from trellis_ops.operators import registered
from trellis_ops.operators.plan import plan
inputs = make_inputs(1, 24, 2, 16, 16, 8)
settings = ("ln_silu", "ln_silu", "identity", 1e-6, 8, "bilevel")
results = []
for threads in (1, 2, 1):
    torch.set_num_threads(threads)
    y, _ = trellis_attention(*inputs.args, chunk_size=8, implementation="tvm")
    compiled = plan(registered.attention_request, (*inputs.args, None, None, None), settings, "tvm").operator
    assert compiled.schedule.key() == explain(trellis_attention, *inputs.args, chunk_size=8).schedule
    results.append(y)
    print(compiled.schedule.threads)
assert all(torch.equal(y, results[0]) for y in results)
"""


@pytest.fixture(autouse=True)
def torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def winner(tmp_path, monkeypatch):
    """A record of the default on two threads, where there are two."""
    made = Store(tmp_path / "user", tmp_path / "shipped")
    monkeypatch.setattr(resolve, "default_store", lambda: made)
    monkeypatch.delenv(resolve.VARIABLE, raising=False)
    trellis_ops.forget()
    schedule = dataclasses.replace(default("tvm", SPEC, cpu()), threads=MOST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningDatabaseWarning)
        made.commit(winner_record(SPEC, schedule))
    yield schedule
    trellis_ops.forget()


def ask():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningDatabaseWarning)
        return explain(trellis_attention, *make_inputs(*SIZES).args, chunk_size=8)


def test_a_winner_is_cut_to_the_threads_of_torch_and_stays_the_winner(winner):
    torch.set_num_threads(1)
    found = ask()
    assert found.origin == "exact winner"
    assert found.schedule == dataclasses.replace(winner, threads=1).key()
    assert len(found.notes) == (MOST > 1)


def test_a_winner_keeps_its_threads_when_torch_has_more(winner):
    torch.set_num_threads(MOST + 3)
    found = ask()
    assert found.schedule == winner.key()
    assert found.notes == ()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_default_is_that_of_a_machine_with_so_many_cores(threads, tmp_path, monkeypatch):
    monkeypatch.setattr(resolve, "default_store", lambda: Store(tmp_path / "user", tmp_path / "shipped"))
    monkeypatch.delenv(resolve.VARIABLE, raising=False)
    trellis_ops.forget()
    torch.set_num_threads(threads)
    fewer = dataclasses.replace(cpu(), cores=min(cpu().cores, threads))
    assert ask().schedule == default("tvm", SPEC, fewer).key()
    trellis_ops.forget()


@pytest.mark.parametrize("threads", [3, 5, 6])
def test_numbers_of_threads_that_nobody_tuned_are_legal(threads):
    machine = dataclasses.replace(cpu(), cores=threads)
    schedule = dataclasses.replace(default("tvm", SPEC, machine), threads=threads)
    assert why_illegal(SPEC, schedule, machine) is None


def test_a_process_that_changes_its_mind(tmp_path):
    environment = {**os.environ, "TRELLIS_OPS_TUNING_DB": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    environment.pop(resolve.VARIABLE, None)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    scheduled = [int(line) for line in ran.stdout.splitlines()]
    assert scheduled == [1, MOST, 1]
