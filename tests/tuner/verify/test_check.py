from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.rule import MAPS, Rule
from codegen.schedules.registry import default
from codegen.spec import OPERATORS, Problem, Spec
from tests.tuner.conftest import TRAIN
from tests.tuner.verify.tampering import compiled, names_of, tampered
from tuner.verify.check import (
    SEED,
    TOLERANCE,
    allowed_digest,
    beyond_float32,
    check,
    check_inputs,
    compare,
    expected,
    relative_error,
)
from tuner.verify.inputs.adversarial import CASES, adversarial_inputs
from tuner.verify.inputs.trellis import make_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle
from tuning_db import Outcome


def small(operator: str, **changes: object) -> Spec:
    chunk = 1 if operator.startswith("trellis_step") else 4
    sizes = {"tokens": 8, "heads": 2, "dim_k": 8, "dim_v": 8, "slots": 8, "chunk": chunk}
    rule = Rule(step_size=str(changes.pop("step_size", "head")))
    return Spec(rule, Problem(operator, **(sizes | changes)))


@pytest.mark.parametrize("phi", MAPS)
def test_every_hard_input_is_within_float32_for_the_maps_that_come_along(phi):
    """What is beyond it is not compared."""
    spec = small("trellis_attention")
    spec = replace(spec, rule=replace(spec.rule, phi=phi))
    for case in CASES:
        assert not beyond_float32(oracle(spec, adversarial_inputs(case, spec, (19, 5), cpu(), SEED))), case.name


@pytest.mark.parametrize("value", [1e39, -1e39, float("inf"), float("nan")])
def test_what_float32_cannot_hold_is_beyond_it(value):
    finite = torch.tensor([3e38, -3e38], dtype=torch.float64)
    assert not beyond_float32({"y": finite})
    assert beyond_float32({"y": finite, "S_k": torch.tensor([0.0, value], dtype=torch.float64)})


def test_a_right_kernel_passes_whose_map_overflows_on_huge_values():
    spec = small("trellis_attention")
    spec = replace(spec, rule=replace(spec.rule, phi="cube_that_overflows(z) = z ** 3"))
    verdict = check(compiled(spec), spec)
    assert (verdict.outcome, verdict.reason) == (Outcome.ok, "")


@pytest.mark.parametrize("operator", OPERATORS)
def test_right_kernels_pass(operator):
    spec = small(operator)
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason
    assert checked.errors.keys() == expected(spec).keys()
    assert all(0 <= error <= TOLERANCE["float32"] for error in checked.errors.values())


FIRST_ORDER = small("trellis_attention", direction="backward_first_order", step_size="token")


@pytest.mark.parametrize("spec", [TRAIN, FIRST_ORDER], ids=["backward", "backward_first_order"])
def test_right_gradients_pass(spec):
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason
    names = ("q", "k", "v", "target", "log_decay", "step_size", "S_k", "S_v")
    assert checked.errors.keys() == {"y", "S_k", "S_v"} | {f"d{name}" for name in names}
    assert all(error <= 10 * TOLERANCE["float32"] for error in checked.errors.values())


def test_a_wrong_gradient_is_wrong_though_every_output_is_right():
    checked = check(tampered(TRAIN, lambda arguments: arguments["dk"].mul_(1.001), launch=1), TRAIN)
    assert checked.outcome is Outcome.wrong_answer
    assert checked.reason.startswith("dk: relative error")


