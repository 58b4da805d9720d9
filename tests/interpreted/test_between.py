"""What stands between the products of a block, by its Triton kernels, against plain PyTorch in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from codegen.device import NAMED, cpu
from codegen.kernels.between.arguments import FEATURES_OF_PROGRAM
from codegen.kernels.build import build
from codegen.layer import Layer
from codegen.rule import MAPS, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.schedules.triton_between import WIDEST
from codegen.spec import Problem, Spec, bucket, spec_of_key
from tuner.verify.check import OF_HARD_INPUTS, TOLERANCE, compare
from tuner.verify.inputs.adversarial import adversarial_inputs, cases_of
from tuner.verify.inputs.trellis import Inputs, make_inputs
from tuner.verify.launch import Launch, bind
from tuner.verify.oracle import oracle
from tuning_db import Outcome

PLAIN: dict[str, Any] = {"heads": 2, "dim_k": 8, "dim_v": 8, "slots": 8, "chunk": 4}
ODD: dict[str, Any] = {"heads": 3, "dim_k": 5, "dim_v": 7, "slots": 13, "chunk": 1}
LN_SILU = Rule("ln_silu", link="ln_silu", phi_eps=1.0)
# Every choice is the other one.
SOFTMAX = Rule("softmax", link="identity", out="ln_silu", step_size="token")
STAGES = pytest.mark.parametrize("stages", [1, 2])
DTYPE = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def of(operator: str, layer: Layer, rule: Rule = LN_SILU, dtype: str = "float32", **sizes: Any) -> Spec:
    return Spec(rule, Problem(operator, **{"batch": 1, "tokens": 1, **PLAIN, **sizes}, dtype=dtype, layer=layer))


def launch(spec: Spec, inputs: Inputs, **settings: Any) -> Launch:
    return bind(build(spec, replace(default("triton", spec, cpu()), **settings), cpu()), inputs)


def require_right(spec: Spec, inputs: Inputs, tolerance: float = 1.0, **settings: Any) -> None:
    """Outputs start as NaN; neither inputs nor what lies beside outputs may change."""
    before = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    launched = launch(spec, inputs, **settings)
    verdict = compare(launched.outputs_of_run(), oracle(spec, inputs), tolerance * TOLERANCE[spec.problem.dtype])
    assert verdict.outcome is Outcome.ok, verdict.reason
    assert launched.trespassed() == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in inputs.tensors.items())


@DTYPE
@pytest.mark.parametrize("width", [1, 64, 75])
def test_norm(width, dtype):
    spec = of("norm_step", Layer(width, 1), dtype=dtype)
    require_right(spec, make_inputs(spec, (1,) * 3, cpu()))


@DTYPE
@pytest.mark.parametrize("hidden", [1, 75, FEATURES_OF_PROGRAM, 2 * FEATURES_OF_PROGRAM + 3])
def test_swiglu(hidden, dtype):
    spec = of("swiglu_step", Layer(1, hidden), dtype=dtype)
    inputs = make_inputs(spec, (1,) * 3, cpu())
    inputs["gate_and_up"][0, 0] = -200.0
    require_right(spec, inputs)


@STAGES
@DTYPE
@pytest.mark.parametrize(
    ("rule", "sizes", "layer"),
    [(LN_SILU, PLAIN, Layer(32, 64)), (SOFTMAX, ODD, Layer(52, 75, 3, False)), (SOFTMAX, PLAIN, Layer(75, 1, 2))],
    ids=["plain", "odd", "two taps"],
)
def test_mixer(rule, sizes, layer, dtype, stages):
    """Rows are at several positions of their chunks; some begin one."""
    spec = of("mixer_step", layer, rule, dtype, **sizes)
    require_right(spec, make_inputs(spec, (1,) * 5, cpu()), num_stages=stages)


@pytest.mark.parametrize("operator", ["norm_step", "mixer_step", "swiglu_step"])
def test_as_many_rows_as_a_step_takes(operator):
    spec = of(operator, Layer(20, 20), heads=1)
    require_right(spec, make_inputs(spec, (1,) * 64, cpu()))


@pytest.mark.parametrize("name", MAPS)
def test_every_map_in_every_place(name):
    spec = of("mixer_step", Layer(20, 1, unit=False), Rule(name, link=name, out=name, phi_eps=1e-2))
    require_right(spec, make_inputs(spec, (1,) * 2, cpu()))


# Codes of values that are a hundred times too large.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
@STAGES
@pytest.mark.parametrize("chunk", [1, 4])
def test_inputs_that_are_hard_to_be_right_on(chunk, stages):
    spec = of("mixer_step", Layer(20, 1), chunk=chunk)
    cases = cases_of(spec)
    assert {case.name for case in cases} > {"zero state", "hard forgetting"}
    for case in cases:
        inputs = adversarial_inputs(case, spec, (1,) * 3, cpu(), 0)
        require_right(spec, inputs, OF_HARD_INPUTS, num_stages=stages)


def test_a_row_that_begins_a_chunk_reads_nothing_of_the_last_one():
    spec = of("mixer_step", Layer(20, 1))
    inputs = make_inputs(spec, (1,) * 4, cpu())
    begins = inputs["positions"] == 0
    assert 0 < begins.sum() < 4
    for name in ("G_k", "G_v"):
        inputs[name][begins] = torch.nan
    found = launch(spec, inputs).outputs_of_run()
    assert all(tensor.isfinite().all() for tensor in found.values())
    # Tokens since the start of the sequence are as good as those since the start of the chunk.
    inputs["positions"].add_(4 * torch.arange(4))
    assert all(torch.equal(x, found[name]) for name, x in launch(spec, inputs).outputs_of_run().items())


@pytest.mark.parametrize("name", ["S_k", "S_v", "tail", "projected", "normed"])
def test_what_is_not_finite_reaches_no_other_row(name):
    spec = of("mixer_step", Layer(20, 1))
    inputs = make_inputs(spec, (1,) * 3, cpu())
    clean = launch(spec, inputs).outputs_of_run()
    inputs[name][1].view(-1)[1] = torch.nan
    found = launch(spec, inputs).outputs_of_run()
    assert found["mixed"][1].isnan().any()
    assert all(torch.equal(x[[0, 2]], clean[key][[0, 2]]) for key, x in found.items())


@pytest.mark.parametrize(
    ("operator", "layer", "settings", "reason"),
    [
        ("norm_step", Layer(8, 1), {"num_stages": 2}, "has no loop: num_stages must be at most 1"),
        ("mixer_step", Layer(8, 1), {"num_stages": 3}, "has no loop: num_stages must be at most 2"),
        ("mixer_step", Layer(8, 1), {"tile_rows": 32}, "has no tile: tile_rows must be 16"),
        ("mixer_step", Layer(8, 1), {"dot_precision": "tf32"}, "has no dots"),
        ("mixer_step", Layer(8, 1, pooled=True), {}, "not in a slot of pools"),
        ("mixer_step", Layer(8, 1, weights="int8"), {}, "not 'int8'"),
        ("norm_step", Layer(WIDEST + 1, 1), {}, "at most 65536 numbers, not 65537"),
        ("swiglu_step", Layer(1, 8), {"variant": "norm"}, "no variant 'norm' of swiglu_step"),
    ],
)
def test_illegal_schedules_say_why(operator, layer, settings, reason):
    spec = of(operator, layer, chunk=32)
    schedule = replace(default("triton", spec, NAMED["sm_90"]), **settings)
    assert reason in str(why_illegal(spec, schedule, NAMED["sm_90"]))


def test_a_spec_is_found_by_its_key_and_its_bucket_has_more_rows():
    for operator in ("norm_step", "mixer_step", "swiglu_step"):
        spec = of(operator, Layer(32, 64), batch=5)
        assert spec_of_key(spec.key()) == spec
        assert (bucket(spec).problem.batch, bucket(spec).problem.heads) == (8, 2)
