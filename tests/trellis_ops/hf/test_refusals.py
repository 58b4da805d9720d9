"""Bad input is refused by name, before anything runs, and a cache is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from codegen.errors import TrellisError
from tests.trellis_ops.hf.small import CHUNK, VOCAB, greedy, padded, pair, tokens
from trellis_ops.errors import MaskError
from trellis_ops.hf import TrellisCache
from trellis_ops.hf.cache.names import CACHE_NAME

ROWS = [tokens(19, seed=1), tokens(5, seed=2), tokens(11, seed=3)]


@pytest.fixture(scope="module")
def models() -> Any:
    return pair()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda hf, cache: {"cache_implementation": "static"}, "cache_implementation='static'"),
        (lambda hf, cache: {CACHE_NAME: DynamicCache()}, "cache is a DynamicCache"),
        (lambda hf, cache: {CACHE_NAME: cache}, "has read 23 positions, and the prompt has 19"),
        (lambda hf, cache: {CACHE_NAME: cache, "prompt_lookup_num_tokens": 3}, "assisted decoding cannot go on"),
        (lambda hf, cache: {CACHE_NAME: cache, "inputs": tokens(2, 30)}, "the cache has 1 rows for 2 prompts"),
    ],
    ids=["static", "foreign", "read", "assisted", "rows"],
)
def test_a_cache_that_cannot_be_used_is_refused(models: Any, given: Any, reason: str) -> None:
    _, hf = models
    cache = TrellisCache(hf.config)
    greedy(hf, ROWS[0][None], 5, cache=cache)
    with pytest.raises((TrellisError, ValueError), match=reason):
        hf.generate(**{"inputs": ROWS[0][None], "max_new_tokens": 5, "do_sample": False, **given(hf, cache)})


@torch.no_grad()
def test_a_state_of_another_model_is_refused(models: Any) -> None:
    _, hf = models
    cache = TrellisCache(hf.config)
    hf(ROWS[0][None], cache=cache)
    for changes, reason in (
        ({"width": 64}, "tail|S_k"),
        ({"layers": 3}, "layers 2 in the place of 3"),
        ({"chunk_size": 4}, f"chunk_size {CHUNK} in the place of 4"),
        ({"decode": "exact"}, "decode 'chunked' in the place of 'exact'"),
        ({"rule": "deltanet", "chunk_size": CHUNK}, "rule 'trellis"),
    ):
        other = pair(**changes)[1]
        with pytest.raises(TrellisError, match=reason):
            other(ROWS[0][None], cache=cache)
        if "width" not in changes:
            with pytest.raises(TrellisError, match="another model"):
                hf(ROWS[0][None], cache=TrellisCache(other.config))
    with pytest.raises(TrellisError, match="float64"):
        copy.deepcopy(hf).double()(ROWS[0][None], cache=cache)


@torch.no_grad()
@pytest.mark.parametrize("recorded", [False, True])
def test_a_refused_call_leaves_the_cache_as_it_was(models: Any, recorded: bool) -> None:
    lm, hf = models
    text = tokens(1, 30, seed=4)
    cache = TrellisCache(hf.config)
    if recorded:
        cache.activate_past_recording()
    hf(text[:, :13], cache=cache)
    token, hole = {"input_ids": text[:, :4] + VOCAB}, {"attention_mask": torch.tensor([[1, 1, 0, 1]])}
    for given, reason in ((token, "vocabulary"), (hole, "has a hole")):
        with pytest.raises(TrellisError, match=reason):
            hf(**{"input_ids": text[:, 13:17], "cache": cache, **given})
    with pytest.raises(TrellisError, match=r"tail|S_k"):
        pair(width=64)[1](text[:, 13:14], cache=cache)
    if recorded:
        cache.crop(-2)
    done = cache.get_seq_length()
    logits = hf(text[:, done:], cache=cache).logits
    torch.testing.assert_close(logits, lm(text)[0][:, done:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("others", [{}, {"prefill_chunk_size": 2}, {"use_cache": False}, {"num_beams": 2}], ids=str)
def test_a_prompt_with_a_hole_is_refused(models: Any, others: dict[str, Any]) -> None:
    """Pieces that begin at the hole would not show it."""
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 2] = 0
    with pytest.raises(MaskError, match="has a hole in row 1"):
        greedy(models[1], tokens(2, 8), 3, attention_mask=mask, **others)


def test_a_prompt_without_tokens_is_refused(models: Any) -> None:
    _, hf = models
    with pytest.raises((TrellisError, ValueError), match=r"input_ids|shape"):
        greedy(hf, torch.empty(1, 0, dtype=torch.int64), 3)
    batch, mask = padded([ROWS[0], ROWS[0][:0]], "left")
    for others in ({}, {"cache": TrellisCache(hf.config)}, {"num_beams": 2}, {"prefill_chunk_size": 4}):
        with pytest.raises(MaskError, match="no token in row 1"):
            greedy(hf, batch, 3, attention_mask=mask, **others)


@torch.no_grad()
def test_a_layer_is_not_moved_by_itself(models: Any) -> None:
    _, hf = models
    cache = TrellisCache(hf.config)
    hf(ROWS[0][None], cache=cache)
    layer = cache.layers[1]
    assert layer.state is not None and layer.get_seq_length() == cache.get_seq_length() == len(ROWS[0])
    assert cache.get_mask_sizes(3, 1) == (22, 0) and cache.get_max_length() == layer.get_max_length() == -1
    with pytest.raises(TrellisError, match="not moved by itself"):
        layer.reorder_cache(torch.tensor([0]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "attention_mask"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \[1, 3\]"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "attention_mask has shape"),
        ({"input_ids": torch.tensor([[1, 2, 3, VOCAB]])}, f"{VOCAB}"),
        ({"input_ids": torch.tensor([[1.0, 2.0]])}, "dtype"),
        ({"input_ids": torch.empty(1, 0, dtype=torch.int64)}, "shape"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "give either"),
        ({"cu_seq_lens_q": torch.tensor([0, 3])}, "must rise from 0 to 4"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]]), "use_cache": True}, "no cache"),
        ({"attention_mask": torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])}, r"holds -inf at \(0, 2\)"),
        ({"attention_mask": torch.full((1, 4), 2)}, r"holds 2 at \(0, 0\)"),
        ({"attention_mask": torch.ones(1, 6)}, r"attention_mask has shape \[1, 6\]"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]]), "position_ids": torch.tensor([[0, 1, 0, 1]])}, "no padding"),
        ({"cu_seq_lens_q": torch.tensor([0.0, 4.0])}, "cu_seq_lens_q has dtype"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 1, 4]), "position_ids": torch.tensor([[0, 1, 0, 1]])},
            "position_ids: samples begin elsewhere than cu_seq_lens_q says",
        ),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 4, 16)}, r"inputs_embeds has shape \[1, 4, 16\]"),
        ({"input_ids": None, "inputs_embeds": torch.ones(1, 4, 32, dtype=torch.int64)}, "inputs_embeds has dtype"),
        ({"labels": tokens(4, 1)}, r"labels has shape \[4, 1\]; expected \[1, 4\]"),
        ({"labels": tokens(1, 4), "logits_to_keep": 2}, r"expected \[1, 2\]"),
        ({"logits_to_keep": -1}, "logits_to_keep=-1"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_bad_input_is_refused_by_name(models: Any, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrellisError, match=reason):
        models[1](**{"input_ids": tokens(1, 4), **given})


@torch.no_grad()
def test_what_does_not_fit_a_cache_is_refused(models: Any) -> None:
    """A mask of other positions than it has read, and samples behind it."""
    _, hf = models
    cache = TrellisCache(hf.config)
    hf(tokens(1, 5), cache=cache)
    given = {"input_ids": tokens(1, 4), "cache": cache}
    with pytest.raises(TrellisError, match=r"\[1, 7\]; expected \[1, 4\].* or \[1, 9\]"):
        hf(**given, attention_mask=torch.ones(1, 7))
    for name in ("position_ids", "seq_idx"):
        with pytest.raises(TrellisError, match=f"{name}: .* no cache"):
            hf(**given, **{name: torch.tensor([[5, 6, 0, 1]])})
    assert cache.get_seq_length() == 5
