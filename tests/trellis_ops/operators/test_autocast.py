"""The operators under torch.autocast on this CPU: low inputs, float32 states and gates, gradients near float32's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import memory_readout, memory_update, trellis_attention, trellis_step
from trellis_ops.operators import autocast as operators_autocast
from trellis_ops.tokens import Tokens

NAMES = (*Tokens._fields, "S_k", "S_v")
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "tvm"])
# Of the kernels' own tests, as is the chunk of 20 tokens: each kernel is compiled once for both.
DIMS = (20, 12, 18)
LOW = TOLERANCE[torch.bfloat16]


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def run(x: Inputs, implementation: str) -> tuple[Tensor, ...]:
    y, states = trellis_attention(
        *x.args,
        **{"phi_eps": 1e-2, "chunk_size": 20, "initial_state": x.initial_state},
        output_final_state=True,
        implementation=implementation,
    )
    assert states is not None
    return y, *states


def gradients(outputs: tuple[Tensor, ...], x: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sum(out.float().square().sum() for out in outputs), x.tensors)


@IMPLEMENTATIONS
def test_a_training_step_keeps_states_and_gates_in_float32(implementation: str) -> None:
    x = make_inputs(1, 37, 2, *DIMS).leaves()
    with autocast():
        outputs = run(x, implementation)
    assert [out.dtype for out in outputs] == [torch.bfloat16, torch.float32, torch.float32]
    exact = run(x, implementation)
    for low, full in zip(outputs, exact, strict=True):
        assert_close(low.float(), full.double(), LOW)
    for name, low, full in zip(NAMES, gradients(outputs, x), gradients(exact, x), strict=True):
        assert low.dtype == torch.float32, name
        assert_close(low, full.double(), 2 * LOW, name)


@IMPLEMENTATIONS
def test_a_backward_inside_autocast_is_the_same(implementation: str) -> None:
    x = make_inputs(1, 37, 2, *DIMS).leaves()
    with autocast():
        outputs = run(x, implementation)
        inside = gradients(outputs, x)
        again = run(x, implementation)
    for one, other in zip(inside, gradients(again, x), strict=True):
        assert torch.equal(one, other)


@IMPLEMENTATIONS
def test_operators_called_by_their_names_do_not_lower_their_states(implementation: str) -> None:
    x = make_inputs(1, 21, 2, *DIMS)
    call = (*x.args, *x.initial_state, None, "ln_silu", "ln_silu", "identity", 1e-2, 20, "bilevel", implementation)
    expected = torch.ops.trellis_ops.attention(*call)
    with autocast():
        found = torch.ops.trellis_ops.attention(*call)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@IMPLEMENTATIONS
def test_the_other_operators(implementation: str) -> None:
    x = make_inputs(1, 9, 2, 4, 4, 3)
    options = {"chunk_size": 4, "implementation": implementation}
    with autocast():
        starts, codes, state = memory_update(x.k, x.target, x.log_decay, x.step_size, phi_eps=1e-2, **options)
        o = memory_readout(x.q, x.k, starts, codes, x.log_decay, x.step_size, **options)
        moved = tuple(s.clone() for s in x.initial_state)
        y = trellis_step(*x.token(0), moved, phi_eps=1e-2, implementation=implementation)
    assert {starts.dtype, codes.dtype, state.dtype, *(s.dtype for s in moved)} == {torch.float32}
    assert {o.dtype, y.dtype} == {torch.bfloat16}
    same = tuple(s.clone() for s in x.initial_state)
    assert_close(y.float(), trellis_step(*x.token(0), same, phi_eps=1e-2).double(), LOW)


def test_float64_inputs_stay_float64() -> None:
    x = make_inputs(1, 9, 2, 4, 4, 3, dtype=torch.float64)
    with autocast():
        y, _ = trellis_attention(*x.args, chunk_size=4)
    assert y.dtype == torch.float64


def test_a_compiled_training_step_under_autocast() -> None:
    x, same = (make_inputs(1, 21, 2, *DIMS).leaves() for _ in range(2))

    def loss(q: Tensor) -> Tensor:
        with autocast():
            y, _ = trellis_attention(q, *x.args[1:], phi_eps=1e-2, chunk_size=20)
        return y.float().square().sum()

    torch.compile(loss, fullgraph=True)(x.q).backward()
    loss(same.q).backward()
    assert x.q.grad is not None and same.q.grad is not None
    assert_close(x.q.grad, same.q.grad.double(), 1e-6)


def test_meta_tensors_which_have_no_autocast_give_shapes():
    q, k, v, target, log_decay, step_size = (x.to("meta") for x in make_inputs(2, 9, 3, 8, 6, 5).args)
    y, state = trellis_attention(q, k, v, target, log_decay, step_size, output_final_state=True)
    assert (y.device.type, y.shape) == ("meta", v.shape)
    assert [tuple(s.shape) for s in state] == [(2, 3, 5, 8), (2, 3, 5, 6)]


def test_autocast_of_a_device_that_any_autocast_leaves_out_is_seen(monkeypatch):
    """Such as mps, of which there is none here: what is asked for is its own flag."""
    asked = []
    monkeypatch.setattr(operators_autocast, "_is_on", lambda device_type: asked.append(device_type))
    tokens = tuple(x.to("meta") for x in make_inputs(2, 9, 3, 8, 6, 5).args[:4])
    operators_autocast.lower(tokens, ())
    assert asked == ["meta"]
