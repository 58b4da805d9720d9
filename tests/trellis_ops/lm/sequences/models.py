"""Models whose rows must not see each other: TRELLIS in its ways to decode, and rules that carry different things."""

from __future__ import annotations

import functools
from typing import Any

import torch

from codegen.rule import Rule
from tests.trellis_ops.lm.rules.models import make_model as make_rule_model
from tests.trellis_ops.lm.small_models import make_model
from trellis_ops.lm.model import TrellisLM

TRELLIS: dict[str, dict[str, Any]] = {
    "chunked": {"chunk_size": 4, "layers": 1},
    "recurrent": {"chunk_size": 1, "layers": 1},
    "learned": {"chunk_size": 4, "layers": 2, "learned_state": True, "step_size": "token"},
    "wide": {"chunk_size": 16, "layers": 1, "conv_width": 1},
}
NAMES = ("titans", "omeganet", "abc", "mesanet", "gated_deltanet", "ttt_linear", "delta_product")
RULES: dict[str, str | Rule] = {
    **{name: name for name in NAMES},
    "reader and writer": Rule(phi="layer_norm_gain", decay="none", step_size="reader_writer"),
}
"""With momentum, a window, gates of running sums, a conjugate gradient, two steps a token, sums of a chunk's writes."""

MODELS = (*TRELLIS, *RULES)


@functools.cache
def model_of(name: str) -> TrellisLM:
    """A model in float32."""
    if name in TRELLIS:
        return make_model(**TRELLIS[name])
    return make_rule_model(RULES[name]).float()


def some_tokens(model: TrellisLM, batch: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)
