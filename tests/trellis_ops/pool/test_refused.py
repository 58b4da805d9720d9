"""What calls on a pool refuse before a kernel runs, and what torch is told of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codegen.errors import (
    DeviceMismatchError,
    DtypeError,
    GradientError,
    LayoutError,
    OverlapError,
    PoolError,
    ShapeError,
)
from codegen.rule import Rule
from codegen.rule_text import rule_text
from tests.support.pooled import serving
from tests.support.relative_error import relative_error
from tests.trellis_ops.family.cases import Case
from trellis_ops import forget, trellis_attention, trellis_step
from trellis_ops.pool import operators

CASE = Case(Rule(step_size="token"), chunk=4, batch=2)


def step(implementation: str = "eager", **changed: object) -> Tensor:
    """A step of two rows of a pool of three slots."""
    served = serving(CASE, (2, 0), 3)
    token = {name: x[:, 0].contiguous() for name, x in served.given.items()}
    pool = {"state": served.state, "gradient_state": served.starts, "positions": torch.tensor([0, 0])}
    pool |= {"state_indices": torch.tensor([2, 0]), "chunk_size": 4, "implementation": implementation}
    return trellis_step(**token | pool | changed)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"state_indices": torch.tensor([1, 1])}, PoolError, "names a slot twice: 1; expected a slot of its own"),
        ({"state_indices": torch.tensor([1, 3])}, PoolError, "lacks: 3; expected 0 to 2, or -1 to skip the row"),
        ({"state_indices": torch.tensor([1, -2])}, PoolError, "lacks: -2"),
        ({"positions": torch.tensor([-1, 0])}, PoolError, "positions has no count of tokens: -1"),
        ({"positions": torch.tensor([0, 2**31])}, PoolError, "positions has no count of tokens: 2147483648"),
        ({"positions": None}, TypeError, "positions is None"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, ShapeError, "positions has shape"),
        ({"positions": torch.zeros(2)}, TypeError, "expected torch.int32 or torch.int64"),
        ({"gradient_state": None}, TypeError, "gradient_state .* has 0 tensors, but must be a tuple of 2"),
        ({"chunk_size": 1}, TypeError, "gradient_state .* has 2 tensors, but must be a tuple of 0"),
        ({"state_indices": None}, TypeError, "positions is given, .* give state_indices too"),
    ],
)
def test_a_call_is_refused(changed, error, says):
    with pytest.raises(error, match=says):
        step(**changed)


@pytest.mark.parametrize("calls_before", [0, 1], ids=["first call", "later call"])
@pytest.mark.parametrize("name", ["state_indices", "positions"])
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (torch.tensor([2.0, 0.0]), DtypeError, "expected torch.int32 or torch.int64"),
        (torch.tensor([2, 0], device="meta"), DeviceMismatchError, "is on meta but q"),
    ],
    ids=["type", "device"],
)
def test_rows_of_another_kind_are_refused(calls_before, name, wrong, error, says):
    """From the second call on TVM's kernel is found without looking at every tensor."""
    forget()
    for _ in range(calls_before):
        step("tvm")
    with pytest.raises(error, match=f"{name} .*{says}"):
        step("tvm", **{name: wrong})


@pytest.mark.parametrize("wrong", [lambda x: x.to("meta"), lambda x: x.sum()], ids=["device", "rank"])
def test_a_later_call_refuses_a_pool_as_a_first_one_does(wrong):
    forget()
    served = serving(CASE, (2, 0), 3)
    s_k, s_v = served.state
    pools = {"state": (s_k, wrong(s_v)), "gradient_state": served.starts}
    with pytest.raises((DeviceMismatchError, ShapeError)) as first:
        step("tvm", **pools)
    step("tvm")
    with pytest.raises(type(first.value)) as later:
        step("tvm", **pools)
    assert str(later.value) == str(first.value)


def test_pools_that_kernels_do_not_take():
    served = serving(CASE, (2, 0), 3)
    s_k, s_v = served.state
    with pytest.raises(LayoutError, match="pool 0 has strides"):
        step(state=(s_k.mT.contiguous().mT, s_v))
    with pytest.raises(OverlapError, match="shares memory"):
        step(state=(s_k, s_v), gradient_state=(s_k, torch.zeros_like(s_v)))
    with pytest.raises(OverlapError, match="shares memory with itself"):
        step(state=(s_k[:1].expand(3, -1, -1, -1), s_v))


