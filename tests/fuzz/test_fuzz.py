"""A minute of fuzzing with fixed seeds; `make fuzz` goes on with fresh ones."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.fuzz import checks
from tests.fuzz.cases import Case, cases
from tests.fuzz.kernels import KINDS, Kernel, draw_kernels
from tests.fuzz.layouts import LAYOUTS, VIEWS
from tests.fuzz.rounds import write_script
from tests.fuzz.tensors import make

ROOT = Path(__file__).resolve().parents[2]
SEED = 2512
FORWARD = [kind for kind in KINDS if kind[1] == "forward"]
KERNELS = draw_kernels(SEED, (*KINDS, *FORWARD))

SPEC = Spec(Rule("silu", "identity", "identity"), Problem("trellis_step", 1, 1, 1, 5, 3, 4, 1))
SMALL = Case(Kernel(SPEC, None), lengths=(1, 1), heads=2)


@pytest.fixture(autouse=True)
def torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernel", KERNELS, ids=[f"{n}-{kernel.spec.key()}" for n, kernel in enumerate(KERNELS)])
def test_random_calls(kernel):
    @settings(
        derandomize=True,
        max_examples=20 if kernel.spec.problem.direction == "forward" else 10,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(kernel))
    def every_case_is_right(case: Case) -> None:
        checks.check(case)

    every_case_is_right()


@pytest.mark.parametrize("name", ["y", "S_k", "S_v"])
def test_a_wrong_value_is_found(name, monkeypatch):
    def wrong_in_one_place(case, call):
        results = {each: x.clone() for each, x in run(case, call).items()}
        results[name].view(-1)[-1] += 1e-3
        return results

    run = checks.run
    checks.check(SMALL)
    monkeypatch.setattr(checks, "run", wrong_in_one_place)
    with pytest.raises(AssertionError, match=f"{name}: relative error"):
        checks.check(SMALL)


def test_a_write_beside_a_state_is_found(monkeypatch):
    def trespasses(case, call):
        results = run(case, call)
        call.tensors["S_k"].as_strided((1,), (1,), 0).zero_()
        return results

    run = checks.run
    case = dataclasses.replace(SMALL, layouts=("contiguous",) * 6 + ("sliced", "contiguous"))
    checks.check(case)
    monkeypatch.setattr(checks, "run", trespasses)
    with pytest.raises(AssertionError, match="beside S_k"):
        checks.check(case)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_keeps_the_shape_and_a_view_the_values(name):
    for shape in ((2, 3, 4, 5), (2, 3), (1, 1, 1), (4,)):
        x = torch.randn(shape)
        held = LAYOUTS[name](x.clone())
        assert held.shape == x.shape and held.dtype == x.dtype
        if name in VIEWS:
            assert torch.equal(held, x)


def test_a_printed_case_runs_again(tmp_path):
    case = dataclasses.replace(SMALL, log_betas=(float("-inf"),))
    path = tmp_path / "case.py"
    write_script(path, case, "as in a round")
    command = [sys.executable, path]
    subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": ".", **_environment()}, check=True, timeout=120)


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_same_case_has_the_same_tensors():
    one, other = make(SMALL), make(SMALL)
    assert all(torch.equal(x, other.tensors[name]) for name, x in one.tensors.items())


def test_no_kernel_is_drawn_from_the_clock():
    assert KERNELS == draw_kernels(SEED, (*KINDS, *FORWARD))
    assert "time" not in inspect.getsource(draw_kernels)
