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
        top_p: only the fewest of the likeliest tokens can be drawn whose probabilities, of the logits that temperature
            and `top_k` leave, add up to this; None for all.

    Raises:
        SizeError: a temperature that is negative or not finite, `top_k` below 1, or `top_p` not above 0 and at most 1.
        TypeError: what is no number.
    """

    temperature: float = 1.0
    top_k: int | None = None
    generator: torch.Generator | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("top_p", 1.0 if self.top_p is None else self.top_p)):
            if not isinstance(value, Real):
                raise TypeError(f"{name} is {value!r}, but must be a number")
        if not 0.0 <= self.temperature < float("inf"):
            raise SizeError(name="temperature", value=self.temperature, expected="a finite number of at least 0")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise SizeError(name="top_p", value=self.top_p, expected="a number above 0 and at most 1, or None")
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
        if self.top_p is not None and self.top_p < 1.0:
            scaled = _likeliest(scaled, self.top_p)
        return torch.multinomial(scaled.softmax(-1), 1, generator=self.generator)[:, 0]


def _likeliest(logits: Tensor, top_p: float) -> Tensor:
    """Logits `[B, vocab]`, minus infinity but for the fewest of the likeliest tokens that add up to `top_p`."""
    ascending, places = logits.sort(-1)
    # What is left out adds up to at most 1 - top_p; the likeliest token is always kept.
    left_out = ascending.softmax(-1).cumsum(-1) <= 1.0 - top_p
    left_out[:, -1] = False
    return logits.masked_fill(left_out.scatter(-1, places, left_out), float("-inf"))
