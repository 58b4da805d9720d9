"""The tokens of a call in the order in which a memory reads them: to the ends of chunks, whole chunks, the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

Index = tuple[int | slice | Tensor, ...]
"""What picks tokens from `[B, T, ...]`."""


@dataclass(frozen=True)
class Steps:
    """Tokens that are read one by one.

    Attributes:
        tokens: those of each step, `[n, ...]` of tensors `[B, T, ...]`.
        rows: the n rows that read them, int64; None for all.
        begins: whether a chunk begins with the first.
    """

    tokens: tuple[Index, ...]
    rows: Tensor | None
    begins: bool


@dataclass(frozen=True)
class Piece:
    """Tokens that one call of the operator reads.

    Attributes:
        tokens: which, `[B, t, ...]` of tensors `[B, T, ...]`.
        cu_seqlens: the offsets of their sequences; None for rows.
        begins: whose chunk begins with them and may go on after them: all sequences, none, or a mask `[N]`.
    """

    tokens: Index
    cu_seqlens: Tensor | None
    begins: bool | Tensor


Part = Steps | Piece


def end_of_first(length: int, place: int, period: int) -> int:
    """How many of `length` tokens belong to the chunk that is under way at `place`."""
    return min(length, -place % period)


def parts_of_rows(length: int, place: int, period: int, stepwise: bool) -> Iterator[Part]:
    """The parts of rows of one length, all at one place; `stepwise` reads the rest one by one."""
    ragged = end_of_first(length, place, period)
    whole = length - (length - ragged) % period
    if ragged:
        yield Steps(tuple((slice(None), t) for t in range(ragged)), None, begins=False)
    if ragged < whole:
        yield Piece((slice(None), slice(ragged, whole)), None, begins=False)
    if whole < length and stepwise:
        yield Steps(tuple((slice(None), t) for t in range(whole, length)), None, begins=True)
    elif whole < length:
        yield Piece((slice(None), slice(whole, length)), None, begins=True)
