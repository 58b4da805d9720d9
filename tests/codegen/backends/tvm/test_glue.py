"""The kernels between the products of a block, compiled and run on this CPU, against plain PyTorch in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen.device import NAMED, cpu
from codegen.errors import SizeError
from codegen.input_maps import InputMaps, input_maps_of_key
from codegen.kernels.build import build, build_legal
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.spec import GLUE_OPERATORS, INPUT_OPERATORS, Problem, Spec, bucket, spec_of_key
from tests.tuner.verify.tampering import tampered
from tuner.verify.check import SEED, check
from tuner.verify.inputs.trellis import make_inputs
from tuner.verify.launch import bind
from tuning_db import Outcome

# Whole vectors; and nothing that fills one, as the tests of the operators have it.
PLAIN = {"heads": 2, "dim_k": 32, "dim_v": 64, "slots": 1, "chunk": 1}
PADDED = {"heads": 3, "dim_k": 5, "dim_v": 7, "slots": 1, "chunk": 1}


def spec_of(operator: str, sizes: dict[str, int], maps: InputMaps, dtype: str = "float32") -> Spec:
    inputs = maps if operator in INPUT_OPERATORS else None
    return Spec(Rule(), Problem(operator, batch=1, tokens=1, **sizes, dtype=dtype, inputs=inputs))


def threads(spec: Spec, count: int):
    return replace(default("tvm", spec, cpu()), threads=min(count, cpu().cores))


@pytest.mark.parametrize("operator", GLUE_OPERATORS)
@pytest.mark.parametrize(
    ("sizes", "maps", "dtype", "count", "most"),
    [
        (PLAIN, InputMaps(), "float32", 2, 1e-6),
        (PADDED, InputMaps(2, False, True), "float32", 1, 1e-6),
        (PADDED, InputMaps(), "bfloat16", 2, 4e-3),
        (PADDED, InputMaps(5, True, False), "bfloat16", 2, 4e-3),
    ],
    ids=["plain", "padded", "bfloat16", "taps"],
)
def test_a_kernel_is_as_the_oracle_has_it(operator, sizes, maps, dtype, count, most):
    spec = spec_of(operator, sizes, maps, dtype)
    verdict = check(build(spec, threads(spec, count), cpu()), spec)
    assert verdict.outcome is Outcome.ok, verdict.reason
    assert max(verdict.errors.values()) < most


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("memory_inputs", "tails_after"),
        ("memory_inputs_backward", "dtails"),
        ("memory_inputs_backward", "dtaps_k"),
        ("gated_norm_backward", "dweight"),
        ("rms_norm_backward", "dx"),
        ("add_rms_norm", "added"),
    ],
)
def test_what_is_a_thousandth_off_is_refused(operator, name):
    def wrong(tensors):
        tensors[name].mul_(1.001)

    spec = spec_of(operator, PLAIN, InputMaps())
    verdict = check(tampered(spec, wrong), spec)
    assert verdict.outcome is Outcome.wrong_answer
    assert verdict.reason.startswith(name)


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((actual - expected).norm() < 1e-6 * expected.norm())


@pytest.mark.parametrize("operator", INPUT_OPERATORS)
def test_threads_share_the_tokens_of_a_sequence_and_change_no_bit_of_them(operator):
    """Where a thread begins inside a sequence it reads the inputs before, and pulls the cotangents behind its share."""
    spec = spec_of(operator, PADDED, InputMaps(4, True, True))
    inputs = make_inputs(spec, (9, 0, 2, 1, 30), cpu(), SEED)
    alone = bind(build(spec, threads(spec, 1), cpu()), inputs).outputs_of_run()
    for count in (2, 8):
        # More threads than cores are illegal for their speed alone.
        operator = build_legal(spec, replace(default("tvm", spec, cpu()), threads=count), cpu())
        shared = bind(operator, inputs).outputs_of_run()
        for name, tensor in alone.items():
            # Sums over tokens are put together in another order.
            assert torch.equal(shared[name], tensor) or (name in ("dtaps_q", "dtaps_k") and close(shared[name], tensor))


def test_a_spec_is_found_by_its_key():
    for maps in (InputMaps(), InputMaps(2, False, True), InputMaps(7, True, False)):
        assert input_maps_of_key(maps.key()) == maps
    for operator in GLUE_OPERATORS:
        spec = spec_of(operator, PADDED, InputMaps(3))
        assert spec_of_key(spec.key()) == spec
        assert bucket(spec).problem.heads == 4
    with pytest.raises(ValueError, match="describes no maps"):
        input_maps_of_key("K4")


def test_only_operators_that_make_q_and_k_have_maps_of_inputs():
    with pytest.raises(SizeError, match="inputs of swiglu_gate"):
        Problem("swiglu_gate", inputs=InputMaps())
    with pytest.raises(SizeError, match="inputs of memory_inputs"):
        Problem("memory_inputs")
    with pytest.raises(SizeError, match="taps"):
        InputMaps(1)
    with pytest.raises(SizeError, match="unit_keys"):
        InputMaps(4, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"tile_tokens": 32}, "has no tile"), ({"variant": "fused"}, "no variant 'fused' of swiglu_gate")],
)
def test_what_no_schedule_may_be(changes, reason):
    spec = spec_of("swiglu_gate", PLAIN, InputMaps())
    assert reason in str(why_illegal(spec, replace(default("tvm", spec, cpu()), **changes), cpu()))


@pytest.mark.parametrize("operator", GLUE_OPERATORS)
@pytest.mark.parametrize("device", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
def test_a_default_is_legal_where_vectors_are_narrow_or_wide(operator, device):
    for sizes in (PLAIN, {**PLAIN, "heads": 3072}):
        spec = replace(spec_of(operator, sizes, InputMaps()))
        long = replace(spec, problem=replace(spec.problem, tokens=4096))
        for each in (spec, long):
            assert why_illegal(each, default("tvm", each, NAMED[device]), NAMED[device]) is None


def test_no_gpu_has_such_a_kernel():
    spec = spec_of("gated_norm", PLAIN, InputMaps())
    for backend in ("tvm", "triton"):
        assert why_illegal(spec, default(backend, spec, NAMED["sm_90"]), NAMED["sm_90"]) is not None
