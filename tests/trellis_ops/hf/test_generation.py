"""`generate` gives the tokens of `TrellisLM.generate`, whatever the batch, the search, the pieces or the cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from codegen.errors import TrellisError
from tests.trellis_ops.hf.small import CHUNK, alone, greedy, padded, pair, tokens
from trellis_ops.errors import MaskError, RollbackError
from trellis_ops.hf import TrellisCache

pytestmark = pytest.mark.filterwarnings("ignore:A decoder-only architecture is being used")

KERNELS = True
ROWS = [tokens(19, seed=1), tokens(5, seed=2), tokens(11, seed=3)]
COUNT = 10


@pytest.fixture(scope="module")
def models() -> Any:
    return pair()


def lengths_read(hf: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of positions of each forward of the blocks."""
    read: list[int] = []
    advance = type(hf.model)._advance

    def advanced(self: Any, x: torch.Tensor, *rest: Any, **others: Any) -> Any:
        read.append(x.shape[1])
        return advance(self, x, *rest, **others)

    monkeypatch.setattr(type(hf.model), "_advance", advanced)
    return read


@pytest.mark.parametrize(
    ("side", "others"),
    [
        ("left", {}),
        ("left", {"use_cache": False}),
        ("left", {"prefill_chunk_size": 6}),
        ("right", {}),
        ("right", {"prefill_chunk_size": 6}),
    ],
    ids=str,
)
def test_rows_of_unequal_length_give_what_they_give_alone(models: Any, side: str, others: dict[str, Any]) -> None:
    """transformers #31540, #32677, #41790, #48256."""
    lm, hf = models
    batch, mask = padded(ROWS, side)
    found = greedy(hf, batch, COUNT, attention_mask=mask, **others)
    assert found[:, batch.shape[1] :].tolist() == [alone(lm, row, COUNT) for row in ROWS]
    assert len({tuple(row) for row in found[:, -4:].tolist()}) > 1


def test_without_a_cache_new_tokens_cannot_stand_behind_padding(models: Any) -> None:
    batch, mask = padded(ROWS, "right")
    with pytest.raises(MaskError, match="attention_mask"):
        greedy(models[1], batch, COUNT, attention_mask=mask, use_cache=False)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_logits_are_those_of_the_row_alone(models: Any, side: str) -> None:
    """Of a batch that goes on from a cache with unequal pieces (transformers #31540, #48256, #47086)."""
    lm, hf = models
    cache = TrellisCache(hf.config)
    seen = [row[:0] for row in ROWS]
    masks = []
    for lengths in ([7, 2, 5], [1, 3, 0], [4, 4, 4]):
        pieces = [tokens(n, seed=10 * n + i) for i, n in enumerate(lengths)]
        batch, mask = padded(pieces, side)
        masks.append(mask)
        logits = hf(batch, attention_mask=torch.cat(masks, 1), cache=cache).logits
        for index, piece in enumerate(pieces):
            seen[index] = torch.cat([seen[index], piece])
            expected = lm(seen[index][None])[0][0, len(seen[index]) - len(piece) :]
            torch.testing.assert_close(logits[index, mask[index] == 1], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[index, -1], lm(seen[index][None])[0][0, -1], rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length() == sum(mask.shape[1] for mask in masks)


def test_sampling_draws_what_one_seed_gives(models: Any) -> None:
    _, hf = models
    drawn = []
    for cached in (True, False):
        torch.manual_seed(3)
        drawn.append(hf.generate(ROWS[0][None], max_new_tokens=COUNT, do_sample=True, top_k=20, use_cache=cached))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "drawn", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 20, "top_p": 0.8}]
)
def test_one_seed_draws_the_tokens_of_the_reference(models: Any, drawn: dict[str, Any]) -> None:
    """Rows of unequal length too, in a batch for both; transformers has `top_k` 50 unless it is told 0 for all."""
    lm, hf = models
    batch, mask = padded(ROWS, "left")
    batch = batch.masked_fill(mask == 0, 0)
    expected = lm.generate(batch, 24, attention_mask=mask, generator=torch.Generator().manual_seed(3), **drawn)
    torch.manual_seed(3)
    found = hf.generate(batch, attention_mask=mask, max_new_tokens=24, do_sample=True, **{"top_k": 0, **drawn})
    assert torch.equal(found, expected)
    assert not torch.equal(found, greedy(hf, batch, 24, attention_mask=mask))


@pytest.mark.parametrize(
    "others", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}]
)
def test_beams_carry_their_own_states(models: Any, others: dict[str, Any]) -> None:
    """Against a search that keeps no state (transformers #29730, #46612, #46819)."""
    _, hf = models
    batch, mask = padded(ROWS, "left")
    found = [greedy(hf, batch, 6, attention_mask=mask, use_cache=cached, **others) for cached in (True, False)]
    assert torch.equal(*found)


def test_assisted_decoding_gives_the_same_tokens(models: Any) -> None:
    """States are taken back to before the tokens that were refused (transformers #46937)."""
    lm, hf = models
    _, other = pair(seed=5)
    expected = alone(lm, ROWS[0], 24)
    for others in ({"assistant_model": other}, {"assistant_model": hf}, {"prompt_lookup_num_tokens": 3}):
        found = greedy(hf, ROWS[0][None], 24, **others)
        assert found[0, len(ROWS[0]) :].tolist() == expected, others


