"""Where the rows of a state stand in their chunks."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from codegen.errors import DtypeError, ShapeError

_MOST_KNOWN = 4096

Place = int | Tensor
"""Tokens since the start of the chunk: the int that all rows have, or `[B]` int64 on the CPU where they differ."""


def place_of(positions: Tensor) -> Place:
    """`positions [B]` int64 in short.

    Raises:
        ShapeError, DtypeError, TypeError: something else.
    """
    require_numbers("positions", positions, "[B] with B >= 1")
    positions = positions.to("cpu", copy=True)
    first = int(positions[0])
    return first if bool((positions == first).all()) else positions


def positions_on(place: Place, batch: int, device: torch.device) -> Tensor:
    """The positions of `batch` rows, `[batch]` int64 on a device; nobody may write to them."""
    return place.to(device) if isinstance(place, Tensor) else _equal_positions(place, batch, device)


@functools.lru_cache(maxsize=_MOST_KNOWN)
def _equal_positions(place: int, batch: int, device: torch.device) -> Tensor:
    return torch.full((batch,), place, dtype=torch.int64, device=device)


def moved(place: Place, tokens: int | Tensor, period: int) -> Place:
    """A place after more tokens, an int or `[B]`, in chunks of `period`."""
    after = (place + tokens) % period
    # Rows that differ differ after as many tokens too.
    return place_of(after) if isinstance(after, Tensor) and isinstance(tokens, Tensor) else after


def require_numbers(name: str, given: object, shape: str) -> None:
    """Raise a TypeError, a ShapeError or a DtypeError that names it unless it is a vector of int64, not empty."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is {given!r}, but must be a torch.Tensor")
    if given.ndim != 1 or not len(given):
        raise ShapeError(name=name, shape=list(given.shape), expected=shape)
    if given.dtype != torch.int64:
        raise DtypeError(name=name, dtype=given.dtype, expected="torch.int64")