def test_final_states_are_those_of_the_pool():
    served = serving(CASE, (2, 0), 3)
    rows = {"state_indices": torch.tensor([2, 0]), "positions": torch.tensor([0, 0])}
    with pytest.raises(TypeError, match="output_final_state is True, but must be False"):
        trellis_attention(
            **served.given, initial_state=served.state, gradient_state=served.starts, output_final_state=True, **rows
        )


def test_a_gradient_is_refused_by_name():
    q = torch.randn(2, CASE.heads, CASE.dim_k, requires_grad=True)
    with pytest.raises(GradientError, match="trellis_step with state_indices has no gradient: states in a pool"):
        step(q=q)


def test_a_batch_of_equal_rows_needs_no_offsets():
    served = serving(replace(CASE, chunk=64), (2, 0), 3)
    rows = {"state_indices": torch.tensor([2, 0]), "positions": torch.tensor([0, 0])}
    y, states = trellis_attention(**served.given, initial_state=served.state, gradient_state=served.starts, **rows)
    right, _ = trellis_attention(**served.given)
    assert states is None
    assert relative_error(y, right) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
@pytest.mark.parametrize("calls_before", [0, 1], ids=["first call", "later call"])
def test_a_backward_through_what_a_step_has_moved_raises(implementation, calls_before):
    """From the second call on TVM's kernel is found without looking at every tensor."""
    forget()
    for _ in range(calls_before):
        step(implementation)
    served = serving(CASE, (2, 0), 3)
    pools = (*served.state, *served.starts)
    totals = [(x.new_ones(()).requires_grad_() * x).sum() for x in pools]
    step(implementation, state=served.state, gradient_state=served.starts)
    for total in totals:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


@pytest.mark.parametrize(("implementation", "inside"), [("eager", True), ("tvm", True), ("tvm", False)])
def test_pools_of_inference_mode_are_moved(implementation, inside):
    """By kernels also outside of it, where torch refuses to write to them."""
    forget()
    served = serving(CASE, (2, 0), 3)
    right = step(implementation, state=served.state, gradient_state=served.starts)
    with torch.inference_mode():
        other = serving(CASE, (2, 0), 3)
    with torch.inference_mode(inside), torch.no_grad():
        y = step(implementation, state=other.state, gradient_state=other.starts)
    assert torch.equal(y, right)
    for x, moved in zip((*other.state, *other.starts), (*served.state, *served.starts), strict=True):
        assert x.is_inference()
        torch.testing.assert_close(x, moved, rtol=0, atol=0, equal_nan=True)


def test_rows_that_are_all_skipped():
    y = step("tvm", state_indices=torch.tensor([-1, -1]))
    assert torch.equal(y, torch.zeros_like(y))


def test_torch_compiles_a_step_whole():
    served, other = serving(CASE, (2, 0), 3), serving(CASE, (2, 0), 3)

    def two(q: Tensor, state: tuple[Tensor, ...], starts: tuple[Tensor, ...]) -> Tensor:
        first = step(q=q, state=state, gradient_state=starts)
        return first + step(q=q, state=state, gradient_state=starts, positions=torch.tensor([1, 1]))

    q = torch.randn(2, CASE.heads, CASE.dim_k)
    right = two(q, served.state, served.starts)
    token = {name: x[:, 0] for name, x in other.given.items() if name != "q"}

    @torch.compile(fullgraph=True)
    def compiled(q: Tensor, state: tuple[Tensor, ...], starts: tuple[Tensor, ...], slots: Tensor) -> Tensor:
        rest = {"state_indices": slots, "chunk_size": 4, "implementation": "eager"}
        kept = {"state": state, "gradient_state": starts}
        first = trellis_step(q, **token, **kept, positions=torch.zeros_like(slots), **rest)
        return first + trellis_step(q, **token, **kept, positions=torch.ones_like(slots), **rest)

    found = compiled(q, other.state, other.starts, torch.tensor([2, 0]))
    torch.testing.assert_close(found, right)
    for one, another in zip(served.state, other.state, strict=True):
        torch.testing.assert_close(one, another, equal_nan=True)


def test_opcheck():
    served = serving(CASE, (2, 0), 3)
    token = [x[:, 0] for x in served.given.values()]
    state, starts = ([x.contiguous() for x in each] for each in (served.state, served.starts))
    rows = (torch.tensor([2, 0]), torch.tensor([0, 0]))
    torch.library.opcheck(operators.pool, (token, state, starts, [], *rows, None, rule_text(CASE.rule), 4, "eager"))
