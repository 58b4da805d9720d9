"""Whatever changes the tensors of a state between two tokens is seen by the second, though kernels hold them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch

from codegen.errors import OverlapError
from tests.trellis_ops.lm.decode.models import CHUNKED, model_of, relative_error, stepped, stepped_by_modules
from trellis_ops.lm.decode.held_state import HeldState
from trellis_ops.lm.state import LayerState, TrellisState

TOKENS = torch.randint(0, 256, (5, 2))


def replace(state: TrellisState) -> None:
    layer = state.layers[1]
    layer.S_k = 2 * layer.S_k


def replace_layer(state: TrellisState) -> None:
    layer = state.layers[0]
    state.layers = (layer.each(lambda tensor: 0.5 * tensor), *state.layers[1:])


def give_other_memory(state: TrellisState) -> None:
    layer = state.layers[0]
    layer.S_v.data = 3 * layer.S_v


def write(state: TrellisState) -> None:
    state.layers[1].start_v.mul_(2)


def turn(state: TrellisState) -> None:
    """The same memory, read in another order: heads and rows change places."""
    state.layers[1].S_v.transpose_(0, 1)


def move_rows(state: TrellisState) -> None:
    state.positions = torch.tensor([1, 3])


@pytest.mark.parametrize(
    "change", [replace, replace_layer, give_other_memory, write, turn, move_rows], ids=lambda each: each.__name__
)
def test_the_next_step_sees_it(change: Callable[[TrellisState], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CHUNKED)
    state, other = (model.first_state(2) for _ in range(2))
    stepped(model, state, TOKENS[:2])
    stepped_by_modules(model, other, TOKENS[:2], monkeypatch)
    assert isinstance(state.held, HeldState)
    for each in (state, other):
        change(each)
    found, right = stepped(model, state, TOKENS[2:]), stepped_by_modules(model, other, TOKENS[2:], monkeypatch)
    assert relative_error(found, right) < 1e-5
    for layer, wanted in zip(state.layers, other.layers, strict=True):
        assert isinstance(layer, LayerState)
        for name, tensor in wanted.tensors().items():
            assert relative_error(layer.tensors()[name], tensor) < 1e-5, name


def test_two_memories_that_become_one_are_refused() -> None:
    model = model_of(CHUNKED)
    state = model.first_state(2)
    stepped(model, state, TOKENS[:2])
    state.layers[0].S_k = state.layers[0].S_v
    with pytest.raises(OverlapError, match="S_k"):
        model.step(TOKENS[2], state)


def test_two_models_of_one_shape_take_turns_with_one_state() -> None:
    first, second = model_of(CHUNKED), model_of(CHUNKED)
    second.embedding.weight.mul_(1.5)
    state, other = first.first_state(2), first.first_state(2)
    taken = [model.step(tokens, state) for model, tokens in zip((first, second, first), TOKENS, strict=False)]
    again = [model.step(tokens, other.clone()) for model, tokens in zip((first,), TOKENS, strict=False)]
    assert torch.equal(taken[0], again[0])
    for model, tokens, logits in zip((first, second, first), TOKENS, taken, strict=False):
        other.held = None
        assert torch.equal(model.step(tokens, other), logits)


def test_copies_and_files_of_a_state_hold_nothing() -> None:
    model = model_of(CHUNKED)
    state = model.first_state(2)
    stepped(model, state, TOKENS[:2])
    assert state.held is not None
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    turned = state.select(torch.tensor([1, 0]))
    copies = [copy.copy(state), copy.deepcopy(state), state.clone(), turned, torch.load(file)]
    assert all(each.held is None for each in copies)
    wanted = stepped(model, state, TOKENS[2:])
    for each in (copies[1], copies[2], copies[4]):
        assert torch.equal(stepped(model, each, TOKENS[2:]), wanted)


def test_tails_of_bfloat16_are_written_back_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CHUNKED).bfloat16()
    state, other = (model.first_state(2) for _ in range(2))
    found, right = stepped(model, state, TOKENS), stepped_by_modules(model, other, TOKENS, monkeypatch)
    assert state.held is None
    assert relative_error(found.float(), right.float()) < 2e-2
    assert relative_error(state.layers[0].tail.float(), other.layers[0].tail.float()) < 2e-2
