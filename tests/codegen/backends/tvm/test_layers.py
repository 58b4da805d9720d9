"""The kernels that take a whole layer one token further, compiled and run on this CPU, against plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen.device import NAMED, cpu
from codegen.errors import SizeError
from codegen.kernels.build import build
from codegen.kernels.layer.arguments import CAPACITY
from codegen.kernels.layer.layout import PANEL, layout_of
from codegen.layer import Layer, layer_of_key
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec, bucket, spec_of_key
from tests.support.far_memory import untouched
from tests.tuner.verify.tampering import tampered
from tuner.verify.check import SEED, check
from tuner.verify.inputs.trellis import make_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle
from tuning_db import Outcome

LN_SILU = Rule("ln_silu", link="ln_silu", phi_eps=1.0)
SIZES = {"batch": 1, "tokens": 1, "heads": 2, "dim_k": 8, "dim_v": 8, "slots": 8, "chunk": 4}
PLAIN = Spec(LN_SILU, Problem("block_step", **SIZES, layer=Layer(32, 64)))
# Nothing fills a vector or a panel, and every choice is the other one.
PADDED = Spec(
    Rule("softmax", link="identity", out="ln_silu", step_size="token"),
    Problem("block_step", heads=3, dim_k=5, dim_v=7, slots=13, chunk=1, layer=Layer(52, 75, 3, False, "int8")),
)
LOGITS = Spec(Rule(), Problem("logits_step", heads=1, chunk=1, layer=Layer(52, 77, weights="bfloat16")))


def of_weights(spec: Spec, weights: str) -> Spec:
    layer = spec.problem.layer
    assert layer is not None
    return replace(spec, problem=replace(spec.problem, layer=replace(layer, weights=weights)))


def in_pools(spec: Spec) -> Spec:
    layer = spec.problem.layer
    assert layer is not None
    return replace(spec, problem=replace(spec.problem, layer=replace(layer, pooled=True)))


@pytest.mark.parametrize(
    ("spec", "threads", "accumulators"),
    [(PLAIN, 2, 4), (of_weights(PLAIN, "bfloat16"), 1, 8), (PADDED, 1, 8), (LOGITS, 2, 8)],
    ids=["plain", "bfloat16", "padded-int8", "logits"],
)
def test_a_layer_is_as_the_oracle_has_it(spec, threads, accumulators):
    schedule = replace(default("tvm", spec, cpu()), threads=min(threads, cpu().cores), accumulators=accumulators)
    verdict = check(build(spec, schedule, cpu()), spec)
    assert verdict.outcome is Outcome.ok, verdict.reason
    assert max(verdict.errors.values()) < 1e-6


@pytest.mark.parametrize("narrower", [4, 2, 1])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_narrow_weights_are_multiplied_by_vectors_of_every_width(weights, narrower):
    """Those of four lanes, as on ARM, widen int8 to float32; wider ones multiply whole numbers."""
    spec = of_weights(PADDED, weights)
    schedule = default("tvm", spec, cpu())
    width = max(4, schedule.vector_width // narrower)
    schedule = replace(schedule, tile_tokens=width, vector_width=width, accumulators=8)
    verdict = check(build(spec, schedule, cpu()), spec)
    assert verdict.outcome is Outcome.ok, verdict.reason
    assert max(verdict.errors.values()) < 1e-6


def test_whole_numbers_lose_less_than_sums_of_float32():
    """Of products as deep as those of a small model, one row."""
    layer = Layer(512, 1024, weights="int8")
    spec = Spec(LN_SILU, Problem("block_step", **SIZES, layer=layer))
    schedule = default("tvm", spec, cpu())
    narrow = replace(schedule, tile_tokens=4, vector_width=4)
    whole, in_float32 = (check(build(spec, each, cpu()), spec).errors["x"] for each in (schedule, narrow))
    assert schedule.vector_width == 4 or whole < in_float32 / 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_logit_and_leaves_its_neighbour_alone(value):
    spec = of_weights(LOGITS, "int8")
    operator = build(spec, default("tvm", spec, cpu()), cpu())
    inputs = make_inputs(spec, (1, 1), cpu(), SEED)
    right = torch.empty(2, 77)
    operator.kernels[0](2, inputs["x"], inputs["weights"], inputs["vectors"], right)
    inputs["x"][0, 3] = value
    found = torch.empty(2, 77)
    operator.kernels[0](2, inputs["x"], inputs["weights"], inputs["vectors"], found)
    assert found[0].isnan().all()
    assert torch.equal(found[1], right[1])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e12])
def test_rows_of_any_size_are_multiplied(size):
    """The norm before the logits has an epsilon: rows far below it stay small, and rows of zeros give zeros."""
    spec = of_weights(LOGITS, "int8")
    inputs = make_inputs(spec, (1,), cpu(), SEED)
    inputs["x"].mul_(size)
    found = torch.empty(1, 77)
    build(spec, default("tvm", spec, cpu()), cpu()).kernels[0](
        1, inputs["x"], inputs["weights"], inputs["vectors"], found
    )
    right = oracle(spec, inputs)["logits"]
    assert float((found - right).norm()) <= 1e-6 * float(right.norm())


def test_a_block_that_keeps_no_start_of_a_chunk_is_refused():
    def forgets(tensors):
        tensors["G_k"].mul_(1.001)

    verdict = check(tampered(PLAIN, forgets), PLAIN)
    assert verdict.outcome is Outcome.wrong_answer
    assert verdict.reason.startswith("G_k")


def test_a_row_of_a_batch_is_the_row_alone_to_the_bit():
    operator = build(PLAIN, default("tvm", PLAIN, cpu()), cpu())
    inputs = make_inputs(PLAIN, (1,) * 7, cpu(), SEED)
    together = bind(operator, inputs).outputs_of_run()
    kernel, names = operator.kernels[0], [name for name, _ in operator.steps[0].arguments]
    for row in (0, 3, 6):
        alone = [inputs[n].clone() if n in ("weights", "vectors") else inputs[n][row, None].clone() for n in names]
        kernel(1, *alone)
        for name, tensor in zip(names, alone, strict=True):
            if name in together:
                assert torch.equal(tensor[0], together[name][row]), name


def moved_in(spec: Spec, memory: torch.Tensor, slots: torch.Tensor) -> int:
    """Move three rows in slots of `memory`, and as rows; how many numbers of `memory` belong to a slot.

    All states of a slot lie side by side, as in a block of a cache, with numbers that belong to nobody behind them.
    """
    schedule = default("tvm", spec, cpu())
    of_rows, of_pools = (build(each, schedule, cpu()) for each in (spec, in_pools(spec)))
    inputs = make_inputs(spec, (1, 1, 1), cpu(), SEED)
    rows = {each.name: inputs[each.name].clone() for each in of_rows.arguments}
    states = {each.name: rows[each.name] for each in of_pools.arguments if each.axes[0] == CAPACITY}
    lengths = [state[0].numel() for state in states.values()]
    parts = memory.split([*lengths, memory.shape[1] - sum(lengths)], 1)
    pools = {
        name: part.unflatten(1, state.shape[1:]) for (name, state), part in zip(states.items(), parts, strict=False)
    }
    for name, state in states.items():
        pools[name][slots] = state
    called = rows | pools | {"x": rows["x"].clone(), "state_indices": slots}
    of_pools.kernels[0](3, *[called[each.name] for each in of_pools.arguments])
    of_rows.kernels[0](3, *[rows[each.name] for each in of_rows.arguments])
    assert torch.equal(called["x"], rows["x"])
    for name, state in states.items():
        assert torch.equal(pools[name][slots], state), name
    return sum(lengths)


@pytest.mark.parametrize("spec", [PLAIN, PADDED], ids=["plain", "padded"])
def test_states_in_slots_of_pools_move_as_those_of_rows_do_to_the_bit(spec):
    memory = torch.full((6, 4096), torch.nan)
    numbers = moved_in(spec, memory, torch.tensor([5, 0, 3]))
    assert memory.isnan().sum() == memory.numel() - 3 * numbers, "nothing beside the slots was written"


def test_slots_of_pools_from_number_2_31_on():
    """Only the pages of the slots have memory."""
    moved_in(PLAIN, untouched(2**13, 2**20), torch.tensor([2**13 - 1, 0, 2**11 + 5]))


def test_a_product_reads_its_weights_in_one_stream():
    layout = layout_of(PADDED)
    ends = [matrix.first + matrix.numbers for matrix in layout.matrices.values()]
    assert [matrix.first for matrix in layout.matrices.values()] == [0, *ends[:-1]]
    assert ends[-1] == layout.numbers
    for matrix in layout.matrices.values():
        together = len(matrix.order)
        assert matrix.numbers == matrix.panels * PANEL * matrix.words * together
        assert matrix.columns <= matrix.words * together < matrix.columns + together
    last = list(layout.vectors.values())[-1]
    assert last.first + last.length == layout.vector_numbers


def test_a_spec_of_a_layer_is_found_by_its_key():
    for spec in (PLAIN, PADDED, LOGITS, in_pools(PLAIN)):
        assert spec_of_key(spec.key()) == spec
    assert bucket(in_pools(PLAIN)) == bucket(PLAIN)
    assert bucket(replace(PLAIN, problem=replace(PLAIN.problem, batch=5))).problem.batch == 8
    assert bucket(PADDED).problem.heads == 3
    with pytest.raises(ValueError, match="describes no layer"):
        layer_of_key("W768")


def test_only_operators_of_layers_have_a_layer():
    with pytest.raises(SizeError, match="layer of trellis_step"):
        Problem("trellis_step", layer=Layer(8, 8))
    with pytest.raises(SizeError, match="layer of block_step"):
        Problem("block_step")
    with pytest.raises(SizeError, match="taps"):
        Layer(8, 8, taps=1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tile_tokens": 32}, "has no tile"),
        ({"vector_width": 4, "tile_tokens": 4, "accumulators": 12}, "no whole rows of 32 outputs"),
        ({"variant": "logits"}, "no variant 'logits' of block_step"),
    ],
)
def test_what_no_schedule_of_a_layer_may_be(changes, reason):
    assert reason in str(why_illegal(PLAIN, replace(default("tvm", PLAIN, cpu()), **changes), cpu()))


def test_no_gpu_has_a_kernel_of_a_layer():
    for backend in ("tvm", "triton"):
        assert why_illegal(PLAIN, default(backend, PLAIN, NAMED["sm_90"]), NAMED["sm_90"]) is not None


@pytest.mark.parametrize("device", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
def test_a_default_is_legal_where_vectors_are_narrow_or_wide(device):
    for spec in (PLAIN, PADDED, LOGITS):
        assert why_illegal(spec, default("tvm", spec, NAMED[device]), NAMED[device]) is None
