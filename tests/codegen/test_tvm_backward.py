"""The backward kernel of TVM, compiled and run on this CPU, against autograd of the oracle in float64."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from codegen.device import NAMED, cpu
from codegen.program import Program, build
from codegen.rule import MAPS, Rule
from codegen.schedule import TvmSchedule, default, segment_tokens, why_illegal
from codegen.spec import Spec
from tests.inputs import Inputs
from tests.kernel_cases import DTYPES, Case
from tests.programs import sequences_of
from tests.relative_error import TOLERANCE, assert_close
from trellis_ops import reference

NAMES = ("q", "k", "v", "alpha", "log_beta", "gamma", "S_k", "S_v")
DIRECTIONS = {"bilevel": "backward", "first_order": "backward_first_order"}


def backward_spec(case: Case, outer_gradient: str = "bilevel") -> Spec:
    return dataclasses.replace(
        case.spec, problem=dataclasses.replace(case.spec.problem, direction=DIRECTIONS[outer_gradient])
    )


def cotangents(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    outputs = (inputs.v, *inputs.initial_state)
    y, s_k, s_v = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs)
    return y.to(DTYPES[case.dtype]), s_k.float(), s_v.float()


def rows(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.flatten(0, 1).contiguous()


def poisoned(shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def run(program: Program, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """y, then the gradients in the order of `NAMES`, gamma's summed where it was given per head."""
    tokens = tuple(rows(x) for x in inputs.args)
    states = [s.clone() for s in inputs.initial_state]
    sequences = sequences_of(case.lengths, program.segment_tokens)
    kept = tuple(poisoned(torch.Size((sequences.chunks, *s.shape[1:]))) for s in states)
    y = poisoned(tokens[2].shape, tokens[2].dtype)
    program.attention_kept(*tokens, *states, sequences, kept, y)
    bar_y, *bar_states = cotangents(case, inputs)
    bar_tokens = (*(poisoned(x.shape, x.dtype) for x in tokens[:5]), poisoned(tokens[4].shape))
    program.backward(tokens, kept, rows(bar_y), tuple(bar_states), sequences, bar_tokens)
    bar_gamma = bar_tokens[5].sum(dim=0) if inputs.gamma.dim() == 1 else bar_tokens[5]
    found = (y, *bar_tokens[:5], bar_gamma)
    like = (inputs.v, *inputs.args)
    return *(x.view(given.shape) for x, given in zip(found, like, strict=True)), *bar_states


def check(
    case: Case,
    outer_gradient: str = "bilevel",
    inputs: Inputs | None = None,
    tolerance: float | None = None,
    **changes: object,
) -> None:
    inputs = case.inputs() if inputs is None else inputs
    spec = backward_spec(case, outer_gradient)
    schedule = dataclasses.replace(default("tvm", spec, cpu()), **changes)
    found = run(build(spec, schedule, cpu()), case, inputs)
    offsets = torch.tensor(list(itertools.accumulate(case.lengths, initial=0))) if case.packed else None
    leaves = inputs.to(torch.float64).leaves()
    y, states = reference.attention(
        *leaves.args,
        rule=case.rule,
        chunk_size=case.chunk,
        initial_state=leaves.initial_state,
        cu_seqlens=offsets,
        outer_gradient=outer_gradient,
    )
    bars = [x.double() for x in cotangents(case, inputs)]
    expected = torch.autograd.grad((y, *states), leaves.tensors, bars)
    dtype = DTYPES[case.dtype]
    assert_close(found[0], y, TOLERANCE[dtype], "y")
    for name, gradient, wanted in zip(NAMES, found[1:], expected, strict=True):
        assert_close(gradient, wanted, tolerance or 10 * TOLERANCE[dtype], name)


@pytest.mark.parametrize("phi", MAPS)
def test_every_map_in_every_place(phi):
    check(Case(chunk=16, rule=Rule(phi, link=phi, out=phi, phi_eps=1e-2, step_size="token")))


@pytest.mark.parametrize("phi", ["silu", "ln_silu", "softmax"])
def test_first_order_gradients(phi):
    check(Case(rule=Rule(phi, link="identity", phi_eps=1e-2)), "first_order")


@pytest.mark.parametrize(("tile", "outer_gradient"), [(16, "bilevel"), (16, "first_order"), (64, "bilevel")])
def test_tiles_of_a_chunk_of_packed_sequences(tile, outer_gradient):
    check(Case(chunk=64, lengths=(150, 7, 0, 64), packed=True), outer_gradient, tile_tokens=tile)


