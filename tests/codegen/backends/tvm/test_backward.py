"""The backward kernel of TVM, compiled and run on this CPU, against autograd of the oracle in float64."""

from __future__ import annotations

import dataclasses

import pytest

from codegen.device import NAMED, cpu
from codegen.kernels.build import build
from codegen.kernels.launches import GRADIENTS
from codegen.kernels.operator import CompiledOperator
from codegen.rule import MAPS, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Spec
from tests.support.cases.backward import NAMES, backward_spec, check_backward, run_backward
from tests.support.cases.kernels import Case
from tests.support.inputs import Inputs
from tests.support.relative_error import assert_close


def check(
    case: Case,
    outer_gradient: str = "bilevel",
    inputs: Inputs | None = None,
    tolerance: float | None = None,
    **changes: object,
) -> None:
    """With the default schedule, changed."""

    def with_schedule(spec: Spec) -> CompiledOperator:
        return build(spec, dataclasses.replace(default("tvm", spec, cpu()), **changes), cpu())

    check_backward(with_schedule, case, outer_gradient, inputs, tolerance)


@pytest.mark.parametrize("phi", MAPS)
def test_every_map_in_every_place(phi):
    check(Case(chunk=16, rule=Rule(phi, link=phi, out=phi, phi_eps=1e-2, step_size="token")))


def test_first_order_gradients():
    check(Case(rule=Rule("softmax", link="identity", phi_eps=1e-2)), "first_order")


@pytest.mark.parametrize("wanted", GRADIENTS)
@pytest.mark.parametrize(("chunk", "link"), [(16, "ln_silu"), (1, "identity")])
def test_what_is_not_wanted_is_not_computed(chunk, link, wanted):
    """Kernels of tests above, asked for one gradient: those of the other tokens keep the NaN that they start as."""
    rule = Rule("ln_silu", link=link, out=link, phi_eps=1e-2, step_size="token")
    case = Case(chunk=chunk, heads=2 if chunk > 1 else 1, rule=rule)
    spec, inputs = backward_spec(case), case.inputs()
    compiled = build(spec, default("tvm", spec, cpu()), cpu())
    everything, found = run_backward(compiled, case, inputs), run_backward(compiled, case, inputs, (wanted,))
    for name in NAMES:
        one, full = found[name], everything[name]
        if name == wanted or (wanted == "states" and name.startswith("S_")):
            assert_close(one, full, 1e-6, name)
        elif not name.startswith("S_"):
            assert one.isnan().all(), name


@pytest.mark.parametrize(("tile", "outer_gradient"), [(16, "first_order"), (64, "bilevel")])
def test_tiles_of_a_chunk_of_packed_sequences(tile, outer_gradient):
    check(Case(chunk=64, lengths=(150, 7, 0, 64), packed=True), outer_gradient, tile_tokens=tile)


def test_states_and_gates_at_their_limits():
    """One kernel: a zero state, gates that forget now and then, and gates that forget nearly everything."""
    case = Case()
    check(case, inputs=case.inputs(state="zero"))
    inputs = case.inputs()
    inputs.log_decay[:, ::3] = float("-inf")
    inputs.log_decay[:, 1::3] = -40.0
    check(case, inputs=inputs)
    check(case, inputs=case.inputs(log_decay=-40.0))
    check(case, inputs=case.inputs(log_decay=0.0))


@pytest.mark.parametrize(("width", "threads"), [(4, 1), (8, 2)])
def test_narrow_vectors(width, threads):
    threads = min(threads, cpu().cores)
    check(Case(chunk=3 if width == 4 else 20), vector_width=width, tile_tokens=width, threads=threads)


@pytest.mark.parametrize(
    ("dim_k", "dim_v", "slots", "dtype"),
    [(1, 1, 1, "float32"), (33, 5, 17, "bfloat16"), (80, 96, 48, "float16")],
)
def test_sizes_and_types(dim_k, dim_v, slots, dtype):
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    check(Case(chunk=40, lengths=(70,), dtype=dtype, rule=Rule("silu", phi_eps=1e-2), **sizes))


def test_bfloat16():
    check(Case(dtype="bfloat16"))


@pytest.mark.parametrize("phi", ["ln_silu", "softmax"])
def test_tiles_that_span_chunks_of_one_token(phi):
    check(Case(chunk=1, heads=1, rule=Rule(phi, link="identity", phi_eps=1e-2, step_size="token")))


@pytest.mark.parametrize(("chunk", "outer_gradient"), [(2, "bilevel"), (3, "first_order")])
def test_tiles_that_span_chunks_of_packed_sequences(chunk, outer_gradient):
    """A tile holds 5 chunks of 3 tokens, and 16 lie between kept states: the last tile before one is shorter."""
    check(Case(chunk=chunk, lengths=(70, 7, 0, 64), packed=True), outer_gradient)


def test_states_between_kept_ones_are_computed_again():
    check(Case(chunk=20, lengths=(111, 21), packed=True), checkpoint_spacing=4, tile_tokens=16)


def test_a_chunk_longer_than_its_sequence_and_one_of_many_tiles():
    check(Case(chunk=300, lengths=(330, 40), packed=True))


@pytest.mark.parametrize("chunk", [1, 2, 3, 15, 16, 64])
def test_the_default_keeps_no_more_than_inputs_take(chunk):
    spec = backward_spec(Case(chunk=chunk))
    schedule = default("tvm", spec, NAMED["x86-64-v4"])
    assert why_illegal(spec, schedule, NAMED["x86-64-v4"]) is None
    assert 16 <= schedule.segment_tokens(spec) <= 64


def test_programs_that_threads_do_not_divide():
    check(Case(heads=5, lengths=(21, 21, 21)), threads=min(2, cpu().cores))


@pytest.mark.parametrize(
    ("chunk", "changes", "reason"),
    [
        (4, {"tile_tokens": 32, "checkpoint_spacing": 4}, "spans 8 chunks of 4 tokens, more than checkpoint_spacing 4"),
        (1, {"checkpoint_spacing": 8}, "stores the states of every 8 tokens"),
        (64, {"checkpoint_spacing": 16}, "compute the states of 1024 tokens again"),
        (64, {"variant": "fused"}, "no variant 'fused' of trellis_attention backward"),
    ],
)
def test_illegal_schedules_say_why(chunk, changes, reason):
    schedule = TvmSchedule("backward", tile_tokens=16, vector_width=16, accumulators=16, threads=1)
    spec = backward_spec(Case(chunk=chunk))
    illegal = why_illegal(spec, dataclasses.replace(schedule, **changes), NAMED["x86-64-v4"])
    assert illegal is not None
    assert reason in illegal


@pytest.mark.parametrize("backend", ["tvm", "triton"])
def test_other_operators_have_no_backward_kernel(backend):
    spec = backward_spec(Case("memory_update", dim_v=20))
    assert "and no other" in why_illegal(spec, default(backend, spec, cpu()), cpu())
