"""What a call is resolved to once: when the plan is kept, when another is made, and who may use it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from codegen.errors import DeviceMismatchError, DtypeError, ShapeError, ValueCheckError
from tests.support.inputs import make_inputs
from trellis_ops import forget, trellis_attention, trellis_step
from trellis_ops.operators import plan, registered
from trellis_ops.operators.plan import is_plain
from trellis_ops.tokens import Tokens

SETTINGS = ("ln_silu", "ln_silu", "identity", 1e-2)


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


def found(inputs, implementation="eager"):
    tensors = (*inputs.token(0), *inputs.initial_state, None, None)
    return plan.plan(registered.step_request, tensors, SETTINGS, implementation)


def test_equal_calls_share_a_plan_and_others_do_not():
    inputs = make_inputs(1, 1, 2, 8, 8, 4)
    first = found(inputs)
    assert found(make_inputs(1, 1, 2, 8, 8, 4, seed=1)) is first
    assert found(make_inputs(2, 1, 2, 8, 8, 4)) is not first
    assert found(make_inputs(1, 1, 2, 8, 8, 4, step_size="token")) is not first
    assert found(inputs.to(torch.bfloat16)) is not first
    assert found(inputs, None) is not first


def test_a_full_table_of_plans_starts_again(monkeypatch):
    monkeypatch.setattr(plan, "MOST_PLANS", 3)
    for tokens in range(1, 8):
        inputs = make_inputs(1, tokens, 2, 8, 8, 4)
        y, _ = trellis_attention(*inputs.args, implementation="eager")
        assert y.shape == inputs.v.shape
        assert len(plan._PLANS) <= 3


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("k", lambda x: x.half(), DtypeError),
        ("target", lambda x: x[..., :1, :], ShapeError),
        ("step_size", lambda x: x.to("meta"), DeviceMismatchError),
        ("log_decay", lambda x: x.long(), DtypeError),
    ],
)
def test_a_bad_call_is_refused_after_a_good_one(implementation, name, change, error):
    names = Tokens._fields
    inputs = make_inputs(1, 5, 2, 8, 8, 4)
    good = dict(zip(names, inputs.args, strict=True))
    trellis_attention(**good, implementation=implementation)
    with pytest.raises(error, match=name):
        trellis_attention(**good | {name: change(good[name])}, implementation=implementation)
    token, state = dict(zip(names, inputs.token(0), strict=True)), tuple(s.clone() for s in inputs.initial_state)
    trellis_step(**token, state=state, implementation=implementation)
    before = [s.clone() for s in state]
    with pytest.raises(error, match=name):
        trellis_step(**token | {name: change(token[name])}, state=state, implementation=implementation)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


def test_the_environment_is_read_again_after_forget(monkeypatch):
    inputs = make_inputs(1, 5, 2, 8, 8, 4)
    inputs.step_size[1] = -1.0
    trellis_attention(*inputs.args, implementation="eager")
    monkeypatch.setenv("TRELLIS_OPS_CHECK_VALUES", "1")
    forget()
    with pytest.raises(ValueCheckError, match="step_size is negative"):
        trellis_attention(*inputs.args, implementation="eager")
    monkeypatch.delenv("TRELLIS_OPS_CHECK_VALUES")
    forget()
    trellis_attention(*inputs.args, implementation="eager")


def test_plain_calls():
    leaf = torch.zeros(2, requires_grad=True)
    assert is_plain((torch.zeros(2), None, torch.nn.Parameter(torch.zeros(2), requires_grad=False)))
    assert not is_plain((torch.zeros(2), leaf))
    with torch.no_grad():
        assert is_plain((torch.zeros(2), leaf))
        assert is_plain((torch.nn.Parameter(torch.zeros(2)),))


def test_calls_that_need_the_dispatcher():
    class Subclass(torch.Tensor):
        pass

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with FakeTensorMode() as mode:
        assert not is_plain((torch.zeros(2),))
    assert not is_plain((torch.zeros(2), mode.from_tensor(torch.zeros(2))))
    assert not is_plain((torch.zeros(2), torch.zeros(2).as_subclass(Subclass)))
    with Watching():
        assert not is_plain((torch.zeros(2),))
    seen = []
    torch.vmap(lambda x: seen.append(is_plain((torch.zeros(2),))) or x)(torch.zeros(2, 2))
    torch.func.grad(lambda x: seen.append(is_plain((torch.zeros(2), x))) or x.sum())(torch.zeros(2))
    assert seen == [False, False]
