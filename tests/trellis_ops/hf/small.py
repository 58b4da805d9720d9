"""Small models, in pairs that share their weights: a `TrellisLM` and the same for transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trellis_ops.hf import TrellisForCausalLM
from trellis_ops.hf.folders.convert import to_transformers
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM

VOCAB, CHUNK = 64, 8


def config(**changes: Any) -> TrellisConfig:
    sizes = {"vocab_size": VOCAB, "layers": 2, "width": 32, "heads": 2, "num_slots": 8, "chunk_size": CHUNK}
    return TrellisConfig(**{**sizes, **changes})


def pair(seed: int = 0, **changes: Any) -> tuple[TrellisLM, TrellisForCausalLM]:
    """A model whose blocks count for more than its embedding, so that greedy tokens differ from one to the next."""
    torch.manual_seed(seed)
    model = TrellisLM(config(**changes)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.to_out.weight.mul_(4.0)
            block.mlp.down.weight.mul_(4.0)
    return model, to_transformers(model)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], side: str, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows `[n]` as `[B, T]`, with tokens that are not in the vocabulary on one side, and their mask."""
    length = length or max(map(len, rows))
    batch = torch.full((len(rows), length), VOCAB + 7)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        batch[index, place], mask[index, place] = row, 1
    return batch, mask


def greedy(model: TrellisForCausalLM, prompt: Tensor, count: int, **others: Any) -> Tensor:
    found: Tensor = model.generate(prompt, max_new_tokens=count, do_sample=False, **others)
    return found


def alone(model: TrellisLM, row: Tensor, count: int) -> list[int]:
    """What `TrellisLM.generate` adds to one row."""
    return model.generate(row[None], count, temperature=0)[0, len(row) :].tolist()
