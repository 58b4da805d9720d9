"""A small reference model whose gates differ from token to token, and tokens for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.mixer import TrellisMixer
from trellis_ops.lm.model import TrellisLM

SMALL = TrellisConfig(vocab_size=40, layers=2, width=32, heads=2, num_slots=8, chunk_size=16)


def make_model(**changes: Any) -> TrellisLM:
    torch.manual_seed(0)
    model = TrellisLM(replace(SMALL, **changes))
    with torch.no_grad():
        for block in model.blocks:
            mixer = block.get_submodule("mixer")
            assert isinstance(mixer, TrellisMixer)
            # Forgetting that differs from token to token, and large steps: what goes wrong must show.
            mixer.to_decay.bias.fill_(2.0)
            mixer.step_size.fill_(0.0)
    return model


def some_tokens(batch: int = 2, length: int = 40, seed: int = 1) -> Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def whole(model: TrellisLM, tokens: Tensor) -> Tensor:
    logits, _ = model(tokens, return_state=False)
    return logits