@pytest.mark.parametrize("rule", [None, "titans"])
def test_assisted_decoding_is_refused_where_pieces_of_a_text_differ(models: Any, rule: str | None) -> None:
    """What is checked together would be other text than what is written token by token."""
    _, hf = pair(layers=1, rule=rule, chunk_size=None if rule else CHUNK, decode="exact")
    for others in ({"assistant_model": models[1]}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(RollbackError, match='decode="exact" with chunk_size='):
            greedy(hf, ROWS[0][None], 4, **others)
    with pytest.raises(RollbackError, match="cannot be rolled back"):
        TrellisCache(hf.config).activate_past_recording()


def test_a_long_prompt_is_read_once_by_assisted_decoding(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that are taken back cost no more than those that were recorded, not the prompt."""
    lm, hf = models
    prompt = tokens(200, seed=7)
    read = lengths_read(hf, monkeypatch)
    found = greedy(hf, prompt[None], 12, prompt_lookup_num_tokens=4)
    assert found[0, 200:].tolist() == alone(lm, prompt, 12)
    assert read[0] >= 200 - 64 and max(read[1:]) <= 64 + 5


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_generation_goes_on_from_a_cache(models: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is not fed again, with the whole text and with the new tokens alone (transformers #45513)."""
    lm, hf = models
    whole = alone(lm, ROWS[0], 12)
    cache = TrellisCache(hf.config)
    first = greedy(hf, ROWS[0][None], 5, **{name: cache})
    kept = copy.deepcopy(cache)
    read = lengths_read(hf, monkeypatch)
    found = greedy(hf, first, 7, **{name: cache})
    assert found[0, len(ROWS[0]) :].tolist() == whole and read == [1] * 7
    mask = torch.ones_like(first)
    assert greedy(hf, first[:, -1:], 7, attention_mask=mask, **{name: kept})[0, 1:].tolist() == whole[5:]


def test_a_warm_cache_reads_several_tokens_in_pieces(models: Any) -> None:
    lm, hf = models
    cache = TrellisCache(hf.config)
    text = greedy(hf, ROWS[0][None], 3, cache=cache)
    text = torch.cat([text, ROWS[2][None]], 1)
    found = greedy(hf, text, 6, cache=cache, prefill_chunk_size=4)
    assert found[0, text.shape[1] :].tolist() == alone(lm, text[0], 6)


def test_one_prompt_is_gone_on_with_in_several_ways(models: Any) -> None:
    """A cache of one row, repeated for several continuations, then reduced to some of them."""
    lm, hf = models
    cache = TrellisCache(hf.config)
    with torch.no_grad():
        hf(ROWS[0][None], cache=cache)
        cache.batch_repeat_interleave(3)
        ends = tokens(3, 4, seed=9)
        whole = torch.cat([ROWS[0].expand(3, -1), ends], 1)
        assert greedy(hf, whole, 4, cache=cache)[:, -4:].tolist() == [alone(lm, row, 4) for row in whole]
        cache.batch_select_indices(torch.tensor([2, 0]))
        assert cache.batch_size == 2
        cache.reset()
        assert cache.get_seq_length() == 0 and not cache.is_initialized and cache.nbytes() == 0
        assert greedy(hf, whole[:2], 4, cache=cache)[:, -4:].tolist() == [alone(lm, row, 4) for row in whole[:2]]


def test_streaming_and_embeddings(models: Any) -> None:
    lm, hf = models
    embeds = hf.get_input_embeddings()(ROWS[0][None])
    assert greedy(hf, None, COUNT, inputs_embeds=embeds)[0].tolist() == alone(lm, ROWS[0], COUNT)


def test_decoding_costs_the_same_after_a_long_text(models: Any) -> None:
    _, hf = models
    sizes = []
    for length in (4, 200):
        cache = TrellisCache(hf.config)
        greedy(hf, tokens(1, length), 2, cache=cache)
        sizes.append(cache.nbytes())
    assert sizes[0] == sizes[1] > 0


@torch.no_grad()
def test_what_was_read_is_taken_back(models: Any) -> None:
    """Across calls, in the middle of one, after steps; what was not recorded is refused."""
    lm, hf = models
    text = tokens(1, 40, seed=4)
    cache = TrellisCache(hf.config)
    with pytest.raises(TrellisError, match="has not recorded"):
        cache.crop(-1)
    cache.activate_past_recording()
    for piece in (text[:, :12], text[:, 12:13], text[:, 13:14], text[:, 14:30]):
        hf(piece, cache=cache)
    cache.crop(-17)
    assert cache.get_seq_length() == 13
    cache.crop(-2)
    logits = hf(text[:, 11:15], cache=cache).logits
    torch.testing.assert_close(logits, lm(text[:, :15])[0][:, 11:], rtol=1e-4, atol=1e-5)
    cache.crop(0)
    with pytest.raises(TrellisError, match="1 positions cannot be taken back, 0 are recorded"):
        cache.crop(-1)
    with pytest.raises(TrellisError, match="crop was given 1"):
        cache.crop(1)
