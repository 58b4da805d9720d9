"""Tokens that were read ahead are taken back, of each row another number, as if they had never been read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codegen.errors import DtypeError, ShapeError, SizeError
from tests.support.relative_error import assert_close
from tests.trellis_ops.lm.rules.models import make_model as make_rule_model
from tests.trellis_ops.lm.sequences.models import MODELS, model_of, some_tokens
from tests.trellis_ops.lm.small_models import make_model
from tests.trellis_ops.lm.state.test_model_state import tensors_of
from trellis_ops.errors import RollbackError, StateError, TokenError
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState

pytestmark = pytest.mark.usefixtures("eager")


def assert_state(found: TrellisState, expected: TrellisState, model: TrellisLM) -> None:
    """Equal but for what is kept of the start of a chunk by rows that are at one, which is nothing."""
    assert torch.equal(found.positions, expected.positions)
    inside = expected.positions > 0
    wanted = tensors_of(expected)
    for name, tensor in tensors_of(found).items():
        other = wanted[name]
        if any(part in name for part in ("start", "0_", "S0", "n0", ".A")):
            tensor, other = tensor[inside], other[inside]
        assert_close(tensor[other.isfinite()], other[other.isfinite()], 1e-5, name)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=2, max_size=3))
def test_each_row_is_where_it_would_be_without_what_was_rejected(name: str, before: int, kept: list[int]) -> None:
    model = model_of(name)
    tokens = some_tokens(model, len(kept), before + 8)
    _, state = model(tokens[:, :before])
    draft = tokens[:, before : before + 5]
    stepped = state.clone()
    checkpoint = model.checkpoint(stepped)
    for token in draft.unbind(1):
        model.step(token, stepped)
    back = model.rollback(checkpoint, draft, torch.tensor(kept))
    for row, count in enumerate(kept):
        alone = model(tokens[row : row + 1, : before + count])[1]
        assert_state(back.select(torch.tensor([row])), alone, model)
    # The rows go on with tokens that are not those of the draft.
    expected = torch.stack([_next(model, tokens[row, : before + count], 3) for row, count in enumerate(kept)])
    assert_close(model.step(torch.full((len(kept),), 3), back), expected, 1e-5)
    assert torch.equal(checkpoint.positions, state.positions)


def _next(model: TrellisLM, read: Tensor, token: int) -> Tensor:
    return model(torch.cat([read, torch.tensor([token])])[None], return_state=False)[0][0, -1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["chunked", "titans"])
def test_what_all_rows_keep_is_read_by_the_same_kernels(name: str) -> None:
    model = model_of(name)
    tokens = some_tokens(model, 2, 9)
    _, state = model(tokens[:, :3])
    expected = tensors_of(model(tokens[:, 3:], state)[1])
    for key, tensor in tensors_of(model.rollback(state, tokens[:, 3:], torch.tensor([6, 6]))).items():
        assert torch.equal(tensor, expected[key]), key
    for key, tensor in tensors_of(model.rollback(state, tokens[:, 3:], torch.tensor([0, 0]))).items():
        assert torch.equal(tensor, tensors_of(state)[key]), key


@torch.no_grad()
def test_greedy_speculation_writes_what_greedy_decoding_writes() -> None:
    """A draft of random tokens, some of them right, for rows that accept different numbers."""
    model = model_of("learned")
    prompt, draw = some_tokens(model, 3, 5), torch.Generator().manual_seed(0)
    expected = model.generate(prompt, 24, temperature=0.0)[:, 5:]
    _, state = model(prompt[:, :-1])
    last, written = prompt[:, -1], [[] for _ in range(3)]
    while min(map(len, written)) < 20:
        done = torch.tensor([len(row) for row in written])
        right = torch.stack([expected[row, n : n + 3] if n <= 21 else expected[row, :3] for row, n in enumerate(done)])
        wrong = torch.rand(3, 3, generator=draw) < 0.4
        draft = torch.where(wrong, (right + 1) % model.config.vocab_size, right)
        read = torch.cat([last[:, None], draft], 1)
        logits, _ = model(read, state)
        likeliest = logits.argmax(-1)
        accepted = (likeliest[:, :3] == draft).long().cumprod(1).sum(1).clamp_max(20 - done.clamp_max(20))
        state = model.rollback(state, read, torch.where(done < 20, 1 + accepted, 0))
        for row in range(3):
            if done[row] < 20:
                written[row] += likeliest[row, : accepted[row] + 1].tolist()
        last = torch.tensor([row[-1] for row in written])
    for row in range(3):
        assert written[row][:20] == expected[row, :20].tolist()


@pytest.mark.parametrize(
    ("tokens", "kept", "error", "part"),
    [
        (torch.ones(2, 3).long(), torch.tensor([4, 0]), SizeError, "kept=4 .*0 to 3"),
        (torch.ones(2, 3).long(), torch.tensor([-1, 0]), SizeError, "kept=-1"),
        (torch.ones(2, 3).long(), torch.tensor([1]), ShapeError, r"kept has shape \[1\]"),
        (torch.ones(2, 3).long(), torch.tensor([1.0, 2.0]), DtypeError, "kept has dtype"),
        (torch.ones(2, 3).long(), 2, TypeError, "kept is 2"),
        (torch.ones(2, 0).long(), torch.tensor([0, 0]), ShapeError, r"tokens has shape \[2, 0\]"),
        (torch.ones(3, 3).long(), torch.tensor([1, 1, 1]), ShapeError, "S_k"),
        (torch.full((2, 3), 99), torch.tensor([1, 3]), TokenError, "99"),
    ],
)
def test_what_cannot_be_kept_is_refused(tokens: Tensor, kept: Any, error: type[Exception], part: str) -> None:
    model = model_of("chunked")
    with pytest.raises(error, match=part):
        model.rollback(model.first_state(2), tokens, kept)


def test_a_model_whose_pieces_differ_is_not_rolled_back() -> None:
    for model in (make_model(decode="exact"), make_rule_model("titans", decode="exact")):
        state = model.first_state(1)
        with pytest.raises(RollbackError, match=r'decode="exact" with chunk_size=\d+ cannot be rolled back'):
            model.checkpoint(state)
        with pytest.raises(RollbackError, match="chunk_size=1"):
            model.rollback(state, torch.ones(1, 2).long(), torch.tensor([1]))
    recurrent = make_model(decode="exact", chunk_size=1)
    recurrent.rollback(recurrent.first_state(1), torch.ones(1, 2).long(), torch.tensor([1]))
    with pytest.raises(StateError, match="state is that of a model of"):
        recurrent.checkpoint(make_model(phi="identity", chunk_size=1).first_state(1))
