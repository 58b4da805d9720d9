"""What narrower weights cost in bits per byte: the shipped model, on the end of the text that it was trained on."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.text import hold_out, read_documents

HELD_OUT = 0.02
"""Share of the text that the shipped model has not seen, at its end (docs/training.md)."""

_READ, _ROWS = 256, 64


def losses(model: TrellisLM, text: Path, kinds: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Bits per byte of each row of held-out text, read token by token with each type of packed weights.

    Args:
        model: of bytes.
        text: its last `HELD_OUT` is read, at most 64 rows of 256 bytes.
        kinds: of `codegen.layer.WEIGHTS`.

    Raises:
        OSError, TextError: the text is not there, or too short.
    """
    _, documents = hold_out(read_documents([text]), HELD_OUT)
    held = b"".join(each.text for each in documents)
    rows = torch.tensor(list(held[: len(held) // _READ * _READ])).view(-1, _READ)[:_ROWS]
    return {kind: _bits(model, rows, kind) for kind in kinds}


def _bits(model: TrellisLM, rows: Tensor, weights: str) -> tuple[float, ...]:
    model.decode_weights = weights
    state, total = model.first_state(len(rows)), torch.zeros(len(rows))
    for place in range(_READ - 1):
        logits = model.step(rows[:, place].contiguous(), state)
        total += F.cross_entropy(logits, rows[:, place + 1], reduction="none")
    return tuple((total / (_READ - 1) / math.log(2)).tolist())
