"""Candidates of the operators of any rule: their inputs, the oracle's answers, and what is found wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from codegen.device import cpu
from codegen.recurrence.tensors import states
from codegen.rule import Rule
from codegen.rules import NAMED
from codegen.spec import Problem, Spec, spec_of_key
from tests.tuner.verify.tampering import compiled, tampered
from trellis_ops.eager import recurrence as eager
from tuner.verify.check import SEED, TOLERANCE, beyond_float32, check, check_inputs, expected
from tuner.verify.inputs.adversarial import CASES, RULE_CASES, adversarial_inputs, cases_of
from tuner.verify.inputs.trellis import make_inputs
from tuner.verify.oracle import oracle
from tuner.workload import parse_spec
from tuning_db import Outcome

UNLIKE = ("gated_deltanet", "rwkv7", "oja", "titans", "omeganet", "infini", "mesanet", "ttt_linear", "lattice", "gsa")
OWN = '{"phi": "quartic(z, a) = (z - a) ** 4", "passes": 1, "view": "unit(z) = z * (sum(z ** 2) + eps) ** -0.5"}'
GAIN = '{"phi": "weighed(z, a, g) = g * (z - a) ** 2", "passes": 1}'


def small(rule: str, operator: str = "memory_attention", chunk: int = 1, direction: str = "forward") -> Spec:
    # A memory that the token itself decays first has chunks of one token.
    chunk = 1 if rule in NAMED and NAMED[rule].rule.decay_first else chunk
    sizes = "tokens=1, heads=2, dim=8" + (", slots=8" if rule in NAMED and NAMED[rule].rule.link != "solve" else "")
    return parse_spec(f"x: rule={rule}, operator={operator}, chunk={chunk}, direction={direction}, {sizes}").spec


@pytest.mark.parametrize("name", NAMED)
def test_inputs_are_what_the_record_asks_for(name):
    spec = small(name, direction="backward", chunk=4)
    x = make_inputs(spec, (40, 0, 3), cpu(), SEED).tensors
    rule = spec.rule
    assert ("log_decay" in x) == (rule.decay != "none")
    assert (x["step_size"] > 0).all()
    if rule.decay != "none":
        assert (x["log_decay"] <= 0).all()
        assert x["log_decay"].ndim == (2 if rule.decay == "scalar" else 3)
    if rule.momentum:
        assert ((x["momentum"] > 0) & (x["momentum"] < 1)).all()
    if rule.normaliser != "none":
        assert all((x[each] > 0).all() for each in ("n", "k", "q"))
    if rule.link == "solve":
        assert torch.equal(x["target"], x["k"])
        assert torch.equal(x["S_k"], x["S_k"].mT)
        assert (torch.linalg.eigvalsh(x["S_k"]) > -1e-6).all()
        assert (x["regulariser"] > 0).all()
    else:
        assert torch.allclose(x["k"].norm(dim=-1), torch.ones(43, 2))
    assert {f"d{each}" for each in ("y", *states(rule))} <= x.keys()


def test_a_target_is_no_copy_of_the_keys_unless_the_rule_says_so():
    x = make_inputs(small("gsa"), (5,), cpu(), SEED).tensors
    assert not torch.equal(x["target"], x["k"])


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", NAMED)
def test_every_hard_input_is_well_conditioned_for_every_named_rule(name, chunk):
    spec = small(name, chunk=chunk)
    for case in RULE_CASES:
        inputs = adversarial_inputs(case, spec, (9, 3), cpu(), SEED)
        right = oracle(spec, inputs)
        if (name, chunk, case.name) == ("moneta", 1, "huge values"):
            assert beyond_float32(right)  # Its steps grow with the square of what is far off: it is not compared.
            continue
        first = {each: inputs[each][:1] for each in states(spec.rule)}
        given = {
            each: x if each in ("gain", "regulariser") or (each == "step_size" and x.ndim == 1) else x[None, :9]
            for each, x in inputs.tensors.items()
            if each not in first
        }
        if case.single:
            given = {each: x[:, :1] if x.shape[:1] == (1,) else x for each, x in given.items()}
        y, _ = eager.attention(spec.rule, given, first, chunk_size=spec.problem.chunk)
        error = (y[0].double() - right["y"][: y.shape[1]]).norm() / right["y"][: y.shape[1]].norm()
        assert error < 1e-4 or right["y"].norm() < 1e-12, (case.name, error)


@pytest.mark.parametrize("name", [*UNLIKE, OWN, GAIN])
@pytest.mark.parametrize("chunk", [1, 4])
def test_right_kernels_pass(name, chunk):
    spec = small(name, chunk=chunk)
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason
    assert checked.errors.keys() == {"y", *states(spec.rule)} == expected(spec).keys()


@pytest.mark.parametrize("direction", ["backward", "backward_first_order"])
@pytest.mark.parametrize("name", ["titans", "ttt_linear", "mesanet", GAIN])
def test_right_gradients_pass(name, direction):
    spec = small(name, chunk=4, direction=direction)
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason
    assert {"dq", "dstep_size", *(f"d{each}" for each in states(spec.rule))} <= checked.errors.keys()
    assert all(error <= 10 * TOLERANCE["float32"] for error in checked.errors.values())


@pytest.mark.parametrize(
    ("name", "operator"),
    [("gated_deltanet", "memory_step"), ("omeganet", "memory_step"), ("ttt_linear", "memory_step_chunked")],
)
def test_right_steps_pass(name, operator):
    spec = small(name, operator)
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason
    assert ("A" in checked.errors) == (name == "ttt_linear")


def test_gradients_of_what_a_head_has_are_of_each_sequence():
    spec = small("ttt_linear", chunk=4, direction="backward")
    inputs = check_inputs(spec, cpu())
    right = oracle(spec, inputs)
    assert right["dgain"].shape == (len(inputs.lengths), 2, 8)
    empty = inputs.lengths.index(0)
    assert not right["dgain"][empty].any()
    assert right["dgain"][empty - 1].any()


@pytest.mark.parametrize(
    ("direction", "name", "launch"),
    [("forward", "P", 0), ("forward", "y", 0), ("backward", "dmomentum", 1), ("backward", "dP", 1)],
)
def test_what_is_a_little_off_is_wrong(direction, name, launch):
    spec = small("titans", direction=direction)
    verdict = check(tampered(spec, lambda arguments: arguments[name].mul_(1.001), launch), spec)
    assert verdict.outcome is Outcome.wrong_answer
    assert verdict.reason.startswith(f"{name}: relative error")


def test_what_was_never_written_is_wrong():
    spec = small("omeganet")
    verdict = check(tampered(spec, lambda arguments: arguments["y"][3].fill_(math.nan)), spec)
    assert verdict.outcome is Outcome.wrong_answer
    assert verdict.reason.startswith("y: 16 of 1264 values are not finite")


def test_a_kernel_that_makes_nan_of_a_closed_gate_is_wrong():
    def product_with_nothing(arguments: dict[str, torch.Tensor]) -> None:
        arguments["S"].add_(0 * arguments["log_decay"].sum())

    spec = small("gated_deltanet")
    verdict = check(tampered(spec, product_with_nothing), spec)
    assert verdict.outcome is Outcome.wrong_answer
    assert verdict.reason.startswith("closed gates: S: ")


def test_a_kernel_of_another_rule_is_wrong():
    comba, deltanet = small("comba"), small("kda")
    other = replace(deltanet, rule=replace(deltanet.rule, decay_first=False))
    assert check(compiled(other), deltanet).outcome is Outcome.wrong_answer
    assert check(compiled(comba), comba).outcome is Outcome.ok


def test_each_kind_of_operator_has_its_cases():
    assert cases_of(small("titans")) == RULE_CASES
    assert cases_of(Spec(Rule(), Problem())) == CASES


def test_a_key_of_a_user_s_rule_is_read_back():
    spec = small(OWN, chunk=3)
    assert spec_of_key(spec.key()) == spec
