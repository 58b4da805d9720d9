"""How the next token is drawn from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import SizeError
from codegen.scalars import whole_number


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only this many of the likeliest tokens can be drawn; None for all.
        generator: source of randomness, on the device of the logits; None for torch's own.

    Raises:
        SizeError: a negative or infinite temperature, or `top_k` below 1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise SizeError(name="temperature", value=self.temperature, expected="a finite number of at least 0")
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number("top_k", self.top_k, also=", or None"))

    def draw(self, logits: Tensor) -> Tensor:
        """Logits `[B, vocab]` to tokens `[B]`, int64."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        logits = logits.float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        # The largest is taken off first, so that a temperature near 0 cannot overflow.
        scaled = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        return torch.multinomial(scaled.softmax(-1), 1, generator=self.generator)[:, 0]