def test_gradients_of_the_second_order_are_not_those_of_the_first():
    first_order = replace(TRAIN, problem=replace(TRAIN.problem, direction="backward_first_order"))
    checked = check(compiled(TRAIN), first_order)
    assert checked.outcome is Outcome.wrong_answer
    assert checked.errors["y"] <= TOLERANCE["float32"] < checked.errors["dk"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_have_their_own_tolerance(dtype):
    spec = small("trellis_attention", dtype=dtype, step_size="token", dim_v=6, slots=5)
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason
    assert TOLERANCE["float32"] < checked.errors["y"] <= TOLERANCE[dtype]


STEP = small("trellis_step")
ATTENTION = small("trellis_attention")
HARD = ((19, 5), cpu(), SEED)


@pytest.mark.parametrize("spec", [STEP, ATTENTION], ids=["step", "fused"])
def test_an_output_that_is_not_written_is_wrong(spec):
    checked = check(tampered(spec, lambda arguments: arguments["y"][-1].fill_(float("nan"))), spec)
    assert checked.outcome is Outcome.wrong_answer
    assert "y: 16 of" in checked.reason


@pytest.mark.parametrize("spec", [STEP, ATTENTION], ids=["step", "fused"])
def test_a_wrong_state_is_wrong_though_every_output_is_right(spec):
    checked = check(tampered(spec, lambda arguments: arguments["S_v"][0, 1].mul_(1.001)), spec)
    assert checked.outcome is Outcome.wrong_answer
    assert checked.errors["y"] <= TOLERANCE["float32"]
    assert "S_v: relative error" in checked.reason


def test_one_wrong_token_of_a_sequence_is_wrong():
    checked = check(tampered(ATTENTION, lambda arguments: arguments["y"][40, 1, 0].add_(0.1)), ATTENTION)
    assert checked.outcome is Outcome.wrong_answer


def test_a_kernel_that_changes_its_inputs_is_wrong():
    checked = check(tampered(STEP, lambda arguments: arguments["k"].mul_(2)), STEP)
    assert checked.outcome is Outcome.wrong_answer
    assert "wrote to its inputs k" in checked.reason


def test_a_kernel_that_writes_beside_an_output_is_wrong():
    def trespass(arguments: Any) -> None:
        y = arguments["y"]
        torch.as_strided(y, (1,), (1,), y.storage_offset() + y.numel()).fill_(0.0)

    checked = check(tampered(STEP, trespass), STEP)
    assert checked.outcome is Outcome.wrong_answer
    assert "wrote beside its outputs y" in checked.reason


def test_a_kernel_whose_runs_differ_is_unstable():
    runs = []

    def race(arguments: Any) -> None:
        runs.append(None)
        arguments["y"].mul_(1.0 + 1e-6 * len(runs))

    checked = check(tampered(STEP, race), STEP)
    assert checked.outcome is Outcome.unstable
    assert "differ in y" in checked.reason


def test_scratch_memory_holds_nan_before_a_program_uses_it():
    spec = small("trellis_attention")
    split = replace(default("tvm", spec, cpu()), variant="split", tile_tokens=4, vector_width=4)
    seen = []
    program = build(spec, split, cpu())
    readout = program.kernels[2]

    def watch(programs: int, *arguments: Any) -> None:
        named = dict(zip(names_of(program, 2), arguments, strict=True))
        of_updates = ("chunk_states_k", "codes_k", "chunk_states_v", "codes_v")
        seen.extend(bool(torch.isfinite(named[name]).all()) for name in of_updates)
        readout(programs, *arguments)

    watched = replace(program, kernels=(lambda *_: None, program.kernels[1], watch))
    checked = check(watched, spec)
    assert checked.outcome is Outcome.wrong_answer
    assert seen[:4] == [False, False, True, True]


def test_compare_wants_every_tensor_within_tolerance():
    wanted = {"y": torch.ones(4, dtype=torch.float64), "S": torch.ones(2, dtype=torch.float64)}
    good = {"y": torch.full((4,), 1.000001), "S": torch.ones(2)}
    assert compare(good, wanted, 1e-5).outcome is Outcome.ok
    assert compare(good, wanted, 1e-7).outcome is Outcome.wrong_answer
    assert compare(good | {"S": torch.tensor([1.0, float("inf")])}, wanted, 1e-5).outcome is Outcome.wrong_answer
    assert relative_error(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == pytest.approx(1.25)


@pytest.mark.parametrize("operator", ["trellis_attention", "trellis_step", "trellis_step_chunked"])
def test_right_kernels_of_one_slot_pass(operator):
    spec = small(operator, slots=1)
    checked = check(compiled(spec), spec)
    assert checked.outcome is Outcome.ok, checked.reason


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_that_only_hard_inputs_show_is_found(case):
    """A kernel that is off where its inputs are those of `case`, and right on the ragged sequences."""
    hard = adversarial_inputs(case, replace(ATTENTION, problem=replace(ATTENTION.problem, batch=1, tokens=1)), *HARD)

    def tamper(arguments: Any) -> None:
        if arguments["step_size"].equal(hard["step_size"]) and arguments["cu_seqlens"].equal(hard.sequences.cu_seqlens):
            off = arguments["log_decay"].equal(hard["log_decay"]) and arguments["target"].equal(hard["target"])
            arguments["S_v"].mul_(1.01 if off else 1.0)

    checked = check(tampered(ATTENTION, tamper), ATTENTION)
    assert checked.outcome is Outcome.wrong_answer
    assert checked.reason.startswith((case.name, "zero state")), checked.reason


def test_the_cases_are_what_they_are_called():
    plain = make_inputs(ATTENTION, (19, 5), cpu(), SEED)
    cases = {case.name: adversarial_inputs(case, ATTENTION, (19, 5), cpu(), SEED) for case in CASES}
    assert cases["one token"].lengths == (1, 1)
    assert not cases["zero state"]["S_k"].any()
    assert float(cases["hard forgetting"]["log_decay"].double().exp().float().min()) < 1e-38
    assert cases["one slot"]["target"].count_nonzero(dim=-1).max() == 1
    assert cases["one slot"]["S_k"].count_nonzero(dim=-2).max() == 1
    assert cases["huge values"]["S_v"].equal(plain["S_v"] * 100.0)
    assert cases["tiny values"]["target"].equal(plain["target"] * 0.01)


@pytest.mark.parametrize(
    ("phi", "link", "slots", "dim", "chunk"),
    [
        *((phi, "identity", 64, 64, 64) for phi in ("identity", "silu", "ln_silu", "softmax")),
        *((phi, "ln_silu", 64, 64, 64) for phi in ("identity", "silu", "ln_silu", "softmax")),
        ("ln_silu", "ln_silu", 128, 64, 16),
        ("softmax", "identity", 64, 128, 1),
    ],
)
def test_rounding_does_not_decide_what_stands_in_one_slot_and_nothing_overflows(phi, link, slots, dim, chunk):
    case = next(case for case in CASES if case.name == "one slot")
    sizes = {"slots": slots, "dim_k": dim, "dim_v": dim, "chunk": chunk, "heads": 2}
    spec = Spec(Rule(phi=phi, link=link), Problem(tokens=1, dtype="float16", **sizes))
    inputs, rounded = (adversarial_inputs(case, spec, (67, 5), cpu(), SEED) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for name in ("q", "k", "v", "target", "S_k", "S_v"):
        values = rounded[name]
        off = torch.rand(values.shape, generator=generator, dtype=torch.float64) * 2 - 1
        values.copy_(values.double() * (1 + 2**-8 * off))
    right, given = oracle(spec, inputs), oracle(spec, rounded)
    errors = {name: relative_error(given[name], right[name]) for name in right}
    assert 0 < max(errors.values()) < TOLERANCE["bfloat16"], errors
    assert right["y"].abs().max() < torch.finfo(torch.float16).max


def test_changed_inputs_of_a_check_change_the_digest_of_what_is_allowed(monkeypatch):
    before = allowed_digest()
    monkeypatch.setattr(inspect, "getsource", lambda module: f"other inputs of {module.__name__}")
    assert allowed_digest() != before


def test_what_cancels_to_nothing_is_held_to_a_share_of_its_ordinary_size():
    wanted, given = {"y": torch.full((4,), 1e-9, dtype=torch.float64)}, {"y": torch.zeros(4)}
    assert compare(given, wanted, 1e-4).outcome is Outcome.wrong_answer
    assert compare(given, wanted, 1e-4, {"y": 1.0}).outcome is Outcome.ok
    assert compare({"y": torch.full((4,), 1e-6)}, wanted, 1e-4, {"y": 1.0}).outcome is Outcome.wrong_answer
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")


def test_the_inputs_of_a_check_are_ragged_and_the_same_every_time():
    spec = small("trellis_attention", chunk=16)
    one, two = check_inputs(spec, cpu()), check_inputs(spec, cpu())
    assert len({*one.lengths}) == len(one.lengths) > 2
    assert 1 in one.lengths
    assert any(length % 16 for length in one.lengths)
    assert max(one.lengths) > 2 * 16
    assert all(torch.equal(one[name], two[name]) for name in one.tensors)
    assert float(one["log_decay"].min()) < -4 < float(one["log_decay"].max()) <= 0


def test_the_oracle_of_attention_is_that_of_its_parts():
    spec = small("trellis_attention", step_size="token")
    whole = oracle(spec, check_inputs(spec, cpu()))
    update = replace(spec, problem=replace(spec.problem, operator="memory_update"))
    part = oracle(update, check_inputs(update, cpu()))
    torch.testing.assert_close(part["S"], whole["S_k"])


def test_a_launch_can_be_repeated_from_the_same_states():
    spec = small("trellis_attention")
    inputs = make_inputs(spec, (8, 8), cpu())
    launch = bind(compiled(spec), inputs)
    launch.run()
    first = {name: tensor.clone() for name, tensor in launch.outputs.items()}
    launch.reset_states()
    assert torch.equal(launch.outputs["S_k"], inputs["S_k"])
    launch.run()
    assert all(torch.equal(first[name], tensor) for name, tensor in launch.outputs.items())
