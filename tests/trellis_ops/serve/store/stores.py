"""A small model, stores over it, and whether a store changes what is generated."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.support.relative_error import relative_error
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState
from trellis_ops.lm.state.prefixes import stored_start
from trellis_ops.serve.store import Memory, PrefixStore, Request
from trellis_ops.serve.store.entry import Entry, Owner
from trellis_ops.serve.store.tiers.tier import Tier

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SEGMENT = 64
PROMPT = 3 * SEGMENT + 21
"""Tokens of a prompt: its state is kept after three segments."""

ROOM = 2**26
"""Bytes for hundreds of states of the small model."""


def store_of(*tiers: Tier, key: bytes = KEY, **options: Any) -> PrefixStore:
    return PrefixStore(key, tiers or [Memory(ROOM)], **options)


def logits_after(model: TrellisLM, tokens: Tensor, request: Request | None) -> Tensor:
    """Logits after the prompt and after each of four forced tokens, `[B, 5, vocab]`."""
    start, state = (0, None) if request is None else stored_start(model, tokens, request, partial(_advance, model))
    with torch.no_grad():
        logits, state = model(tokens[:, start:], state)
        return torch.stack([logits[:, -1], *(model.step(tokens[:, index], state) for index in range(4))], 1)


def _advance(model: TrellisLM, tokens: Tensor, state: TrellisState | None) -> TrellisState:
    _, after = model(tokens, state)
    assert after is not None
    return after


def check_same(model: TrellisLM, tokens: Tensor, request: Request) -> None:
    """What is generated with a store is what is generated without one."""
    assert relative_error(logits_after(model, tokens, request), logits_after(model, tokens, None)) < 1e-5
    expected = model.generate(tokens, 6, temperature=0)
    assert torch.equal(model.generate(tokens, 6, temperature=0, prefix_store=request), expected)


def entry(number: int = 0, tokens: int = SEGMENT, owner: Owner | None = None) -> Entry:
    return Entry(owner or Owner("ab" * 16, "cd" * 16), f"{number:064x}", tokens)
