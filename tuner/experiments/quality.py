"""What a slot count and a chunk size cost in recall: a probe that needs no training.

Random key-value pairs are written through the two passes and queried back. Each pair has a code in R^M that both
memories are asked to hold, as in TRELLIS (arXiv 2512.23852, section 3.2) alpha is: the first memory learns key -> code,
the second code -> value. Codes of up to M pairs are orthogonal, so that what is lost is lost by the memory. The query
is the key itself; the answer is the value that lies nearest to y.

It measures what fits into the states and what taking z at the start of a chunk costs, without the part that a trained
model plays; read it as an order, not as an accuracy to expect.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from codegen.rule import STEP_SIZES, Rule
from trellis_ops.eager import forward as eager
from tuner.experiments.rule_quality import read_back

PAIRS = (24, 48, 96, 192)
"""How many pairs are written; recall is averaged over these."""

STEP_SIZE = 0.1
"""The step size, where a model starts."""

RULE = Rule(phi_eps=1.0, step_size="token")
"""The maps and epsilon that the reference model starts with; step_size per token, so that queries write nothing."""

_SEQUENCES, _HEADS = 4, 4


def recall(slots: int, chunk: int, *, dim: int = 64, rule: Rule = RULE, seed: int = 0) -> float:
    """The share of pairs read back, 0 to 1, averaged over `PAIRS`; arguments as of `recall_by_pairs`."""
    shares = recall_by_pairs(slots, chunk, dim=dim, rule=rule, seed=seed)
    return sum(shares.values()) / len(shares)


def recall_by_pairs(slots: int, chunk: int, *, dim: int = 64, rule: Rule = RULE, seed: int = 0) -> dict[int, float]:
    """The share of pairs read back, 0 to 1, for each number of `PAIRS`; the same for the same arguments.

    Args:
        slots: M.
        chunk: C.
        dim: D_k and D_v.
        rule: any; a step size for each head is taken for each token.
        seed: of keys, values and codes.
    """
    generator = torch.Generator().manual_seed(seed)
    by_token = replace(rule, step_size="token") if rule.step_size in STEP_SIZES else rule
    return {pairs: _recall(pairs, slots, chunk, dim, by_token, generator) for pairs in PAIRS}


@torch.no_grad()
def _recall(pairs: int, slots: int, chunk: int, dim: int, rule: Rule, generator: torch.Generator) -> float:
    keys, values = (_directions(pairs, dim, generator) for _ in range(2))
    codes = _codes(pairs, slots, generator)
    read = _written_and_read if rule.is_trellis else read_back
    y = read(rule, keys, values, codes, STEP_SIZE, chunk)
    scores = torch.einsum("bihd,bjhd->bhij", y, values)
    return float((scores.argmax(dim=-1) == torch.arange(pairs)).double().mean())


def _written_and_read(rule: Rule, keys: Tensor, values: Tensor, codes: Tensor, written_by: float, chunk: int) -> Tensor:
    """As `read_back`, of TRELLIS in whole chunks."""
    pairs, nothing = keys.shape[1], torch.zeros_like(keys)
    gates = torch.zeros(_SEQUENCES, 2 * pairs, _HEADS)
    step_size = gates.clone()
    step_size[:, :pairs] = written_by
    y, _ = eager.attention(
        torch.cat([nothing, keys], dim=1),
        torch.cat([keys, nothing], dim=1),
        torch.cat([values, nothing], dim=1),
        torch.cat([codes, torch.zeros_like(codes)], dim=1),
        gates,
        step_size,
        rule=rule,
        chunk_size=chunk,
    )
    return y[:, pairs:]


def _directions(pairs: int, dim: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(_SEQUENCES, pairs, _HEADS, dim, generator=generator)
    return drawn / drawn.square().sum(dim=-1, keepdim=True).sqrt()


def _codes(pairs: int, slots: int, generator: torch.Generator) -> Tensor:
    """`[B, pairs, H, M]`: rows of random rotations, M of them orthogonal at a time, with entries of order one."""
    rotations = -(-pairs // slots)
    drawn = torch.randn(_SEQUENCES, _HEADS, rotations, slots, slots, generator=generator)
    rotated: Tensor = torch.linalg.qr(drawn).Q
    return rotated.flatten(2, 3)[:, :, :pairs].transpose(1, 2) * math.sqrt(slots)
