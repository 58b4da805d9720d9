"""The public operators on this machine's kernels: right, differentiable, and understood by torch."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.library import opcheck

import trellis_ops
from codegen.errors import GradientError
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from tests.support.inputs import make_inputs
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import memory_readout, memory_update, reference, trellis_attention, trellis_step
from trellis_ops.tokens import Tokens

FLOAT32 = TOLERANCE[torch.float32]
RULE = Rule(phi_eps=1e-2)
SETTINGS = {"phi_eps": 1e-2}
# Of the kernels' own tests, as is the chunk of 20 tokens below: each kernel is compiled once for both.
DIMS = (20, 12, 18)
KERNELS = pytest.mark.parametrize("implementation", ["eager", "tvm", None])


def attend(inputs, chunk_size=20, **options):
    options = {"chunk_size": chunk_size, "initial_state": inputs.initial_state, "output_final_state": True} | options
    return trellis_attention(*inputs.args, **SETTINGS, **options)


@KERNELS
@pytest.mark.parametrize(("chunk_size", "step_size"), [(1, "token"), (7, "head"), (20, "token"), (64, "head")])
def test_attention_agrees_with_the_oracle(implementation, chunk_size, step_size):
    inputs = make_inputs(2, 37, 3, *DIMS, step_size=step_size)
    y, states = attend(inputs, chunk_size, implementation=implementation)
    expected_y, expected_states = reference.attention(
        *inputs.args, rule=RULE, chunk_size=chunk_size, initial_state=inputs.initial_state
    )
    assert_close(y, expected_y, FLOAT32, "y")
    for state, expected in zip(states, expected_states, strict=True):
        assert_close(state, expected, FLOAT32)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_float32_states(implementation, dtype):
    inputs = make_inputs(1, 37, 2, *DIMS, step_size="token").to(dtype)
    y, states = attend(inputs, implementation=implementation)
    expected_y, expected_states = reference.attention(
        *inputs.args, rule=RULE, chunk_size=20, initial_state=inputs.initial_state
    )
    assert y.dtype == dtype
    assert {s.dtype for s in states} == {torch.float32}
    assert_close(y, expected_y, TOLERANCE[dtype])
    for state, expected in zip(states, expected_states, strict=True):
        assert_close(state, expected, FLOAT32)


@KERNELS
def test_no_initial_state_is_a_zero_state_and_final_states_are_only_returned_when_asked(implementation):
    inputs = make_inputs(1, 21, 2, *DIMS)
    y, nothing = trellis_attention(*inputs.args, **SETTINGS, chunk_size=20, implementation=implementation)
    zeros = tuple(torch.zeros_like(s) for s in inputs.initial_state)
    same, states = attend(inputs, initial_state=zeros, implementation=implementation)
    assert nothing is None
    assert states is not None
    assert torch.equal(y, same)


@KERNELS
def test_the_initial_state_is_not_overwritten(implementation):
    inputs = make_inputs(1, 21, 2, *DIMS)
    before = tuple(s.clone() for s in inputs.initial_state)
    attend(inputs, implementation=implementation)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs.initial_state, strict=True))


@KERNELS
@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_packed_sequences_equal_the_sequences_one_by_one(implementation, index_type):
    lengths = [5, 1, 33, 16]
    inputs = make_inputs(1, sum(lengths), 2, *DIMS, sequences=len(lengths))
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=index_type)
    y, states = attend(inputs, cu_seqlens=offsets, implementation=implementation)
    for n, (start, end) in enumerate(itertools.pairwise(offsets)):
        alone = inputs.tokens(start, end, tuple(s[n : n + 1] for s in inputs.initial_state))
        y_n, states_n = attend(alone, implementation=implementation)
        assert_close(y[:, start:end], y_n.double(), 2e-6)
        for together, single in zip(states, states_n, strict=True):
            assert_close(together[n : n + 1], single.double(), 2e-6)


@KERNELS
def test_strided_and_expanded_tensors(implementation):
    inputs, options = make_inputs(2, 33, 2, *DIMS), {"chunk_size": 20, "implementation": implementation}
    strided = inputs.map(lambda x: x if x.dim() == 1 else x.transpose(0, 1).contiguous().transpose(0, 1))
    packed = torch.cat([strided.q, strided.k], dim=-1)
    q, k = packed.chunk(2, dim=-1)
    v = strided.v[:, :, :1].expand(-1, -1, 2, -1)
    plain = (inputs.q, inputs.k, v.contiguous(), *inputs.args[3:])
    expected, _ = trellis_attention(*plain, **SETTINGS, **options)
    actual, _ = trellis_attention(q, k, v, *strided.args[3:], **SETTINGS, **options)
    assert not q.is_contiguous() and not v.is_contiguous()
    assert torch.equal(actual, expected)


@KERNELS
@pytest.mark.parametrize("chunk_size", [1, 7])
def test_update_then_readouts_equal_attention(implementation, chunk_size):
    inputs = make_inputs(2, 37, 3, 20, 20, 18)
    gates = (inputs.log_decay, inputs.step_size)
    settings = {"chunk_size": chunk_size, "implementation": implementation}
    s_k, s_v = inputs.initial_state
    starts_k, codes_k, last_k = memory_update(
        inputs.k, inputs.target, *gates, **SETTINGS, **settings, initial_state=s_k
    )
    starts_v, codes_v, last_v = memory_update(
        inputs.v, inputs.target, *gates, **SETTINGS, **settings, initial_state=s_v
    )
    o = memory_readout(inputs.q, inputs.k, starts_k, codes_k, *gates, **settings)
    r = reference.apply_map("ln_silu", o)
    y = memory_readout(r, inputs.v, starts_v, codes_v, *gates, **settings, transpose=True)
    expected_y, expected_states = reference.attention(
        *inputs.args, rule=RULE, chunk_size=chunk_size, initial_state=inputs.initial_state
    )
    assert_close(y, expected_y, FLOAT32)
    for state, expected in zip((last_k, last_v), expected_states, strict=True):
        assert_close(state, expected, FLOAT32)


@KERNELS
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_agrees_with_the_oracle_and_moves_the_state_in_place(implementation, chunked, dtype):
    inputs = make_inputs(3, 1, 2, *DIMS).to(dtype)
    state = tuple(s.clone() for s in inputs.initial_state)
    addresses = [s.data_ptr() for s in state]
    gradient_state = tuple(s.flip(-1).contiguous() for s in state) if chunked else None
    y = trellis_step(*inputs.token(0), state, **SETTINGS, gradient_state=gradient_state, implementation=implementation)
    expected_y, expected = reference.step(
        *inputs.token(0), inputs.initial_state, rule=RULE, gradient_state=gradient_state
    )
    assert_close(y, expected_y, TOLERANCE[dtype])
    assert [s.data_ptr() for s in state] == addresses
    for s, wanted in zip(state, expected, strict=True):
        assert_close(s, wanted, FLOAT32)


@KERNELS
def test_step_moves_a_strided_state(implementation):
    inputs = make_inputs(2, 1, 2, 8, 8, 4)
    plain = tuple(s.clone() for s in inputs.initial_state)
    strided = tuple(s.transpose(2, 3).contiguous().transpose(2, 3) for s in inputs.initial_state)
    y = trellis_step(*inputs.token(0), plain, implementation=implementation)
    same = trellis_step(*inputs.token(0), strided, implementation=implementation)
    assert_close(same, y.double(), 2e-6)
    for a, b in zip(strided, plain, strict=True):
        assert_close(a, b.double(), 2e-6)


def test_step_refuses_gradients():
    inputs = make_inputs(1, 1, 2, 8, 8, 4)
    token = [x.clone().requires_grad_() for x in inputs.token(0)]
    with pytest.raises(GradientError, match="trellis_attention"):
        trellis_step(*token, inputs.initial_state)


@pytest.mark.parametrize(
    ("chunk_size", "link", "step_size", "outer_gradient"),
    [(1, "identity", "token", "bilevel"), (3, "ln_silu", "head", "first_order")],
)
def test_gradients_agree_with_those_of_the_oracle(chunk_size, link, step_size, outer_gradient):
    inputs = make_inputs(2, 13, 2, *DIMS, step_size=step_size)
    leaves, exact = inputs.leaves(), inputs.to(torch.float64).leaves()
    y, states = attend(leaves, chunk_size, link=link, outer_gradient=outer_gradient)
    expected_y, expected_states = reference.attention(
        *exact.args,
        rule=dataclasses.replace(RULE, link=link),
        chunk_size=chunk_size,
        initial_state=exact.initial_state,
        outer_gradient=outer_gradient,
    )
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    ((y * weights).sum() + sum(s.square().sum() for s in states)).backward()
    ((expected_y * weights).sum() + sum(s.square().sum() for s in expected_states)).backward()
    for given, wanted in zip(leaves.tensors, exact.tensors, strict=True):
        assert_close(given.grad, wanted.grad, 10 * FLOAT32)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_gradcheck_of_attention_in_float64(chunk_size):
    inputs = make_inputs(1, 4, 1, 3, 2, 3, dtype=torch.float64).leaves()

    def run(*tensors):
        *tokens, s_k, s_v = tensors
        state = (s_k, s_v)
        y, states = trellis_attention(
            *tokens, **SETTINGS, chunk_size=chunk_size, initial_state=state, output_final_state=True
        )
        return y, *states

    assert torch.autograd.gradcheck(run, inputs.tensors)


def test_gradcheck_of_update_and_readout_in_float64():
    inputs = make_inputs(1, 4, 1, 3, 3, 3, dtype=torch.float64).leaves()
    memory = (inputs.k, inputs.target, inputs.log_decay, inputs.step_size)
    assert torch.autograd.gradcheck(lambda *x: memory_update(*x, **SETTINGS, chunk_size=2), memory)
    starts, codes, _ = (x.detach().requires_grad_() for x in memory_update(*memory, **SETTINGS, chunk_size=2))
    for read, transpose in ((inputs.q, False), (inputs.target, True)):
        tensors = (read, inputs.k, starts, codes, inputs.log_decay, inputs.step_size)
        assert torch.autograd.gradcheck(lambda *x, t=transpose: memory_readout(*x, chunk_size=2, transpose=t), tensors)


def test_only_wanted_gradients_are_computed(monkeypatch):
    inputs = make_inputs(1, 21, 2, *DIMS)
    q = inputs.q.clone().requires_grad_()
    reverse, seen = CompiledOperator.backward, []
    names = Tokens._fields

    def watched(operator, tensors, sequences, wanted):
        seen.extend(tensors[f"d{name}"].fill_(float("nan")) for name in names)
        reverse(operator, tensors, sequences, wanted)

    monkeypatch.setattr(CompiledOperator, "backward", watched)
    y, _ = attend(dataclasses.replace(inputs, q=q), implementation="tvm")
    y.sum().backward()
    assert q.grad.isfinite().all() and q.grad.abs().sum() > 0
    of_q, *others = seen
    assert of_q.isfinite().all()
    assert len(others) == 5 and all(x.isnan().all() for x in others)


OPERATORS = torch.ops.trellis_ops


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
@pytest.mark.parametrize("with_state", [False, True])
def test_opcheck_of_attention(implementation, with_state):
    inputs = make_inputs(1, 21, 2, *DIMS).leaves()
    state = inputs.initial_state if with_state else (None, None)
    settings = ("ln_silu", "ln_silu", "identity", 1e-2, 20, "bilevel", implementation)
    opcheck(OPERATORS.attention.default, (*inputs.args, *state, None, *settings))


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_opcheck_of_packed_attention(implementation):
    inputs = make_inputs(1, 23, 2, *DIMS, state=None)
    offsets = torch.tensor([0, 2, 23])
    settings = ("ln_silu", "ln_silu", "identity", 1e-2, 20, "bilevel", implementation)
    opcheck(OPERATORS.attention.default, (*inputs.args, None, None, offsets, *settings))


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_opcheck_of_the_other_operators(implementation):
    inputs = make_inputs(1, 5, 2, 4, 4, 3).leaves()
    memory = (inputs.k, inputs.target, inputs.log_decay, inputs.step_size)
    opcheck(OPERATORS.update.default, (*memory, inputs.initial_state[0], "ln_silu", 1e-2, 2, implementation))
    starts, codes, _ = (x.detach() for x in memory_update(*memory, **SETTINGS, chunk_size=2))
    read = (inputs.q, inputs.k, starts, codes, inputs.log_decay, inputs.step_size)
    opcheck(OPERATORS.readout.default, (*read, 2, False, implementation))
    token = tuple(x.detach() for x in inputs.token(0))
    state = tuple(s.detach().clone() for s in inputs.initial_state)
    settings = ("ln_silu", "ln_silu", "identity", 1e-2, implementation)
    opcheck(OPERATORS.step.default, (*token, *state, None, None, *settings))
    opcheck(OPERATORS.step.default, (*token, *state, *(s.clone() for s in state), *settings))


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_compiled_functions_give_the_eager_result(implementation):
    inputs = make_inputs(1, 21, 2, *DIMS)

    def both(*tensors):
        y, states = trellis_attention(
            *tensors, **SETTINGS, chunk_size=20, output_final_state=True, implementation=implementation
        )
        with torch.no_grad():
            token = [x if x.dim() == 1 else x[:, 0] for x in tensors]
            moved = tuple(s.clone() for s in states)
            z = trellis_step(*token, moved, **SETTINGS, implementation=implementation)
        return y, z, *moved

    compiled = torch.compile(both, fullgraph=True)
    for one, other in zip(compiled(*inputs.args), both(*inputs.args), strict=True):
        assert_close(one, other.double(), 2e-6)


def test_a_compiled_training_step_has_the_eager_gradients():
    inputs = make_inputs(1, 21, 2, *DIMS)

    def loss(q):
        y, _ = trellis_attention(q, *inputs.args[1:], **SETTINGS, chunk_size=20, initial_state=inputs.initial_state)
        return y.square().sum()

    one, other = (inputs.q.clone().requires_grad_() for _ in range(2))
    # Inductor leaves the square and the sum to torch's own kernels, which saves most of its time.
    torch.compile(loss, fullgraph=True, options={"fallback_by_default": True})(one).backward()
    loss(other).backward()
    assert_close(one.grad, other.grad.double(), 2e-6)


def test_calls_from_the_operator_namespace_and_the_public_function_agree():
    inputs = make_inputs(1, 9, 2, 4, 4, 3)
    y, *_ = OPERATORS.attention(
        *inputs.args, None, None, None, "ln_silu", "ln_silu", "identity", 1e-6, 64, "bilevel", None
    )
    assert torch.equal(y, trellis_attention(*inputs.args)[0])


def test_public_names_exist():
    assert all(hasattr(trellis_ops, name) for name in trellis_ops.__all__)
