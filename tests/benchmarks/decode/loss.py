"""What narrower weights cost in bits per byte: a model of bytes, trained on this project's pages and read one on."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM

_PAGES = Path(__file__).parents[3] / "docs"
_STEPS, _ROWS, _LENGTH, _RATE = 200, 8, 128, 3e-3
_HELD_OUT = 0.1
_READ = 256


def trained() -> TrellisLM:
    """The model `tiny`, trained for a minute or two on nine tenths of each page of docs/."""
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig.preset("tiny")).train()
    text, _ = _texts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    for _ in range(_STEPS):
        rows = torch.randint(len(text) - _LENGTH, (_ROWS,))
        batch = torch.stack([text[row : row + _LENGTH + 1] for row in rows])
        logits, _ = model(batch[:, :-1], return_state=False)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


def losses(model: TrellisLM, kinds: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Bits per byte of each row of held-out text, read token by token with each type of packed weights."""
    _, text = _texts()
    rows = text[: len(text) // _READ * _READ].view(-1, _READ)[:64]
    return {kind: _bits(model, rows, kind) for kind in kinds}


def _bits(model: TrellisLM, rows: Tensor, weights: str) -> tuple[float, ...]:
    model.decode_weights = weights
    state, total = model.first_state(len(rows)), torch.zeros(len(rows))
    for place in range(_READ - 1):
        logits = model.step(rows[:, place].contiguous(), state)
        total += F.cross_entropy(logits, rows[:, place + 1], reduction="none")
    return tuple((total / (_READ - 1) / math.log(2)).tolist())


def _texts() -> tuple[Tensor, Tensor]:
    """The bytes of all pages to learn from, and those held out."""
    pages = [torch.tensor(list(path.read_bytes())) for path in sorted(_PAGES.glob("*.md"))]
    kept = [int(len(page) * (1 - _HELD_OUT)) for page in pages]
    return (
        torch.cat([page[:end] for page, end in zip(pages, kept, strict=True)]),
        torch.cat([page[end:] for page, end in zip(pages, kept, strict=True)]),
    )