def test_states_and_gates_at_their_limits():
    """One kernel: a zero state, gates that forget now and then, and gates that forget nearly everything."""
    case = Case()
    check(case, inputs=case.inputs(state="zero"))
    inputs = case.inputs()
    inputs.log_beta[:, ::3] = float("-inf")
    inputs.log_beta[:, 1::3] = -40.0
    check(case, inputs=inputs)
    check(case, inputs=case.inputs(log_beta=-40.0))
    check(case, inputs=case.inputs(log_beta=0.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_inputs(dtype):
    check(Case(dtype=dtype))


@pytest.mark.parametrize("width", [4, 8])
def test_narrow_vectors(width):
    check(Case(chunk=3 if width == 4 else 20), vector_width=width, tile_tokens=width)


@pytest.mark.parametrize(("dim_k", "dim_v", "slots"), [(1, 1, 1), (33, 5, 17), (80, 96, 48)])
def test_sizes(dim_k, dim_v, slots):
    check(Case(chunk=40, lengths=(70,), dim_k=dim_k, dim_v=dim_v, slots=slots, rule=Rule("silu", phi_eps=1e-2)))


@pytest.mark.parametrize("phi", MAPS)
def test_tiles_that_span_chunks_of_one_token(phi):
    check(Case(chunk=1, heads=1, rule=Rule(phi, link="identity", phi_eps=1e-2, step_size="token")))


@pytest.mark.parametrize(("chunk", "outer_gradient"), [(2, "bilevel"), (3, "first_order")])
def test_tiles_that_span_chunks_of_packed_sequences(chunk, outer_gradient):
    """A tile holds 5 chunks of 3 tokens, and 16 lie between kept states: the last tile before one is shorter."""
    check(Case(chunk=chunk, lengths=(70, 7, 0, 64), packed=True), outer_gradient)


@pytest.mark.parametrize(("chunk", "changes"), [(20, {"tile_tokens": 16}), (16, {"tile_tokens": 16, "threads": 1})])
def test_states_between_kept_ones_are_computed_again(chunk, changes):
    check(Case(chunk=chunk, lengths=(111, 21), packed=True), checkpoint_spacing=4, **changes)


def test_a_chunk_longer_than_its_sequence_and_one_of_many_tiles():
    check(Case(chunk=300, lengths=(330, 40), packed=True))


@pytest.mark.parametrize("chunk", [1, 2, 3, 15, 16, 64])
def test_the_default_keeps_no_more_than_inputs_take(chunk):
    spec = backward_spec(Case(chunk=chunk))
    schedule = default("tvm", spec, NAMED["x86-64-v4"])
    assert why_illegal(spec, schedule, NAMED["x86-64-v4"]) is None
    assert 16 <= segment_tokens(spec, schedule) <= 64


@pytest.mark.parametrize("threads", [1, 2])
def test_programs_that_threads_do_not_divide(threads):
    if threads > cpu().cores:
        pytest.skip(f"{cpu().cores} core")
    check(Case(heads=5, lengths=(21, 21, 21)), threads=threads)


@pytest.mark.parametrize(
    ("chunk", "changes", "reason"),
    [
        (4, {}, "spans 4 chunks of 4 tokens, more than checkpoint_spacing 1"),
        (1, {"checkpoint_spacing": 8}, "spans 16 chunks of 1 tokens, more than checkpoint_spacing 8"),
        (64, {"checkpoint_spacing": 16}, "keeps states more than 512 tokens apart"),
        (64, {"variant": "fused"}, "no variant 'fused' of trellis_attention backward"),
    ],
)
def test_illegal_schedules_say_why(chunk, changes, reason):
    schedule = TvmSchedule("backward", tile_tokens=16, vector_width=16, accumulators=16, threads=1)
    spec = backward_spec(Case(chunk=chunk))
    illegal = why_illegal(spec, dataclasses.replace(schedule, **changes), NAMED["x86-64-v4"])
    assert illegal is not None
    assert reason in illegal


def test_other_operators_and_triton_have_no_backward_kernel():
    spec = backward_spec(Case("memory_update", dim_v=20))
    assert "and no other" in why_illegal(spec, default("tvm", spec, cpu()), cpu())
    spec = backward_spec(Case())
    assert "and no other" in why_illegal(spec, default("triton", spec, NAMED["sm_90"]), NAMED["sm_90"])
