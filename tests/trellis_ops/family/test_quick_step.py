"""Steps of rules that go straight to a kernel refuse memory that others share, as a first step does."""

from __future__ import annotations

import pytest
import torch

from codegen.errors import DeviceMismatchError, OverlapError
from trellis_ops import forget, memory_step
from trellis_ops.operators.plan import QUICK_PLANS

HEADS, DIM_K, DIM_V = 2, 16, 8
STATE = HEADS * DIM_V * DIM_K


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


def token(dtype=torch.bfloat16):
    """A token of KDA, whose gate of channels is the widest input of a step in float32."""
    shapes = {"q": DIM_K, "k": DIM_K, "v": DIM_V, "log_decay": DIM_K}
    return {name: -torch.rand(1, HEADS, size).to(dtype) for name, size in shapes.items()}


def step(given, state):
    return memory_step(**given, state=(state,), rule="kda", implementation="tvm")


def beside(floats):
    """A state, and the gate of a token that begins so many float32 before it, in one memory."""
    memory = torch.zeros(64 + STATE + 64)
    state = memory[64 : 64 + STATE].view(1, HEADS, DIM_V, DIM_K)
    gate = memory[64 - floats : 64 - floats + HEADS * DIM_K].view(1, HEADS, DIM_K)
    return gate, state


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32], ids=["gate cast before", "gate as it is"])
@pytest.mark.parametrize("floats", [31, 25, 1, -1, 1 - STATE])
def test_a_gate_that_lies_in_a_state_is_refused(first, floats):
    given = token()
    step({**given, "log_decay": given["log_decay"].to(first)}, torch.zeros(1, HEADS, DIM_V, DIM_K))
    assert None not in QUICK_PLANS.values() and QUICK_PLANS
    gate, state = beside(floats)
    before = state.clone()
    with pytest.raises(OverlapError, match="log_decay shares memory with state's S"):
        step({**given, "log_decay": gate}, state)
    assert torch.equal(state, before)


@pytest.mark.parametrize("floats", [32, -STATE])
def test_a_gate_that_touches_a_state_is_taken(floats):
    given = token()
    expected = torch.zeros(1, HEADS, DIM_V, DIM_K)
    zero = torch.zeros(1, HEADS, DIM_K)
    step({**given, "log_decay": zero}, expected)
    gate, state = beside(floats)
    step({**given, "log_decay": gate}, state)
    assert torch.equal(state, expected) and state.abs().sum() > 0


@pytest.mark.parametrize("name", ["q", "v"])
def test_an_input_that_ends_where_a_state_begins_goes_straight_to_the_kernel(name):
    given, state = token(), torch.zeros(1, HEADS, DIM_V, DIM_K)
    given["log_decay"] = given["log_decay"].float()
    step(given, state)
    memory = torch.zeros(given[name].nbytes + 4 * STATE, dtype=torch.uint8)
    beside = memory[: given[name].nbytes].view(torch.bfloat16).view_as(given[name])
    moved = memory[given[name].nbytes :].view(torch.float32).view_as(state)
    beside.copy_(given[name])
    step({**given, name: beside}, moved)
    assert None not in QUICK_PLANS.values() and QUICK_PLANS
    assert torch.equal(moved, state) and state.abs().sum() > 0


@pytest.mark.parametrize("name", ["k", "v", "log_decay", "state"])
def test_what_is_on_another_device_is_refused_as_in_a_first_call(name):
    given, state = token(), torch.zeros(1, HEADS, DIM_V, DIM_K)
    step(given, state.clone())
    assert None not in QUICK_PLANS.values() and QUICK_PLANS
    given["state"] = state
    given[name] = given[name].to("meta")
    with pytest.raises(DeviceMismatchError, match="is on meta but q"):
        step(given, given.pop("state"))
    assert not state.any()


def test_states_that_lie_in_each_other_are_refused():
    shapes = {"q": DIM_K, "k": DIM_K, "v": DIM_V, "log_decay": None, "momentum": None}
    given = {name: -torch.rand(*((1, HEADS) if size is None else (1, HEADS, size))) for name, size in shapes.items()}
    apart = torch.zeros(2, 1, HEADS, DIM_V, DIM_K)
    memory_step(**given, state=tuple(apart), rule="titans", implementation="tvm")
    memory = torch.zeros(STATE + 1)
    S, P = (memory[start : start + STATE].view(1, HEADS, DIM_V, DIM_K) for start in (0, 1))
    with pytest.raises(OverlapError, match="state's P"):
        memory_step(**given, state=(S, P), rule="titans", implementation="tvm")
