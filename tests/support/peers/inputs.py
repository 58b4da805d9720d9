"""Inputs by the recipe of flash-linear-attention's tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Of a comparison.

    Attributes:
        tokens: T.
        dim: D_k; D_v is the same where the peer wants that, else 4 less.
        batch, heads: B and H.
        gate: divides the log gates, logsigmoid(rand): 0.1 is strong forgetting, 10 is weak.
    """

    tokens: int = 63
    dim: int = 60
    batch: int = 1
    heads: int = 2
    gate: float = 1.0

    @property
    def name(self) -> str:
        """Of a comparison."""
        return f"T{self.tokens} D{self.dim} gate {self.gate:g}"

    @property
    def per_token(self) -> tuple[int, int, int]:
        """[B, T, H]."""
        return self.batch, self.tokens, self.heads


SIZES = (
    Sizes(),
    Sizes(dim=64, gate=0.1),
    Sizes(dim=128, gate=10.0),
    Sizes(tokens=500),
)
"""Those of the tests."""

CROSS = tuple(
    Sizes(tokens=tokens, dim=dim, gate=gate)
    for tokens in (63, 500)
    for dim in (60, 64, 128)
    for gate in (0.1, 1.0, 10.0)
)
"""Every combination of the recipe."""


@dataclass(frozen=True)
class Drawing:
    """Random tensors in float64, the same for a seed."""

    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def normal(self, *shape: int) -> Tensor:
        """Normally distributed."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def rand(self, *shape: int) -> Tensor:
        """Uniform from 0 to 1."""
        return torch.rand(*shape, dtype=torch.float64, generator=self.generator)

    def unit(self, *shape: int) -> Tensor:
        """Rows of unit length."""
        return F.normalize(self.normal(*shape), dim=-1)

    def step(self, *shape: int) -> Tensor:
        """Step sizes from 0.5 to 0.73: sigmoid(rand)."""
        return self.rand(*shape).sigmoid()

    def log_gate(self, sizes: Sizes, *more: int) -> Tensor:
        """Log gates, logsigmoid(rand) divided by `Sizes.gate`."""
        return F.logsigmoid(self.rand(*sizes.per_token, *more)) / sizes.gate


def qkv(sizes: Sizes, drawing: Drawing, dim_v: int | None = None) -> dict[str, Tensor]:
    """Unit queries and keys, and values of another size unless `dim_v` is given."""
    dim_v = sizes.dim - 4 if dim_v is None else dim_v
    shape = sizes.per_token
    return {
        "q": drawing.unit(*shape, sizes.dim),
        "k": drawing.unit(*shape, sizes.dim),
        "v": drawing.normal(*shape, dim_v),
    }


def state(sizes: Sizes, drawing: Drawing, rows: int, columns: int) -> Tensor:
    """An initial state `[B, H, rows, columns]`."""
    return drawing.normal(sizes.batch, sizes.heads, rows, columns)
