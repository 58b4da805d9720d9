"""Llama of equal size, as transformers computes it on a CPU: one token after a context, and a whole prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from trellis_ops.lm.config import TrellisConfig


def llama_like(config: TrellisConfig) -> Any:
    """A seeded Llama with the layers, widths, heads and tied embeddings of `config`, with `sdpa` attention.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=2**17,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(made).requires_grad_(False).eval()


def llama_steps(model: Any, context: int, count: int) -> Callable[[], float]:
    """Seconds per token of `count` tokens after `context` others, whose keys and values are random numbers.

    The cache is the one that `generate` takes by default; it is cut back to the context before each sample.
    """
    from transformers import DynamicCache

    config = model.config
    shape = (1, config.num_attention_heads, context, config.hidden_size // config.num_attention_heads)
    cache, token = DynamicCache(), torch.zeros(1, 1, dtype=torch.int64)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), layer)

    @torch.no_grad()
    def sample() -> float:
        behind = cache.get_seq_length() - context
        if behind:
            cache.crop(-behind)
        started = time.perf_counter()
        for place in range(context, context + count):
            position = torch.tensor([[place]])
            logits = model(token, past_key_values=cache, position_ids=position, use_cache=True).logits
            token.copy_(logits[:, -1].argmax(-1)[:, None])
        return (time.perf_counter() - started) / count

    return sample


def llama_prompt(model: Any, tokens: int) -> Callable[[], float]:
    """Seconds of a prompt, with its cache and the logits of its last token."""
    prompt = torch.randint(0, model.config.vocab_size, (1, tokens))

    @torch.no_grad()
    def sample() -> float:
        started = time.perf_counter()
        model(prompt, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - started

    return sample
