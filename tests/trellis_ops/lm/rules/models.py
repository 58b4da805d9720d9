"""Small models of any rule whose chunks are shorter than their tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM

SMALL = TrellisConfig(vocab_size=24, layers=2, width=16, heads=2, num_slots=4, chunk_size=4)
TOKENS = 11


def small_config(rule: str | Rule, **changes: Any) -> TrellisConfig:
    """Chunks of four where the rule's layer has chunks at all."""
    config = replace(SMALL, rule=rule, chunk_size=None, **changes)
    return replace(config, chunk_size=min(4, config.chunk))


def make_model(rule: str | Rule, **changes: Any) -> TrellisLM:
    torch.manual_seed(0)
    return TrellisLM(small_config(rule, **changes)).double()


def some_tokens(batch: int = 2, length: int = TOKENS) -> Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def whole(model: TrellisLM, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens, return_state=False)
    return logits
