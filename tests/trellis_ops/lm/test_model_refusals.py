"""Tokens and states that the reference model refuses, and what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codegen.errors import DtypeError, ShapeError, SizeError, TrellisError
from tests.trellis_ops.lm.small_models import make_model, some_tokens
from trellis_ops.errors import StateError
from trellis_ops.lm.state import LayerState, TrellisState

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize(
    ("tokens", "error", "part"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), ShapeError, r"tokens has shape \[2, 0\]"),
        (torch.zeros(0, 2, dtype=torch.int64), ShapeError, r"tokens has shape \[0, 2\]"),
        (torch.zeros(2, dtype=torch.int64), ShapeError, r"tokens has shape \[2\]"),
        (torch.zeros(2, 2, dtype=torch.int32), DtypeError, "int32.*int64"),
        (torch.zeros(2, 2), DtypeError, "float32.*int64"),
    ],
    ids=["no tokens", "no sequences", "rank 1", "int32", "float32"],
)
def test_tokens_that_do_not_fit_are_refused(tokens: Tensor, error: type[TrellisError], part: str) -> None:
    with pytest.raises(error, match=part):
        make_model()(tokens)


def broken(change: Callable[[LayerState], None]) -> TrellisState:
    state = make_model().first_state(2)
    change(state.layers[1])
    return state


@pytest.mark.parametrize(
    ("state", "error", "part"),
    [
        (
            lambda: make_model().first_state(3),
            ShapeError,
            r"layers\[0\].S_k has shape \[3, 2, 8, 16\].*\[2, 2, 8, 16\]",
        ),
        (lambda: make_model(num_slots=9).first_state(2), ShapeError, "S_k"),
        (lambda: make_model(layers=3).first_state(2), SizeError, "layers in state=3"),
        (lambda: make_model(chunk_size=8).first_state(2), StateError, "chunks of 8 tokens, .* chunks of 16"),
        (lambda: make_model(chunk_size=8).first_state(2).to("cpu"), StateError, "chunks of 8 tokens"),
        (lambda: copy.deepcopy(make_model(chunk_size=8).first_state(2)), StateError, "chunks of 8 tokens"),
        (lambda: make_model(decode="exact").first_state(2), ShapeError, "start_k has shape None"),
        (lambda: make_model(conv_width=3).first_state(2), ShapeError, "tail"),
        (lambda: replace(make_model().first_state(2), place=16), SizeError, "place=16.*0 to 15"),
        (lambda: broken(lambda layer: setattr(layer, "S_v", layer.S_v.double())), DtypeError, r"\[1\].S_v.*float64"),
    ],
    ids=["batch", "slots", "layers", "chunk_size", "moved", "copied", "decode", "conv_width", "position", "dtype"],
)
def test_a_state_that_does_not_fit_is_refused(
    state: Callable[[], TrellisState], error: type[TrellisError], part: str
) -> None:
    with pytest.raises(error, match=part):
        make_model()(some_tokens(), state())


def test_a_step_takes_one_token_of_each_sequence() -> None:
    model = make_model()
    state = model.first_state(2)
    with pytest.raises(ShapeError, match=r"tokens has shape \[3\].*\[2\]"):
        model.step(torch.zeros(3, dtype=torch.int64), state)
    with pytest.raises(DtypeError, match="int32"):
        model.step(torch.zeros(2, dtype=torch.int32), state)
    with pytest.raises(SizeError, match="batch=0"):
        model.first_state(0)
