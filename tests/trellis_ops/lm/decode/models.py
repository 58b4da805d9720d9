"""Small models whose decode steps are compared: by kernels of whole blocks, and by their modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trellis_ops.dispatch.resolve import VARIABLE
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode.decoder import packed_bytes
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState

CHUNKED = {"width": 32, "heads": 2, "num_slots": 8, "chunk_size": 4}
# Nothing fills a vector, and every option is the other one.
EXACT = {
    **{"width": 36, "heads": 3, "dim_k": 5, "dim_v": 7, "num_slots": 6, "decode": "exact", "conv_width": 2},
    **{"step_size": "token", "normalize_qkv": False, "learned_state": True, "phi": "softmax", "out": "ln_silu"},
}


def model_of(config: dict[str, Any]) -> TrellisLM:
    torch.manual_seed(0)
    return TrellisLM(TrellisConfig.preset("tiny", **config)).requires_grad_(False)


def stepped(model: TrellisLM, state: TrellisState, tokens: Tensor) -> Tensor:
    """Logits `[T, B, vocabulary]` of tokens `[T, B]`, after which kernels of blocks have run."""
    logits = torch.stack([model.step(each, state) for each in tokens])
    assert packed_bytes(model) > 0
    return logits


def stepped_by_modules(
    model: TrellisLM, state: TrellisState, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The same by the modules and eager PyTorch."""
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "eager")
        assert model.explain_step(tokens.shape[1]).startswith("modules: ")
        return torch.stack([model.step(each, state) for each in tokens])


def relative_error(given: Tensor, right: Tensor) -> float:
    return float((given - right).norm() / right.norm())
