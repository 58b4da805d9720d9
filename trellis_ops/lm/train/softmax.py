"""Softmax attention in the place of the memory: the model that a `TrellisLM` of the same size is compared with.

The block is that of `trellis_ops.lm.block`: the same norms, gate, output map and SwiGLU, tied embeddings. The mixer has
linear maps for q, k and v, and rotary positions (arXiv 2104.09864) where the other has convolutions and a forget gate.
What it carries from window to window are the keys and values of the last `context` tokens, as in Transformer-XL
(arXiv 1901.02860), so that it is not made to forget at the start of a window.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trellis_ops.lm.block import SwiGLU, draw_maps
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.state.layer_state import state_dtype
from trellis_ops.lm.vocabulary import embedded

Cache = tuple[Tensor, Tensor]
"""Keys `[B, H, context, D_k]` before they are rotated, and values `[B, H, context, D_v]`."""


class SoftmaxMixer(nn.Module):
    """Causal softmax attention over the window and the cache, `[B, T, width]` to `[B, T, width]`."""

    def __init__(self, config: TrellisConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, config.key_width, bias=False)
        self.to_k = nn.Linear(config.width, config.key_width, bias=False)
        self.to_v = nn.Linear(config.width, config.value_width, bias=False)
        self.to_gate = nn.Linear(config.width, config.value_width, bias=False)
        self.norm = nn.RMSNorm(config.value_width // config.heads, eps=config.norm_eps)
        self.to_out = nn.Linear(config.value_width, config.width, bias=False)

    def forward(self, x: Tensor, cache: Cache, visible: Tensor) -> tuple[Tensor, Cache]:
        """Mix, and return the cache after the last token; `visible [B, 1, T, context + T]` says who sees whom."""
        q, k, v = (self._heads(to(x)) for to in (self.to_q, self.to_k, self.to_v))
        context = cache[0].shape[2]
        k, v = torch.cat([cache[0].to(k.dtype), k], 2), torch.cat([cache[1].to(v.dtype), v], 2)
        y = F.scaled_dot_product_attention(_rotated(q, context), _rotated(k, 0), v, attn_mask=visible)
        mixed: Tensor = self.to_out(self.norm(y.transpose(1, 2)).flatten(-2) * F.gelu(self.to_gate(x)))
        return mixed, (k[:, :, k.shape[2] - context :], v[:, :, v.shape[2] - context :])

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class SoftmaxBlock(nn.Module):
    """x + softmax attention of RMSNorm(x), then x + SwiGLU(RMSNorm(x))."""

    def __init__(self, config: TrellisConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mixer = SoftmaxMixer(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp_width)

    def forward(self, x: Tensor, cache: Cache, visible: Tensor) -> tuple[Tensor, Cache]:
        """As `SoftmaxMixer.forward`."""
        mixed, cache = self.mixer(self.mixer_norm(x), cache, visible)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class SoftmaxLM(nn.Module):
    """A language model of softmax attention, to compare with a `TrellisLM` of the same configuration.

    Args:
        config: sizes; what concerns the memory has no effect.
        context: tokens of earlier windows that stay visible.
    """

    def __init__(self, config: TrellisConfig, context: int) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(SoftmaxBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        draw_maps(self, config.layers)

    def forward(self, tokens: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, T, vocab]` of tokens `[B, T]`, and what `state` is after them; it is left as it was."""
        length, known = tokens.shape[1], state["known"]
        visible = _visible(known, self.context, length)
        x = embedded(self.embedding, tokens)
        after = {"known": (known + length).clamp_max(self.context)}
        for index, block in enumerate(cast("list[SoftmaxBlock]", list(self.blocks))):
            cache = state[f"{index}.keys"], state[f"{index}.values"]
            x, (after[f"{index}.keys"], after[f"{index}.values"]) = block(x, cache, visible)
        return F.linear(self.norm(x), self.embedding.weight), after

    def first_state(self, batch: int) -> dict[str, Tensor]:
        """Empty caches, and that none of their tokens is known: `known [B]`, int64."""
        config, like = self.config, self.embedding.weight
        state = {"known": like.new_zeros(batch, dtype=torch.int64)}
        for index in range(config.layers):
            for name, width in (("keys", config.key_width), ("values", config.value_width)):
                shape = (batch, config.heads, self.context, width // config.heads)
                state[f"{index}.{name}"] = like.new_zeros(shape, dtype=state_dtype(like.dtype))
        return state

    def count_parameters(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _visible(known: Tensor, context: int, length: int) -> Tensor:
    places = torch.arange(-context, length, device=known.device)
    causal = places <= places[context:, None]
    return (causal & (places >= -known[:, None, None]))[:, None]


def _rotated(x: Tensor, first: int) -> Tensor:
    """Turn pairs of coordinates of x `[B, H, T, D]` by angles that grow with the place, counted from `first`."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** -(torch.arange(half, device=x.device, dtype=state_dtype(x.dtype)) / half)
    angles = torch.arange(first, first + x.shape[2], device=x.device)[:, None] * rates
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], -1)
