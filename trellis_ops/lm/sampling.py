"""How the next token is drawn from logits."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from codegen.errors import SizeError
from codegen.scalars import whole_number


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token, and so does, but for ties, what is near 0.
        top_k: only this many of the likeliest tokens can be drawn; None for all.
        generator: source of randomness, on the device of the logits; None for torch's own.

    Raises:
        SizeError: a temperature that is negative or not finite, or `top_k` below 1. TypeError: what is no number.
    """

    temperature: float = 1.0
    top_k: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, Real):
            raise TypeError(f"temperature is {self.temperature!r}, but must be a number")
        if not 0.0 <= self.temperature < float("inf"):
            raise SizeError(name="temperature", value=self.temperature, expected="a finite number of at least 0")
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number("top_k", self.top_k, also=", or None"))

    def draw(self, logits: Tensor) -> Tensor:
        """Logits `[B, vocab]` to tokens `[B]`, int64."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        # The largest is taken off first, so that a temperature near 0 cannot overflow. One that the type of the logits
        # takes for 0 or infinite would divide 0 by 0.
        limits = torch.finfo(logits.dtype)
        temperature = min(max(float(self.temperature), limits.tiny), limits.max)
        scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
        return torch.multinomial(scaled.softmax(-1), 1, generator=self.generator)[:, 0]
