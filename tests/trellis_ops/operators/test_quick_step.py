"""A step that goes straight to its kernel: when it does, and that the kernel lets nothing wrong through."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from codegen.backends.tvm import compile as tvm
from codegen.errors import DeviceMismatchError, DtypeError, ShapeError
from tests.support.inputs import make_inputs
from tests.support.relative_error import relative_error
from trellis_ops import forget, trellis_step
from trellis_ops.operators import plan, registered
from trellis_ops.tokens import Tokens

B, H, D, M = 2, 3, 8, 5
NAMES = Tokens._fields


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


@pytest.fixture
def inputs():
    return make_inputs(B, 1, H, D, D, M)


def call(inputs, implementation="tvm", **changes):
    tensors = dict(zip(NAMES, inputs.token(0), strict=True))
    state = [changes.pop(name, s.clone()) for name, s in zip(("S_k", "S_v"), inputs.initial_state, strict=True)]
    gradient_state = changes.pop("gradient_state", None)
    y = trellis_step(
        **(tensors | changes), state=state, phi_eps=1e-2, gradient_state=gradient_state, implementation=implementation
    )
    return y, *state


@pytest.fixture
def long_ways(monkeypatch):
    """The calls that went the long way."""
    taken = []
    monkeypatch.setattr(registered, "plan", lambda *call: taken.append(call) or plan.plan(*call))
    return taken


@pytest.mark.parametrize("own_gradient_state", [False, True])
def test_the_second_call_goes_straight_to_the_kernel_and_does_the_same(inputs, long_ways, own_gradient_state):
    kept = tuple(s.clone() for s in inputs.initial_state) if own_gradient_state else None
    first, second = (call(inputs, gradient_state=kept) for _ in range(2))
    assert len(long_ways) == 1
    for a, b, c in zip(first, second, call(inputs, "eager", gradient_state=kept), strict=True):
        assert torch.equal(a, b)
        assert relative_error(b, c) < 1e-5


@pytest.mark.parametrize("own_gradient_state", [False, True])
def test_the_kernel_is_given_its_arguments_in_their_declared_order(inputs, monkeypatch, own_gradient_state):
    kept = tuple(s.clone() for s in inputs.initial_state) if own_gradient_state else None
    call(inputs, gradient_state=kept)
    ((key, found),) = plan.QUICK_PLANS.items()
    seen = []
    kernel = lambda programs, *arguments: seen.extend(arguments)  # noqa: E731
    watched = dataclasses.replace(found.operator, kernels=(kernel,))
    monkeypatch.setitem(plan.QUICK_PLANS, key, dataclasses.replace(found, operator=watched))
    y, *states = call(inputs, gradient_state=kept)
    given = dict(zip(NAMES, inputs.token(0), strict=True)) | dict(zip(("S_k", "S_v"), states, strict=True))
    given |= dict(zip(("G_k", "G_v"), kept or (), strict=False))
    given |= {"cu_seqlens": found.sequences.cu_seqlens, "y": y}
    (step,) = found.operator.steps
    for (name, _), tensor in zip(step.arguments, seen, strict=True):
        assert tensor.data_ptr() == given[name].data_ptr(), name


def test_without_a_kernel_that_checks_every_call_goes_the_long_way(inputs, long_ways):
    for _ in range(2):
        call(inputs, "eager")
    assert len(long_ways) == 2


def test_with_values_to_check_every_call_goes_the_long_way(inputs, long_ways, monkeypatch):
    monkeypatch.setenv("TRELLIS_OPS_CHECK_VALUES", "1")
    for _ in range(2):
        call(inputs)
    assert len(long_ways) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda x: x.new_zeros((*x.shape[:-1], x.shape[-1] + 1)), ShapeError),
        (lambda x: x.new_zeros((x.shape[0] + 1, *x.shape[1:])), ShapeError),
        (lambda x: x[None], ShapeError),
        (lambda x: x.to(torch.int32), DtypeError),
        (lambda x: x.to("meta"), DeviceMismatchError),
        (lambda x: None, TypeError),
    ],
    ids=["wider", "more", "rank", "type", "device", "none"],
)
def test_bad_input_is_refused_as_in_a_first_call(inputs, name, wrong, error):
    call(inputs)
    state = tuple(s.clone() for s in inputs.initial_state)
    tensor = dict(zip(NAMES, inputs.token(0), strict=True))[name]
    with pytest.raises(error):
        call(inputs, **{name: wrong(tensor)}, S_k=state[0], S_v=state[1])
    assert all(torch.equal(a, b) for a, b in zip(state, inputs.initial_state, strict=True)), "nothing was written"


@pytest.mark.parametrize("name", ["S_k", "S_v"])
def test_states_of_other_sizes_are_refused(inputs, name):
    call(inputs)
    state = dict(zip(("S_k", "S_v"), inputs.initial_state, strict=True))[name]
    for wrong in (state[:1], state[..., :-1].contiguous(), state[:, :, :-1].contiguous()):
        with pytest.raises(ShapeError, match=name):
            call(inputs, **{name: wrong.clone()})
    with pytest.raises(DtypeError, match=name):
        call(inputs, **{name: state.double()})
    both = dict(zip(("S_k", "S_v"), (torch.cat([s, s]) for s in inputs.initial_state), strict=True))
    with pytest.raises(ShapeError, match="S_k"):
        call(inputs, **both)


def test_what_a_kernel_refuses_goes_the_long_way_from_then_on(inputs, long_ways):
    expected = call(inputs)
    strided = inputs.token(0)[1].transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(call(inputs, k=strided), expected, strict=True))
    assert len(long_ways) == 2, "the kernel refused it"
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(call(inputs), expected, strict=True))
    assert len(long_ways) == 4, "it is not tried again"


def test_a_call_with_an_error_leaves_the_others_quick(inputs, long_ways):
    call(inputs)
    for changes in ({"k": inputs.token(0)[1].double()}, {"k": inputs.token(0)[1].to("meta")}):
        with pytest.raises((DtypeError, DeviceMismatchError)):
            call(inputs, **changes)
    before = len(long_ways)
    call(inputs)
    assert len(long_ways) == before


def test_a_wrong_gradient_state_is_refused_as_in_a_first_call(inputs):
    right = tuple(s.clone() for s in inputs.initial_state)
    call(inputs)
    call(inputs, gradient_state=right)
    for half in ((right[0], None), (None, right[1])):
        with pytest.raises(TypeError, match=r"gradient_state's S_[kv] is None"):
            call(inputs, gradient_state=half)
    with pytest.raises(ShapeError, match="gradient_state's S_k"):
        call(inputs, gradient_state=(right[0][:1], right[1]))
    with pytest.raises(DtypeError, match="gradient_state's S_v"):
        call(inputs, gradient_state=(right[0], right[1].double()))


def test_a_kernel_that_has_begun_and_fails_is_not_run_again(inputs, monkeypatch):
    call(inputs)
    begun = []

    def fails(kernel, programs, *arguments):
        begun.append(kernel)
        raise RuntimeError("no more threads")

    monkeypatch.setattr(tvm.TvmKernel, "__call__", fails)
    with pytest.raises(RuntimeError, match="no more threads"):
        call(inputs)
    assert len(begun) == 1


def test_what_tvm_knows_nothing_of_is_refused_as_in_a_first_call(inputs):
    call(inputs)
    _, k, _, target, _, _ = inputs.token(0)
    with pytest.raises(DtypeError, match=r"k has dtype torch\.bits8"):
        call(inputs, k=torch.empty(k.shape, dtype=torch.bits8))
    with pytest.raises(TypeError, match="k is None"):
        call(inputs, k=None, target=target.to("meta"))


def test_a_call_that_fails_is_not_remembered(inputs, monkeypatch):
    def fails(kernel, programs, *arguments):
        raise RuntimeError("no more threads")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no more threads"):
        patch.setattr(tvm.TvmKernel, "__call__", fails)
        call(inputs)
    assert not plan.QUICK_PLANS


def test_the_plans_known_by_a_short_key_are_bounded(inputs, monkeypatch):
    monkeypatch.setattr(plan, "MOST_PLANS", 3)
    for heads in range(1, 6):
        call(make_inputs(B, 1, heads, D, D, M))
        assert 1 <= len(plan.QUICK_PLANS) <= 3


def test_other_threads_have_another_kernel(inputs, long_ways):
    call(inputs)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        call(inputs)
    finally:
        torch.set_num_threads(threads)
    assert len(long_ways) == 2
