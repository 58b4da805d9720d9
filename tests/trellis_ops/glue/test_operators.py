"""The operators between the products of a block: what torch knows of them, their gradients, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from codegen.errors import DtypeError, GradientError, SequenceError, ShapeError
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import glue
from trellis_ops.dispatch.resolve import VARIABLE
from trellis_ops.glue import registered
from trellis_ops.glue.registered import REGISTERED

HEADS, KEYS, VALUES, TAPS = 3, 5, 7, 4
OFFSETS = torch.tensor([0, 2, 2, 6])


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def inputs_of(dtype: torch.dtype, batch: int = 2, sequences: int = 2, tokens: int = 6) -> list[Tensor]:
    torch.manual_seed(0)
    keys, values = HEADS * KEYS, HEADS * VALUES
    shapes = [(batch, tokens, keys), (batch, tokens, values), (keys, TAPS), (keys, TAPS), (sequences, TAPS - 1, keys)]
    return [drawn(*shape, dtype=dtype) for shape in shapes]


def norm_inputs(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 6, HEADS, VALUES), (2, 6, HEADS * VALUES), (VALUES,)]
    return [drawn(*shape, dtype=dtype) for shape in shapes]


def rows_of(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [drawn(*shape, dtype=dtype) for shape in shapes]


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(each for each in found if each is not None)


Case = tuple[Callable[..., Any], Callable[[torch.dtype], list[Tensor]]]
CASES: dict[str, Case] = {
    "rows": (lambda *given: glue.memory_inputs(*given, heads=HEADS), inputs_of),
    "packed": (
        lambda *given: glue.memory_inputs(*given, OFFSETS, heads=HEADS),
        lambda dtype: inputs_of(dtype, batch=1, sequences=3),
    ),
    "free": (
        lambda shared, *rest: as_tuple(glue.memory_inputs(shared, None, *rest, heads=HEADS, unit_keys=False)),
        lambda dtype: [x for x in inputs_of(dtype, tokens=2) if x.shape[-1] != HEADS * VALUES],
    ),
    "gated_norm": (lambda *given: glue.gated_norm(*given, eps=1e-6), norm_inputs),
    "swiglu_gate": (glue.swiglu_gate, lambda dtype: rows_of(dtype, (2, 5, 37), (2, 5, 37))),
    "rms_norm": (lambda *given: glue.rms_norm(*given, eps=1e-6), lambda dtype: rows_of(dtype, (2, 5, 37), (37,))),
    "add_rms_norm": (
        lambda *given: glue.add_rms_norm(*given, eps=1e-6),
        lambda dtype: rows_of(dtype, (2, 5, 37), (2, 5, 37), (37,)),
    ),
}
EVERY = pytest.mark.parametrize("case", CASES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_torch_knows_of_the_operators(dtype):
    for batch, offsets in ((2, None), (1, OFFSETS)):
        shared, v, *rest = inputs_of(dtype, batch, sequences=2 if offsets is None else 3)
        given = [shared, v, *rest] if offsets is None else [shared, *rest]
        opcheck(REGISTERED["memory_inputs"], (given, offsets, HEADS, offsets is None, 1e-6))
    opcheck(REGISTERED["gated_norm"], (norm_inputs(dtype), 1e-6))
    opcheck(REGISTERED["swiglu_gate"], (rows_of(dtype, (2, 5, 37), (2, 5, 37)),))
    opcheck(REGISTERED["rms_norm"], (rows_of(dtype, (2, 5, 37), (37,)), 1e-6))


@EVERY
def test_gradients_are_right(case):
    call, make = CASES[case]
    assert torch.autograd.gradcheck(lambda *given: as_tuple(call(*given)), make(torch.float64))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_give_what_pytorch_gives_in_float64(case, dtype):
    call, make = CASES[case]
    given = make(dtype)
    wide = [x.detach().double().requires_grad_() for x in given]
    found, right = as_tuple(call(*given)), as_tuple(call(*wide))
    cotangents = [torch.randn_like(x) for x in found]
    gradients = torch.autograd.grad(found, given, cotangents)
    wanted = torch.autograd.grad(right, wide, [x.double() for x in cotangents])
    for actual, expected in zip(found, right, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, TOLERANCE[dtype])
    for actual, expected in zip(gradients, wanted, strict=True):
        assert_close(actual, expected, 10 * TOLERANCE[dtype])
    with torch.no_grad():
        for plain, recorded in zip(as_tuple(call(*given)), found, strict=True):
            torch.testing.assert_close(plain, recorded, rtol=0, atol=0 if case != "add_rms_norm" else 1e-2)


@EVERY
def test_a_kernel_runs_unless_eager_is_asked_for(case, monkeypatch):
    call, make = CASES[case]
    ran: list[bool] = []
    find = registered.kernel_for

    def noted(*args: Any) -> Any:
        found = find(*args)
        ran.append(found is not None)
        return found

    monkeypatch.setattr(registered, "kernel_for", noted)
    kernels = as_tuple(call(*make(torch.float32)))
    monkeypatch.setenv(VARIABLE, "eager")
    eager = as_tuple(call(*make(torch.float32)))
    assert ran == [True, False]
    for actual, expected in zip(kernels, eager, strict=True):
        assert_close(actual, expected, 1e-5)


@EVERY
def test_inputs_need_not_be_contiguous(case):
    call, make = CASES[case]
    given = [x.detach() for x in make(torch.float32)]
    apart = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in given]
    for actual, expected in zip(as_tuple(call(*apart)), as_tuple(call(*given)), strict=True):
        assert torch.equal(actual, expected)


@EVERY
def test_compiled_and_mapped_calls_are_the_calls(case):
    call, make = CASES[case]
    given = make(torch.float32)
    right = as_tuple(call(*given))
    compiled = torch.compile(call, fullgraph=True)
    for actual, expected in zip(as_tuple(compiled(*given)), right, strict=True):
        assert_close(actual, expected, 1e-6)
    twice = [torch.stack([x.detach(), x.detach()]) for x in given]
    for actual, expected in zip(as_tuple(torch.vmap(call)(*twice)), right, strict=True):
        assert torch.equal(actual, torch.stack([expected, expected])) or case == "add_rms_norm"


def test_a_tail_is_what_the_tokens_after_see():
    """A sequence in two pieces, the first shorter than the tail, is the sequence at once; both gradients too."""
    shared, _, *taps, tails = inputs_of(torch.float32)
    whole = glue.memory_inputs(shared, None, *taps, tails, heads=HEADS)
    *first, after = glue.memory_inputs(shared[:, :2], None, *taps, tails, heads=HEADS)
    *second, last = glue.memory_inputs(shared[:, 2:], None, *taps, after, heads=HEADS)
    pieces = [torch.cat([a, b], 1) for a, b, _ in zip(first, second, range(2), strict=False)]
    q, k, _, tail = whole
    for actual, expected in zip((*pieces, last), (q, k, tail), strict=True):
        assert torch.equal(actual, expected)
    leaves = (shared, *taps, tails)
    at_once = torch.autograd.grad([(x**3).sum() for x in (q, k, tail)], leaves)
    in_pieces = torch.autograd.grad([(x**3).sum() for x in (*pieces, last)], leaves)
    for actual, expected in zip(in_pieces, at_once, strict=True):
        assert_close(actual, expected, 1e-5)


def test_a_call_without_tokens_gives_the_tails_back():
    shared, v, *taps, tails = inputs_of(torch.float32, tokens=0)
    q, k, unit, after = glue.memory_inputs(shared, v, *taps, tails, heads=HEADS)
    assert q.shape == k.shape == (2, 0, HEADS, KEYS)
    assert unit.shape == (2, 0, HEADS, VALUES)
    assert torch.equal(after, tails)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"cu_seqlens": torch.tensor([0, 3, 99])}, SequenceError, "99"),
        ({"cu_seqlens": torch.tensor([0, 5, 3, 6])}, SequenceError, "3"),
        ({"heads": 4}, ShapeError, "multiple of H = 4"),
        ({"v": torch.zeros(1, 6, 21, dtype=torch.float64)}, DtypeError, "v"),
        ({"v": torch.zeros(1, 5, 21)}, ShapeError, "v"),
        ({"tails": torch.zeros(1, 2, 15)}, ShapeError, "tails"),
        ({"taps_k": torch.zeros(15, 3)}, ShapeError, "taps_k"),
        ({"taps_q": torch.zeros(15, 1), "taps_k": torch.zeros(15, 1)}, ShapeError, "at least 2 taps"),
    ],
)
def test_bad_calls_are_refused_before_anything_runs(change, error, text):
    count = len(change["cu_seqlens"]) - 1 if "cu_seqlens" in change else 1
    names = ("shared", "v", "taps_q", "taps_k", "tails")
    given: dict[str, Any] = dict(zip(names, inputs_of(torch.float32, batch=1, sequences=count), strict=True))
    with torch.no_grad(), pytest.raises(error, match=text):
        glue.memory_inputs(**{**given, "heads": HEADS, **change})


@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_in_the_place_of_what_it_is_made_of_is_the_same_to_the_bit(dtype, tokens):
    shared, v, *rest = (x.detach() for x in inputs_of(dtype, tokens=tokens))
    gate, up, y = torch.randn(3, 2, tokens, HEADS * VALUES, dtype=dtype)
    weight = torch.rand(VALUES, dtype=dtype)
    heads = y.view(2, tokens, HEADS, VALUES)
    calls = {
        "v": lambda x, **how: glue.memory_inputs(shared, x, *rest, heads=HEADS, **how)[2],
        "norm": lambda x, **how: glue.gated_norm(heads, x, weight, eps=1e-6, **how),
        "gate": lambda x, **how: glue.swiglu_gate(x, up, **how),
    }
    for name, call in calls.items():
        given = v if name == "v" else gate
        right, place = call(given), given.clone()
        found = call(place, overwrite=True)
        assert torch.equal(found, right), name
        assert found.data_ptr() == place.data_ptr(), name
        apart = torch.stack([given, given], -1)[..., 0]
        assert torch.equal(call(apart, overwrite=True), right), name
        assert torch.equal(apart, given), "what does not lie well is left as it is"


def test_nothing_is_overwritten_that_a_gradient_needs():
    gate, up = rows_of(torch.float32, (2, 5), (2, 5))
    before = gate.detach().clone()
    glue.swiglu_gate(gate, up, overwrite=True).sum().backward()
    assert torch.equal(gate, before)


def test_second_derivatives_are_refused():
    gate, up = rows_of(torch.float32, (2, 5), (2, 5))
    (gradient,) = torch.autograd.grad(glue.swiglu_gate(gate, up).sum(), [gate], create_graph=True)
    with pytest.raises(GradientError, match=r"gradient of glue\.swiglu_gate"):
        gradient.sum().backward()
