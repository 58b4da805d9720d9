"""What a step does to memory that others hold: autograd is told of it, and states that share memory are refused."""

from __future__ import annotations

import pytest
import torch

from codegen.errors import OverlapError
from tests.support.inputs import make_inputs
from trellis_ops import forget, memory_update, trellis_step
from trellis_ops.operators.overlap import check_apart

B, H, D, M = 2, 3, 8, 5
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "tvm"])
CALLS = pytest.mark.parametrize("calls_before", [0, 1], ids=["first call", "later call"])
"""From the second call on TVM's kernel is found without looking at every tensor."""


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


@pytest.fixture
def inputs():
    return make_inputs(B, 1, H, D, D, M)


def copies(inputs):
    return tuple(s.clone() for s in inputs.initial_state)


@pytest.fixture
def step(inputs, calls_before):
    def call(state, implementation, gradient_state=None):
        options = {"phi_eps": 1e-2, "implementation": implementation}
        for _ in range(calls_before):
            trellis_step(*inputs.token(0), copies(inputs), **options, gradient_state=gradient_state and copies(inputs))
        return trellis_step(*inputs.token(0), state, **options, gradient_state=gradient_state)

    return call


@IMPLEMENTATIONS
@CALLS
@pytest.mark.parametrize("kind", ["exact", "chunked", "strided"])
def test_a_backward_through_a_state_that_a_step_has_moved_raises(inputs, step, implementation, kind):
    S_k, S_v = copies(inputs)
    if kind == "strided":
        S_k = S_k.transpose(0, 1).contiguous().transpose(0, 1)
    needs = inputs.leaves()
    _, _, after = memory_update(
        needs.k, needs.target, needs.log_decay, needs.step_size, phi_eps=1e-2, initial_state=S_k
    )
    with torch.no_grad():
        step((S_k, S_v), implementation, copies(inputs) if kind == "chunked" else None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        after.sum().backward()


@IMPLEMENTATIONS
@CALLS
def test_a_step_counts_as_a_new_version_of_both_states_and_of_nothing_else(inputs, step, implementation):
    state, starts = copies(inputs), copies(inputs)
    step(state, implementation, starts)
    assert all(s._version > 0 for s in state)
    assert [x._version for x in (*starts, *inputs.token(0))] == [0] * 8


@IMPLEMENTATIONS
@CALLS
def test_states_of_inference_mode_which_have_no_version_are_moved(inputs, step, implementation):
    with torch.inference_mode():
        state = copies(inputs)
        y = step(state, implementation)
    expected = copies(inputs)
    assert torch.equal(y, step(expected, implementation))
    assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))


@CALLS
@pytest.mark.parametrize("place", [0, 1], ids=["S_k", "S_v"])
def test_a_kernel_moves_states_of_inference_mode_outside_of_it_in_any_layout(inputs, step, calls_before, place):
    """Where torch refuses to write to them, a copy that goes back does not leave one of them behind."""
    with torch.inference_mode():
        state = list(copies(inputs))
        state[place] = state[place].transpose(0, 1).contiguous().transpose(0, 1)
    y = step(tuple(state), "tvm")
    expected = copies(inputs)
    assert torch.equal(y, step(expected, "tvm"))
    assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))


@CALLS
def test_a_kernel_that_fails_may_have_written_and_counts_as_a_new_version(inputs, step, calls_before, monkeypatch):
    from codegen.backends.tvm import compile as tvm

    step(copies(inputs), "tvm")
    if not calls_before:
        forget()

    def fails(kernel, programs, *arguments):
        raise RuntimeError("no more threads")

    monkeypatch.setattr(tvm.TvmKernel, "__call__", fails)
    state = copies(inputs)
    with pytest.raises(RuntimeError, match="no more threads"):
        trellis_step(*inputs.token(0), state, phi_eps=1e-2, implementation="tvm")
    assert all(s._version > 0 for s in state)


def shared_pairs():
    long = torch.zeros(B + 1, H, M, D)
    one, other = torch.zeros(2, B, H, M, D)
    window = torch.zeros(B * H * M * D).as_strided((B, H, M, D), (H * M * 4, M * 4, 4, 1))
    return {
        "one tensor": ((one, one), "S_v shares memory with state's S_k"),
        "views": ((long[:B], long[1:]), "S_v shares memory with state's S_k"),
        "a window": ((window, other), "S_k shares memory with itself"),
        "expanded": ((one, other[:1].expand(B, H, M, D)), "S_v shares memory with itself"),
    }


@IMPLEMENTATIONS
@CALLS
@pytest.mark.parametrize("kind", shared_pairs())
def test_states_that_share_memory_are_refused_and_left(step, implementation, kind):
    state, words = shared_pairs()[kind]
    with pytest.raises(OverlapError, match=words):
        step(state, implementation)
    assert all((s == 0).all() for s in state)


