"""Sequences of unequal length in one call, packed or padded, from any states: each gives what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.relative_error import assert_close
from tests.trellis_ops.lm.sequences.models import MODELS, model_of, some_tokens
from trellis_ops.lm.block import SwiGLU
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState

pytestmark = pytest.mark.usefixtures("eager")

WAYS = ("packed", "left", "right", "both")


def read(
    model: TrellisLM, way: str, rows: Sequence[Tensor], state: TrellisState | None
) -> tuple[list[Tensor], TrellisState]:
    """Logits of the tokens of each row, given in one call, and the state after them."""
    lengths = [len(row) for row in rows]
    if way == "packed":
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        logits, after = model(torch.cat(list(rows))[None], state, cu_seqlens=offsets)
        return list(logits[0].split(lengths)), after
    width = max(lengths) + 2 * (way == "both")
    tokens, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.int64)
    found = []
    for index, row in enumerate(rows):
        first = {"left": width - len(row), "right": 0, "both": 1}[way]
        tokens[index, first : first + len(row)] = row
        mask[index, first : first + len(row)] = 1
        found.append(slice(first, first + len(row)))
    logits, after = model(tokens, state, attention_mask=mask)
    assert not logits[mask == 0].any()
    return [each[where] for each, where in zip(logits, found, strict=True)], after


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=4),
    st.sampled_from(WAYS),
    st.sampled_from(WAYS),
)
def test_each_row_gives_what_it_gives_alone(name: str, sizes: list[tuple[int, int]], first: str, second: str) -> None:
    model = model_of(name)
    tokens = some_tokens(model, len(sizes), 20)
    expected, _ = model(tokens, return_state=False)
    begun, state = read(model, first, [row[:a] for row, (a, _) in zip(tokens, sizes, strict=True)], None)
    kept = state.clone()
    found, after = read(model, second, [row[a : a + b] for row, (a, b) in zip(tokens, sizes, strict=True)], state)
    for index, (a, b) in enumerate(sizes):
        assert_close(begun[index], expected[index, :a], 1e-5, f"row {index}")
        assert_close(found[index], expected[index, a : a + b], 1e-5, f"row {index} from a state")
    assert torch.equal(state.positions, kept.positions)
    ends = torch.tensor([a + b for a, b in sizes])
    for t in range(3):
        rows = torch.arange(len(sizes))
        assert_close(model.step(tokens[rows, ends + t], after), expected[rows, ends + t], 1e-5, f"step {t}")


@torch.no_grad()
@pytest.mark.parametrize("name", ["chunked", "recurrent", "titans", "abc", "delta_product"])
def test_a_packed_sequence_may_be_empty(name: str) -> None:
    model = model_of(name)
    tokens = some_tokens(model, 3, 9)
    _, state = model(tokens[:, :5])
    rows = [tokens[0, 5:9], tokens[1, 5:5], tokens[2, 5:6]]
    found, after = read(model, "packed", rows, state)
    for index, row in enumerate(rows):
        alone = state.select(torch.tensor([index]))
        if len(row):
            expected, alone = model(row[None], alone)
            assert_close(found[index], expected[0], 1e-5)
        for layer, other in zip(alone.layers, after.select(torch.tensor([index])).layers, strict=True):
            for key, tensor in layer.tensors().items():
                assert_close(other.tensors()[key], tensor, 1e-5, key)


@pytest.mark.parametrize("name", ["chunked", "learned", "titans", "abc", "delta_product"])
@pytest.mark.parametrize("way", ["packed", "left"])
def test_packed_samples_train_as_each_alone(name: str, way: str) -> None:
    model = model_of(name)
    tokens = some_tokens(model, 3, 9)
    rows = [tokens[0, :9], tokens[1, :2], tokens[2, :6]]

    def gradients(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    expected = gradients(sum(model(row[None], return_state=False)[0].square().sum() for row in rows))
    together, _ = read(model, way, rows, None)
    assert_close(gradients(sum(each.square().sum() for each in together)), expected, 1e-4)
    if way == "packed":
        offsets = torch.tensor([0, 9, 11, 17], dtype=torch.int32)
        logits, none = model(torch.cat(rows)[None], cu_seqlens=offsets, return_state=False)
        assert none is None
        assert_close(gradients(logits.square().sum()), expected, 1e-4)


@torch.no_grad()
def test_a_mask_of_ones_and_equal_rows_run_as_without_one() -> None:
    model = model_of("chunked")
    tokens = some_tokens(model, 2, 9)
    expected, state = model(tokens)
    for mask in (torch.ones(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.bool)):
        logits, after = model(tokens, attention_mask=mask)
        assert torch.equal(logits, expected) and torch.equal(after.layers[0].S_k, state.layers[0].S_k)


@torch.no_grad()
def test_only_the_last_logits_are_computed_where_no_others_are_asked_for() -> None:
    model = model_of("chunked")
    tokens = some_tokens(model, 2, 9)
    expected, _ = model(tokens)
    for keep in (1, 4, 9, 12):
        logits, _ = model(tokens, logits_to_keep=keep)
        assert_close(logits, expected[:, -keep:], 1e-6)
        assert logits.shape[1] == min(keep, 9)


def test_the_last_block_computes_the_last_places_only_where_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    model = model_of("chunked")
    tokens, plain = some_tokens(model, 2, 9), SwiGLU.forward

    def counted(mlp: SwiGLU, x: Tensor) -> Tensor:
        places.append(x.shape[1])
        return plain(mlp, x)

    monkeypatch.setattr(SwiGLU, "forward", counted)
    model(tokens, logits_to_keep=2)
    with torch.no_grad():
        model(tokens, logits_to_keep=2)
        list(model.stream(tokens, 1))
        model.blocks[-1].register_forward_hook(lambda block, given, made: None)
        model(tokens, logits_to_keep=2)
    assert places[len(model.blocks) - 1 :: len(model.blocks)] == [9, 2, 1, 9]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_unequal_length_are_continued_as_each_alone(side: str) -> None:
    model = model_of("chunked")
    tokens = some_tokens(model, 3, 9)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, length in enumerate((9, 3, 6)):
        mask[row, 9 - length if side == "left" else 0 : 9 if side == "left" else length] = True
    found = model.generate(tokens, 12, temperature=0.0, attention_mask=mask)
    assert torch.equal(found[:, :9], tokens)
    for row in range(3):
        alone = model.generate(tokens[row][mask[row]][None], 12, temperature=0.0)
        assert torch.equal(found[row, 9:], alone[0, -12:])
