"""The rows of a state: each at its own position, picked, repeated, joined and told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.errors import DtypeError, ShapeError, SizeError
from tests.support.relative_error import assert_close
from tests.trellis_ops.lm.rules.models import make_model as make_rule_model
from tests.trellis_ops.lm.small_models import make_model, some_tokens, whole
from trellis_ops.errors import StateError
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState

pytestmark = pytest.mark.usefixtures("eager")

LENGTHS = (3, 16, 21, 0)
"""Tokens that rows have read: inside a chunk, at its end, in the next one, none."""


def ragged_state(model: TrellisLM, tokens: Tensor, lengths: tuple[int, ...] = LENGTHS) -> TrellisState:
    """The state of rows that have each read another number of their tokens."""
    states = []
    for row, length in zip(tokens, lengths, strict=True):
        states.append(model(row[None, :length])[1] if length else model.first_state(1))
    return TrellisState.concatenate(states)


def tensors_of(state: TrellisState) -> dict[str, Tensor]:
    return {f"{i}.{name}": each for i, layer in enumerate(state.layers) for name, each in layer.tensors().items()}


def assert_same(found: TrellisState, expected: TrellisState) -> None:
    assert torch.equal(found.positions, expected.positions)
    wanted = tensors_of(expected)
    for name, tensor in tensors_of(found).items():
        assert torch.equal(tensor, wanted[name]), name


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"decode": "exact", "chunk_size": 1}, {"learned_state": True}], ids=str)
def test_rows_at_their_own_positions_are_stepped_as_each_alone(changes: dict[str, Any]) -> None:
    model, tokens = make_model(**changes), some_tokens(4)
    state = ragged_state(model, tokens)
    if model.config.chunk > 1:
        assert state.positions.tolist() == [3, 0, 5, 0] and state.positions.dtype == torch.int64
    expected = whole(model, tokens)
    for t in range(18):
        token = torch.stack([row[length + t] for row, length in zip(tokens, LENGTHS, strict=True)])
        wanted = torch.stack([row[length + t] for row, length in zip(expected, LENGTHS, strict=True)])
        assert_close(model.step(token, state), wanted, 1e-5, f"token {t}")


@torch.no_grad()
def test_rows_at_their_own_positions_are_read_on_as_each_alone() -> None:
    model, tokens = make_model(), some_tokens(4)
    state = ragged_state(model, tokens)
    kept = state.clone()
    rest = torch.stack([row[length : length + 19] for row, length in zip(tokens, LENGTHS, strict=True)])
    logits, after = model(rest, state)
    expected = whole(model, tokens)
    for row, length in enumerate(LENGTHS):
        assert_close(logits[row], expected[row, length : length + 19], 1e-5, f"row {row}")
    assert after.positions.tolist() == [(length + 19) % 16 for length in LENGTHS]
    assert_same(state, kept)


@torch.no_grad()
def test_positions_that_meet_again_are_one_number() -> None:
    model, tokens = make_model(), some_tokens(2)
    state = ragged_state(model, tokens, (3, 21))
    assert isinstance(state.place, Tensor)
    assert state.select(torch.tensor([1, 1])).place == 5
    state.positions = torch.tensor([7, 7])
    assert state.place == 7 and state.positions.tolist() == [7, 7]
    taken = state.positions
    taken[0] = 3
    assert state.positions.tolist() == [7, 7]


@torch.no_grad()
@pytest.mark.parametrize("make", [make_model, lambda: make_rule_model("yaad"), lambda: make_rule_model("abc")])
def test_rows_are_picked_repeated_and_joined(make: Callable[[], TrellisLM]) -> None:
    model = make()
    tokens = some_tokens(3) % model.config.vocab_size
    state = ragged_state(model, tokens, (3, 17, 22))
    one = [ragged_state(model, tokens[row : row + 1], (length,)) for row, length in enumerate((3, 17, 22))]
    assert_same(state.select(torch.tensor([2, 0])), TrellisState.concatenate([one[2], one[0]]))
    assert_same(state.reorder(torch.tensor([1, 1, 0])), TrellisState.concatenate([one[1], one[1], one[0]]))
    assert_same(state.repeat(2), TrellisState.concatenate([each for each in one for _ in range(2)]))
    for found, expected in zip(state.split(), one, strict=True):
        assert_same(found, expected)
        assert found.nbytes() == state.nbytes() // 3
    assert_same(state.to("cpu"), state)


@torch.no_grad()
def test_what_is_made_of_a_state_shares_no_memory_with_it() -> None:
    state = ragged_state(make_model(), some_tokens(2), (3, 5))
    every = torch.tensor([0, 1])
    made = [state.clone(), state.to("cpu"), state.select(every), state.reorder(every), state.repeat(1)]
    made += [*state.split(), TrellisState.concatenate([state])]
    begins = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(state).values()}
    for other in made:
        assert begins.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in tensors_of(other).values())
        if isinstance(other.place, Tensor):
            other.place.zero_()
    assert state.positions.tolist() == [3, 5]
    assert {tensor.data_ptr() for tensor in tensors_of(state.detach()).values()} == {
        tensor.data_ptr() for tensor in tensors_of(state).values()
    }


@pytest.mark.parametrize(
    ("act", "error", "part"),
    [
        (lambda state: state.select(torch.tensor([0, 2])), SizeError, "rows=2 .*from 0 to 1"),
        (lambda state: state.select(torch.tensor([-1])), SizeError, "rows=-1"),
        (lambda state: state.select(torch.tensor([True, False])), DtypeError, "rows has dtype torch.bool"),
        (lambda state: state.select(torch.zeros(0, dtype=torch.int64)), ShapeError, r"rows has shape \[0\]"),
        (lambda state: state.select([0]), TypeError, r"rows is \[0\]"),
        (lambda state: state.reorder(torch.tensor([0])), ShapeError, r"index has shape \[1\].*\[2\]"),
        (lambda state: state.repeat(0), SizeError, "count=0"),
        (lambda state: TrellisState.concatenate([]), SizeError, "number of states=0"),
        (lambda state: TrellisState.concatenate([state, "other"]), TypeError, "state is str"),
        (lambda state: TrellisState.concatenate([state, make_model(layers=1).first_state(1)]), SizeError, "layers"),
        (lambda state: TrellisState.concatenate([state, make_model(num_slots=9).first_state(1)]), ShapeError, "S_k"),
        (
            lambda state: TrellisState.concatenate([state, make_model(chunk_size=8).first_state(1)]),
            StateError,
            "chunks of 8 tokens",
        ),
        (
            lambda state: TrellisState.concatenate([state, make_model().double().first_state(1)]),
            DtypeError,
            r"\[0\].S_k has dtype torch.float64",
        ),
        (
            lambda state: TrellisState.concatenate([state, make_model(phi="identity").first_state(1)]),
            StateError,
            "phi=identity.*this model computes",
        ),
        (lambda state: setattr(state, "positions", torch.tensor([1.0, 2.0])), DtypeError, "positions has dtype"),
        (lambda state: setattr(state, "positions", 3), TypeError, "positions is 3"),
        (lambda state: TrellisState(state.layers, torch.zeros(2, 1, dtype=torch.int64)), ShapeError, "positions has"),
    ],
)
def test_what_names_no_rows_or_joins_different_states_is_refused(
    act: Callable[[TrellisState], object], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        act(make_model().first_state(2))


def test_a_state_of_another_model_is_refused_before_a_step_too() -> None:
    model, state = make_rule_model("moneta"), make_rule_model("yaad").first_state(2)
    for call in (lambda: model.step(torch.tensor([1, 2]), state), lambda: model(torch.tensor([[1], [2]]), state)):
        with pytest.raises(StateError, match=r"phi=huber.*this model computes"):
            call()
    for other, error in ((make_model(num_slots=9).first_state(2), ShapeError), (make_model().double(), TypeError)):
        with pytest.raises(error, match="state"):
            make_model().step(torch.tensor([1, 2]), other)
    with pytest.raises(TypeError, match="TrellisState of LayerStates"):
        make_model().step(torch.tensor([1]), TrellisState((), 0))
    single = make_model()
    double, state = TrellisLM(single.config), single.first_state(2)
    double.step(torch.tensor([1, 2]), state.clone())
    for cast in (double.double(), TrellisLM(single.config).double()):
        with pytest.raises(DtypeError, match=r"layers\[0\].S_k has dtype torch.float32; expected torch.float64"):
            cast.step(torch.tensor([1, 2]), state)
    for wrong in (torch.tensor([3, 16]), torch.tensor([-1, 2]), torch.tensor([1, 2, 3])):
        state = make_model().first_state(2)
        state.positions = wrong
        with pytest.raises((SizeError, ShapeError), match="positions"):
            make_model().step(torch.tensor([1, 2]), state)
