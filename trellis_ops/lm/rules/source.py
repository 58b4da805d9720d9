"""Where a tensor of a rule comes from: a linear map of the residual stream, or a parameter of each head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codegen.recurrence.program import Axes
from codegen.recurrence.tensors import HEAD, TOKEN
from trellis_ops.lm.state.layer_state import as_wide_as, wide

Start = float | Callable[[Tensor], object]
"""What a bias or parameter holds before training: a number, or a function that fills a tensor with it."""

RANK = 16
"""Of the linear map of a gate for each channel, as in gated linear attention (arXiv 2312.06635, section 4.4)."""


@dataclass(frozen=True)
class Source:
    """How one tensor is made.

    Attributes:
        squash: from the values of the linear map, or of the parameter, to the tensor.
        start: of the bias, or of the parameter, before `squash`.
        axes: beside those of tokens and heads.
        per: TOKEN for a linear map, HEAD for a parameter.
        rank: of the linear map, where it is a product of two; None is one full map.
        is_input: whether it has the type of q, and a map without bias; a gate is float32.
    """

    squash: Callable[[Tensor], Tensor]
    start: Start = 0.0
    axes: Axes = ()
    per: str = TOKEN
    rank: int | None = None
    is_input: bool = False


class Projection(nn.Module):
    """The parameters of a source; x `[B, T, width]` to `[B, T, H, *axes]`, or to `[H, *axes]`.

    Args:
        source: how the tensor is made.
        width, heads: of the model.
        sizes: of the axes.
    """

    def __init__(self, source: Source, width: int, heads: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.source = source
        self._shape = (heads, *(sizes[axis] for axis in source.axes))
        total = math.prod(self._shape)
        rank = None if source.rank is None else min(source.rank, width)
        self.first = None if rank is None or source.per == HEAD else nn.Linear(width, rank, bias=False)
        self.map = None if source.per == HEAD else nn.Linear(rank or width, total, bias=not source.is_input)
        # One axis, as biases have it: an optimizer pulls matrices to zero, where a gain means something else.
        self.value = nn.Parameter(torch.empty(total)) if source.per == HEAD else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the bias or the parameter to where it starts."""
        held = self.value if self.map is None else self.map.bias
        if held is None:
            return
        if callable(self.source.start):
            self.source.start(held)
        else:
            held.fill_(self.source.start)

    def forward(self, x: Tensor) -> Tensor:
        """The tensor."""
        if self.map is None:
            assert self.value is not None
            return self.source.squash(wide(self.value).view(self._shape))
        x = as_wide_as(x, self.first or self.map)
        raw: Tensor = self.map(x if self.first is None else self.first(x))
        raw = raw.view(*x.shape[:-1], *self._shape)
        return self.source.squash(raw if self.source.is_input else wide(raw))


def unit(x: Tensor) -> Tensor:
    """Vectors of unit length."""
    return F.normalize(x, dim=-1)


def as_is(x: Tensor) -> Tensor:
    """x itself."""
    return x


def logit(p: float) -> float:
    """What the sigmoid makes p of."""
    return math.log(p / (1.0 - p))
