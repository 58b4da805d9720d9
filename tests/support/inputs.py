"""Seeded inputs of an operator call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call; `args` in the order that every implementation takes them."""

    q: Tensor
    k: Tensor
    v: Tensor
    target: Tensor
    log_decay: Tensor
    step_size: Tensor
    initial_state: tuple[Tensor, Tensor] | None

    @property
    def args(self) -> tuple[Tensor, ...]:
        return (self.q, self.k, self.v, self.target, self.log_decay, self.step_size)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.args + (self.initial_state or ())

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Every tensor through `function`."""
        states = self.initial_state
        return Inputs(*map(function, self.args), None if states is None else tuple(map(function, states)))

    def to(self, dtype: torch.dtype) -> Inputs:
        """Cast; the states stay float32 below it, as in every implementation."""
        low = self.map(lambda x: x.to(dtype))
        if dtype.itemsize >= 4 or self.initial_state is None:
            return low
        return dataclasses.replace(low, initial_state=tuple(s.float() for s in self.initial_state))

    def leaves(self) -> Inputs:
        """Detached copies that require gradients."""
        return self.map(lambda x: x.detach().clone().requires_grad_())

    def tokens(self, start: int, end: int, initial_state: tuple[Tensor, Tensor] | None = None) -> Inputs:
        """Tokens start to end, from `initial_state` if given, else from this one's."""
        cut = [x if x.dim() == 1 else x[:, start:end] for x in self.args]
        return Inputs(*cut, self.initial_state if initial_state is None else initial_state)

    def token(self, t: int) -> tuple[Tensor, ...]:
        """The arguments of a step at token t."""
        return tuple(x if x.dim() == 1 else x[:, t] for x in self.args)


def make_inputs(
    batch: int = 1,
    tokens: int = 8,
    heads: int = 2,
    dim_k: int = 8,
    dim_v: int = 8,
    slots: int = 8,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    step_size: str = "head",
    state: str | None = "random",
    sequences: int | None = None,
    log_decay: float | None = None,
) -> Inputs:
    """Inputs of a scale that a model would have; the same values, rounded, for every dtype.

    q, k, v have norm 1; target is normal; beta is a sigmoid around 0.95 unless `log_decay` fixes it; step sizes are
    around 0.1.
    A random state is normal with deviation 1 / sqrt(D): from a zero state ("zero", or None for none at all) the first
    writes of ln_silu are hundreds of times larger than the rest and amplify rounding. `sequences` is the number of
    states if it is not `batch` (packed sequences).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(normal(batch, tokens, heads, dim_k), dim=-1) for _ in range(2))
    v = F.normalize(normal(batch, tokens, heads, dim_v), dim=-1)
    target = normal(batch, tokens, heads, slots)
    gate = F.logsigmoid(3 + normal(batch, tokens, heads))
    gates = gate if log_decay is None else torch.full_like(gate, log_decay)
    step_size_shape = (heads,) if step_size == "head" else (batch, tokens, heads)
    step_size = 0.1 * torch.exp(0.3 * normal(*step_size_shape))
    states = [normal(batch if sequences is None else sequences, heads, slots, dim) / dim**0.5 for dim in (dim_k, dim_v)]
    if state == "zero":
        states = [torch.zeros_like(s) for s in states]
    return Inputs(q, k, v, target, gates, step_size, None if state is None else tuple(states)).to(dtype)