@IMPLEMENTATIONS
@CALLS
def test_a_gradient_state_that_shares_memory_with_a_state_is_refused(inputs, step, implementation):
    S_k, S_v = copies(inputs)
    for starts, words in (
        ((S_k, S_v.clone()), "gradient_state's S_k shares memory with state's S_k"),
        ((S_k.clone(), S_v.detach()), "gradient_state's S_v shares memory with state's S_v"),
        ((S_v, S_k.clone()), "gradient_state's S_k shares memory with state's S_v"),
        ((S_v.clone(), S_k), "gradient_state's S_v shares memory with state's S_k"),
    ):
        with pytest.raises(OverlapError, match=words):
            step((S_k, S_v), implementation, starts)
    assert all(torch.equal(a, b) for a, b in zip((S_k, S_v), inputs.initial_state, strict=True))


@IMPLEMENTATIONS
@CALLS
def test_what_shares_storage_but_no_memory_is_moved_as_ever(inputs, step, implementation):
    expected = copies(inputs)
    y = step(expected, implementation)
    side_by_side = torch.cat(inputs.initial_state, -1)
    stacked = torch.stack(inputs.initial_state)
    for state in ((side_by_side[..., :D], side_by_side[..., D:]), (stacked[0], stacked[1])):
        assert torch.equal(step(state, implementation), y)
        assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))


@IMPLEMENTATIONS
@CALLS
def test_one_start_for_both_memories_and_the_state_as_its_own_start_are_taken(inputs, step, implementation):
    state, again = copies(inputs), copies(inputs)
    assert torch.equal(step(state, implementation, state), step(again, implementation))
    start = torch.zeros(B, H, M, D)
    one, two = (step(copies(inputs), implementation, starts) for starts in ((start, start), (start, start.clone())))
    assert torch.equal(one, two)


def test_whether_strided_memory_meets_is_told_exactly():
    generator = torch.Generator().manual_seed(0)

    def draw(low, high, count):
        return torch.randint(low, high, (count,), generator=generator).tolist()

    met = 0
    for _ in range(300):
        memory, layouts = torch.zeros(200), []
        for _ in range(2):
            layouts.append((draw(1, 4, 3), draw(1, 20, 3), *draw(0, 60, 1)))
        pair = [memory.as_strided(*layout) for layout in layouts]
        places = [torch.arange(200).as_strided(*layout).flatten().tolist() for layout in layouts]
        meet = any(len(set(p)) < len(p) for p in places) or bool(set(places[0]) & set(places[1]))
        met += meet
        try:
            check_apart(*pair, None, None)
        except OverlapError:
            assert meet, layouts
        else:
            assert not meet, layouts
    assert 50 < met < 250


INPUTS = ("q", "k", "v", "target", "log_decay", "step_size")


@IMPLEMENTATIONS
@CALLS
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("place", [0, 1], ids=["S_k", "S_v"])
def test_an_input_that_lies_in_a_state_is_refused_and_nothing_is_written(
    inputs, implementation, calls_before, name, place
):
    """The end of the state is the input: whichever starts first in memory, one byte in common is enough."""
    token = dict(zip(INPUTS, inputs.token(0), strict=True))
    for _ in range(calls_before):
        trellis_step(*token.values(), copies(inputs), phi_eps=1e-2, implementation=implementation)
    around = torch.zeros(inputs.initial_state[place].numel() + token[name].numel() - 1)
    state = list(copies(inputs))
    state[place] = around[: state[place].numel()].view_as(state[place]).copy_(state[place])
    token[name] = around[state[place].numel() - 1 :].view_as(token[name])
    before = [s.clone() for s in state]
    with pytest.raises(OverlapError, match=f"^{name} shares memory with state's S_"):
        trellis_step(*token.values(), tuple(state), phi_eps=1e-2, implementation=implementation)
    assert all(map(torch.equal, state, before))


@IMPLEMENTATIONS
@CALLS
def test_inputs_side_by_side_with_the_states_are_taken(inputs, implementation, calls_before):
    """In one storage, each where the one before ends."""
    q, k, *others = inputs.token(0)
    S_k, S_v = copies(inputs)
    tensors = (q, S_k, k, S_v, *others)
    parts = torch.cat([x.flatten() for x in tensors]).split([x.numel() for x in tensors])
    q, S_k, k, S_v, *others = (part.view_as(x) for part, x in zip(parts, tensors, strict=True))
    expected = copies(inputs)
    for _ in range(calls_before + 1):
        y = trellis_step(q, k, *others, (S_k, S_v), phi_eps=1e-2, implementation=implementation)
        assert torch.equal(y, trellis_step(*inputs.token(0), expected, phi_eps=1e-2, implementation=implementation))
    assert torch.equal(S_k, expected[0])
    assert torch.equal(S_v, expected[1])
