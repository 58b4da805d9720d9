"""A minute of fuzzing with fixed seeds; `make fuzz` goes on with fresh ones."""

from __future__ import annotations

import dataclasses
import random
import runpy
import sys

import pytest
import torch

from codegen.device import cpu
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.fuzz import __main__ as fuzz
from tests.fuzz import checks
from tests.fuzz.cases import INPUTS, Case
from tests.fuzz.expectations import expected
from tests.fuzz.found import FOUND
from tests.fuzz.kernels import KINDS, Kernel, chosen, draw_kernel, draw_kernels
from tests.fuzz.layouts import LAYOUTS, VIEWS
from tests.fuzz.random_calls import check_random_calls
from tests.fuzz.rounds import write_script
from tests.fuzz.rules.drawn import KINDS as OF_RULES
from tests.fuzz.tensors import make
from trellis_ops import explain, trellis_step
from trellis_ops.dispatch import served

SEED = 2512
KERNELS = draw_kernels(SEED, (*KINDS, *OF_RULES))

SPEC = Spec(Rule("silu", "identity", "identity"), Problem("trellis_step", 1, 1, 1, 5, 3, 4, 1))
SMALL = Case(Kernel(SPEC, None), lengths=(1, 1), heads=2)

MOMENTUM = Rule("huber", passes=1, momentum=True)


def of_rule(operator: str, chunk: int) -> Kernel:
    spec = Spec(MOMENTUM, Problem(operator, 1, 1, 1, dim_k=5, dim_v=3, slots=3, chunk=chunk))
    return Kernel(spec, dataclasses.replace(default("tvm", spec, cpu()), threads=1))


OPERATORS = {"memory_attention": 4, "memory_step": 1, "memory_step_chunked": 1, "memory_pool": 4}
OF_RULE = [of_rule(operator, chunk) for operator, chunk in OPERATORS.items()]


@pytest.fixture(autouse=True)
def torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernel", KERNELS, ids=[f"{n}-{kernel.spec.key()}" for n, kernel in enumerate(KERNELS)])
def test_random_calls(kernel):
    check_random_calls(kernel, 12 if kernel.spec.problem.direction == "forward" else 6)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name):
    with chosen(FOUND[name].kernel):
        checks.check(FOUND[name])


@pytest.mark.parametrize("name", ["y", "S", "P"])
@pytest.mark.parametrize("kernel", OF_RULE, ids=lambda kernel: kernel.spec.problem.operator)
def test_a_wrong_value_of_a_rule_is_found(kernel, name, monkeypatch):
    def wrong_in_one_place(case, call):
        results = {each: x.clone() for each, x in run(case, call).items()}
        results[name].view(-1)[-1] += 1e-3
        return results

    run, case = checks.run, Case(kernel, lengths=(5, 5) if "_step" not in kernel.spec.problem.operator else (1, 1))
    with chosen(kernel):
        checks.check(case)
        monkeypatch.setattr(checks, "run", wrong_in_one_place)
        with pytest.raises(AssertionError, match=f"{name}: relative error"):
            checks.check(case)


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
    case = dataclasses.replace(SMALL, log_decays=(float("-inf"),))
    path = tmp_path / "case.py"
    write_script(path, case, "as in a round")
    assert runpy.run_path(str(path))["case"] == case


def test_cotangents_are_perturbed_like_all_inputs():
    """Without writes and forgetting, the gradient of a state that nothing reads is the cotangent."""
    problem = dataclasses.replace(SPEC.problem, operator="memory_update", dim_v=SPEC.problem.dim_k)
    kernel = Kernel(dataclasses.replace(SPEC, problem=problem), None)
    case = Case(kernel, log_decays=(0.0,), step_sizes=(0.0,), wanted=("S_k",), cotangents="states")
    call = make(case)
    exact, noisy = (expected(case, call, noise=noise)["dS_k"] for noise in (0.0, 1e-3))
    assert torch.equal(exact, call.incoming["S"].double())
    assert 1e-4 < float((noisy - exact).norm() / exact.norm()) < 1e-2


def test_what_cancels_by_luck_in_one_rounding_is_no_find():
    """With one slot u of l2_silu is exactly 0, and in float32 a rounding that one evaluation of the oracle may lack."""
    rule = Rule("l2_silu", "silu", "silu", 1e-6)
    problem = Problem("trellis_step_chunked", 1, 1, 1, dim_k=12, dim_v=32, slots=1, chunk=1)
    case = Case(Kernel(Spec(rule, problem), None), step_sizes=(8.0,), scales=(1.0, 1.0, 10.0))
    with chosen(case.kernel):
        checks.check(case)


def test_every_fourth_process_interprets_triton(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    started = []

    class Child:
        pid = 0

        def __init__(self, command, env):
            started.append((int(command[4]), int(command[5]), int(command[6]), env["TRITON_INTERPRET"]))

        def wait(self):
            return 0

    monkeypatch.setattr(fuzz, "FOLDER", tmp_path)
    monkeypatch.setattr(fuzz.subprocess, "Popen", Child)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seed", "1", "--first", "12", "--rounds", "22"])
    assert fuzz.main() == 0
    assert started == [(12, 4, 60, "0"), (16, 8, 60, "0"), (24, 8, 10, "1"), (32, 2, 60, "0")]


def test_the_same_case_has_the_same_tensors():
    one, other = make(SMALL), make(SMALL)
    assert all(torch.equal(x, other.tensors[name]) for name, x in one.tensors.items())


def test_a_schedule_that_was_drawn_is_the_one_that_runs():
    kernel = draw_kernel(random.Random(3), ("trellis_step", "forward"), "tvm", own_choice=False)
    case = Case(kernel, lengths=(1,), heads=2)
    t = make(case).tensors
    rule = kernel.spec.rule
    with chosen(kernel):
        torch.set_num_threads(kernel.threads)
        found = explain(
            trellis_step,
            *(t[name] for name in INPUTS),
            (t["S_k"], t["S_v"]),
            **{"phi": rule.phi, "link": rule.link, "out": rule.out, "phi_eps": rule.phi_eps},
            gradient_state=(t["G_k"], t["G_v"]) if "G_k" in t else None,
        )
    assert found.schedule == kernel.schedule.key()


@pytest.mark.parametrize("kind", OF_RULES, ids=":".join)
def test_a_schedule_of_a_rule_that_was_drawn_is_the_one_that_runs(kind, monkeypatch):
    kernel = draw_kernel(random.Random(3), kind, "tvm", own_choice=False)
    built, build = [], served.build_legal

    def noted(spec, schedule, device):
        built.append(schedule)
        return build(spec, schedule, device)

    monkeypatch.setattr(served, "build_legal", noted)
    direction = kernel.spec.problem.direction
    with chosen(kernel):
        checks.check(Case(kernel, lengths=(1,), wanted=() if direction == "forward" else ("q",)))
    assert kernel.schedule in built
