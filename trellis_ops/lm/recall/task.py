"""Multi-query associative recall (MQAR), as in Zoology (arXiv 2312.04927): pairs of tokens, then the keys again.

    k1 v1 k2 v2 k3 v3 | k2 .. k3 .. k1 ..

At each k after the bar, the model must predict the v that stood beside it. What stands between is drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import SizeError
from trellis_ops.lm.train.data.lanes import IGNORED

POWER = 0.01
"""How strongly queries come early; the exponent of Zoology's power law."""


@dataclass(frozen=True)
class Questions:
    """Sequences with their answers.

    Attributes:
        tokens: `[B, 4 pairs]`, int64.
        targets: of the same shape: the value at each query, `IGNORED` elsewhere.
    """

    tokens: Tensor
    targets: Tensor


def questions(batch: int, pairs: int, vocab: int, generator: torch.Generator) -> Questions:
    """Draw `batch` sequences of `pairs` pairs and one query for each.

    Args:
        batch: B.
        pairs: how many; the sequence has four tokens for each.
        vocab: number of tokens; the lower half are keys, the upper half values.
        generator: source of randomness.

    Raises:
        SizeError: more pairs than keys.
    """
    if not 1 <= pairs <= vocab // 2:
        raise SizeError(name="pairs", value=pairs, expected=f"1 to {vocab // 2}, the keys of {vocab} tokens")
    keys = torch.rand(batch, vocab // 2, generator=generator).argsort(-1)[:, :pairs]
    values = torch.randint(vocab // 2, vocab, (batch, pairs), generator=generator)
    # A weighted order without replacement: the Gumbel trick on Zoology's weights of the gaps.
    weights = torch.arange(1, pairs + 1).pow(POWER - 1)
    noise = torch.rand(batch, pairs, generator=generator).clamp_min(1e-12).log().neg().log().neg()
    place = (weights.log() + noise).argsort(-1, descending=True)
    queries = torch.randint(vocab, (batch, pairs, 2), generator=generator)
    answers = torch.full((batch, pairs, 2), IGNORED)
    queries[..., 0].scatter_(1, place, keys)
    answers[..., 0].scatter_(1, place, values)
    told = torch.stack([keys, values], -1).flatten(1)
    tokens = torch.cat([told, queries.flatten(1)], 1)
    return Questions(tokens, torch.cat([torch.full_like(told, IGNORED), answers.flatten(1)], 1))
