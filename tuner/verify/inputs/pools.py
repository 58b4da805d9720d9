"""Seeded arguments of a call on states in a pool: which slot each row has, and how far it has come."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from codegen.kernels.arguments import Argument
from codegen.kernels.pool.arguments import CAPACITY, FIRST, FIRST_HEADS

SPARE = 2
"""Slots that no row has."""


def sizes_of_pool(lengths: tuple[int, ...], heads: int) -> dict[str, int]:
    """The sizes of the axes that only a pool has."""
    return {CAPACITY: len(lengths) + SPARE, FIRST_HEADS: heads}


def rows_of(argument: Argument, lengths: tuple[int, ...], chunk: int) -> Tensor:
    """state_indices or positions: rows that are fresh, at the start of a chunk, and inside of one.

    Where lengths differ, as in a check, the last row is skipped; among equal ones, as in a timing, none is.
    """
    count = len(lengths)
    if argument.name == "positions":
        return torch.arange(count) * (chunk // 2 + 1) if count > 1 else torch.tensor([chunk])
    slots = torch.arange(count + SPARE - 1, SPARE - 1, -1)
    if len(set(lengths)) > 1:
        slots[-1] = -1
    return slots


def behind(argument: Argument) -> Argument:
    """The state that an argument has the numbers of: what fresh rows start from is like what they move."""
    return replace(argument, name=argument.name.removeprefix(FIRST))
