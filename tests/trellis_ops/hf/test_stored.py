"""`generate` goes on from stored prefixes, which `TrellisLM` and the model of transformers share."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import torch

from codegen.errors import TrellisError
from tests.trellis_ops.hf.small import greedy, pair, tokens
from trellis_ops.hf import TrellisCache
from trellis_ops.serve.store import Memory, PrefixStore

PROMPT = torch.cat([tokens(1, 150, seed=1), tokens(1, 150, seed=2)])


def store() -> PrefixStore:
    return PrefixStore(secrets.token_bytes(32), [Memory(max_bytes=2**26)])


@pytest.mark.parametrize("others", [{}, {"num_beams": 3}, {"prefill_chunk_size": 10}], ids=str)
def test_a_second_call_finds_what_the_first_has_read(others: dict[str, Any]) -> None:
    _, hf = pair(layers=1)
    expected, kept = greedy(hf, PROMPT, 6, **others), store()
    for known in (0, 2 * 128):
        mask = torch.ones_like(PROMPT)
        found = greedy(hf, PROMPT, 6, prefix_store=kept.tenant("a"), attention_mask=mask, **others)
        assert torch.equal(found, expected)
        assert kept.counts().tokens_found == known


def test_both_models_of_the_same_weights_find_the_same_prefixes() -> None:
    lm, hf = pair(layers=1)
    kept = store()
    expected = lm.generate(PROMPT, 5, temperature=0, prefix_store=kept.tenant("a"))
    assert torch.equal(greedy(hf, PROMPT, 5, prefix_store=kept.tenant("a")), expected)
    assert kept.counts().tokens_found == 2 * 128
    greedy(pair(seed=1, layers=1)[1], PROMPT, 1, prefix_store=kept.tenant("a"))
    assert kept.counts().tokens_found == 2 * 128, "other weights"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda hf: {"attention_mask": torch.tensor([[0] + [1] * 149] * 2)}, "leave out padding"),
        (lambda hf: {"cache": TrellisCache(hf.config)}, "leave out a cache"),
        (lambda hf: {"inputs": None, "inputs_embeds": torch.zeros(2, 150, 32)}, "prompts of tokens"),
    ],
    ids=["padding", "cache", "embeddings"],
)
def test_what_a_store_cannot_know_is_refused(given: Any, reason: str) -> None:
    _, hf = pair(layers=1)
    with pytest.raises(TrellisError, match=reason):
        hf.generate(**{"inputs": PROMPT, "prefix_store": store().tenant("a"), "max_new_tokens": 1, **given(hf)})
