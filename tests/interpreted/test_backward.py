"""The backward kernels of Triton, interpreted, against autograd of the oracle in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.launches import is_of_a_backward, kernels_of
from codegen.kernels.operator import CompiledOperator
from codegen.rule import MAPS, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default, variants_of
from codegen.spec import Spec
from tests.support.cases.backward import NAMES, backward_spec, check_backward, run_backward
from tests.support.cases.kernels import Build, Case
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import trellis_attention
from trellis_ops.tokens import Tokens

VARIANTS = variants_of("trellis_attention", "triton", "backward")
SMALL = {"heads": 1, "lengths": (21,), "dim_k": 5, "dim_v": 3, "slots": 6}


def triton(**settings: object) -> Build:
    """The default schedule with other settings."""

    def with_schedule(spec: Spec) -> CompiledOperator:
        return build(spec, dataclasses.replace(default("triton", spec, cpu()), **settings), cpu())

    return with_schedule


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("phi", MAPS)
def test_every_map_in_every_place(phi, variant):
    rule = Rule(phi, link=phi, out=phi, phi_eps=1e-2, step_size="token")
    check_backward(triton(variant=variant), Case(chunk=16, rule=rule, **SMALL))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("phi", MAPS)
def test_first_order_gradients(phi, variant):
    check_backward(
        triton(variant=variant), Case(chunk=16, rule=Rule(phi, link="identity", phi_eps=1e-2), **SMALL), "first_order"
    )


@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@pytest.mark.parametrize(
    ("tile", "variant"),
    [(16, "backward"), (32, "backward"), (16, "backward_split")],
)
def test_tiles_of_a_chunk_of_packed_sequences(tile, variant, outer_gradient):
    sizes = SMALL | {"lengths": (50, 7, 0, 40)}
    check_backward(triton(tile_rows=tile, variant=variant), Case(chunk=40, packed=True, **sizes), outer_gradient)


@pytest.mark.parametrize(("chunk", "spacing"), [(1, 16), (2, 16), (3, 8), (5, 4), (16, 2), (17, 4), (20, 2)])
def test_states_that_are_computed_again(chunk, spacing):
    for variant in ("backward", "backward_split"):
        case = Case(chunk=chunk, **SMALL | {"lengths": (2 * chunk + 15,)})
        check_backward(triton(checkpoint_spacing=spacing, variant=variant), case)


@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@pytest.mark.parametrize(("chunk", "tile"), [(16, 16), (20, 32), (32, 32), (40, 64), (64, 64)])
def test_whole_chunks_of_packed_sequences(chunk, tile, outer_gradient):
    """Odd lengths, one of a single token, one of none; steps of their own for each token."""
    rule = Rule("ln_silu", phi_eps=1e-2, step_size="token")
    case = Case(chunk=chunk, packed=True, rule=rule, **SMALL | {"heads": 2, "lengths": (2 * chunk + 7, 1, 0, chunk)})
    check_backward(triton(variant="backward_chunks", tile_rows=tile), case, outer_gradient)


@pytest.mark.parametrize("length", [1, 15, 33])
def test_whole_chunks_of_one_sequence(length):
    case = Case(chunk=16, rule=Rule("silu"), **SMALL | {"lengths": (length,)})
    check_backward(triton(variant="backward_chunks"), case)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_inputs(dtype, variant):
    check_backward(triton(variant=variant), Case(chunk=16, dtype=dtype, **SMALL))


READING = ("keys_readout", "values_reading", "keys_reading")


@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
@pytest.mark.parametrize(
    ("variant", "wanted", "expected"),
    [
        ("backward", ("q",), ("trellis_backward",)),
        ("backward_split", ("v",), ("keys_readout", "values_backward")),
        ("backward_split", ("q",), ("keys_readout", "values_backward", "keys_backward")),
        ("backward_chunks", ("q",), READING),
        ("backward_chunks", ("states",), (*READING, "states_backward")),
        ("backward_chunks", ("q", "v"), (*READING, "states_backward", "values_writing")),
        ("backward_chunks", ("k", "states"), (*READING, "states_backward", "keys_writing")),
        ("backward_chunks", ("step_size",), (*READING, "states_backward", "values_writing", "keys_writing")),
    ],
)
def test_kernels_whose_results_nobody_wants_do_not_run(variant, wanted, expected, outer_gradient):
    case = Case(chunk=16, rule=Rule(phi_eps=1e-2, step_size="token"), **SMALL)
    compiled, inputs, launched = triton(variant=variant)(backward_spec(case, outer_gradient)), case.inputs(), []

    def noted(name, kernel):
        return lambda *arguments: (launched.append(name), kernel(*arguments))

    everything = run_backward(compiled, case, inputs)
    kernels = tuple(map(noted, kernels_of(variant, "triton"), compiled.kernels))
    found = run_backward(dataclasses.replace(compiled, kernels=kernels), case, inputs, wanted)
    assert tuple(name for name in launched if is_of_a_backward(name)) == expected
    for name in NAMES:
        one, full = found[name], everything[name]
        if name in wanted or ("states" in wanted and name.startswith("S_")):
            assert_close(one, full.double(), 1e-6, name)


@pytest.mark.parametrize(("dim_k", "dim_v", "slots"), [(1, 1, 1), (16, 32, 16), (33, 5, 17)])
def test_sizes(dim_k, dim_v, slots):
    sizes = SMALL | {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    check_backward(triton(), Case(chunk=20, **sizes))
    check_backward(triton(variant="backward_chunks", tile_rows=32), Case(chunk=20, **sizes))


# Codes of l2_silu at z = 0 are so large that exp(-z) in the sigmoid of the next chunk overflows to the right limit.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("phi", MAPS)
def test_zero_state(phi):
    case = Case(chunk=16, rule=Rule(phi, phi_eps=1e-2), **SMALL | {"heads": 2, "lengths": (9, 9)})
    check_backward(triton(), case, inputs=case.inputs(state="zero"))


@pytest.mark.parametrize(("variant", "tile"), [("backward_split", 16), ("backward_chunks", 64)])
def test_forgetting_at_its_limits(variant, tile):
    case = Case(chunk=40, **SMALL)
    kernels = triton(variant=variant, tile_rows=tile)
    inputs = case.inputs()
    inputs.log_decay[:, ::3] = float("-inf")
    inputs.log_decay[:, 1::3] = -40.0
    check_backward(kernels, case, inputs=inputs)
    check_backward(kernels, case, inputs=case.inputs(log_decay=-40.0))
    check_backward(kernels, case, inputs=case.inputs(log_decay=0.0))


@pytest.mark.parametrize(("chunk", "packed"), [(4, True), (16, False)])
def test_the_operator_has_the_gradients_of_the_eager_one(chunk, packed):
    """Through autograd, with the memory of every step poisoned."""
    x = make_inputs(1, 20, 2, 5, 3, 4, sequences=2 if packed else None).leaves()
    offsets = torch.tensor([0, 3, 20]) if packed else None

    def gradients(implementation):
        y, states = trellis_attention(
            *x.args,
            **{"phi_eps": 1e-2, "chunk_size": chunk, "initial_state": x.initial_state, "cu_seqlens": offsets},
            output_final_state=True,
            implementation=implementation,
        )
        return torch.autograd.grad(y.square().sum() + sum(s.square().sum() for s in states), x.tensors)

    for name, one, other in zip(NAMES, gradients("triton"), gradients("eager"), strict=True):
        assert_close(one, other.double(), 2e-5, name)


@pytest.mark.parametrize(("chunk", "states"), [(1, 3), (16, 3), (40, 1)])
def test_how_many_states_are_kept(chunk, states):
    x = make_inputs(1, 40, 2, 5, 5, 4).leaves()
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() if not any(tensor is leaf for leaf in x.tensors) else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trellis_attention(*x.args, chunk_size=chunk, initial_state=x.initial_state, implementation="triton")
    assert sum(kept) == states * sum(s.numel() for s in x.initial_state)


@pytest.mark.parametrize(
    ("chunk", "settings", "reason"),
    [
        (1, {"checkpoint_spacing": 8}, "stores the states of every 8 tokens"),
        (64, {"checkpoint_spacing": 8}, "compute the states of 512 tokens again"),
        (1025, {}, "at most 1024 tokens"),
        (40, {"variant": "backward_chunks"}, "tile_rows must hold 40 tokens"),
        (16, {"variant": "backward_chunks", "checkpoint_spacing": 2}, "checkpoint_spacing must be 1"),
        (16, {"variant": "fused"}, "no variant 'fused' of trellis_attention backward"),
    ],
)
def test_illegal_schedules_say_why(chunk, settings, reason):
    spec = backward_spec(Case(chunk=chunk))
    schedule = dataclasses.replace(default("triton", spec, cpu()), **settings)
    assert reason in why_illegal(spec, schedule, cpu())


def test_a_forward_has_no_spacing():
    spec = Case(chunk=16).spec
    schedule = dataclasses.replace(default("triton", spec, cpu()), checkpoint_spacing=2)
    assert "only a backward stores states" in why_illegal(spec, schedule, cpu())


def test_a_compiled_step_of_any_length():
    def loss(*tokens, implementation="triton"):
        y, _ = trellis_attention(*tokens, chunk_size=4, phi_eps=1e-2, implementation=implementation)
        return y.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for length in (9, 14, 23):
        x = make_inputs(1, length, 1, 5, 3, 4, state=None).leaves()
        gradients = torch.autograd.grad(compiled(*x.args), x.args)
        expected = torch.autograd.grad(loss(*x.args, implementation="eager"), x.args)
        for name, one, other in zip(Tokens._fields, gradients, expected, strict=True):
            assert_close(one, other.double(), 2e-5, name)
