"""A tile of a rule without decay; the functions are those of `scalar_decay`."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.chunks.triangle import products_of_pairs, pull_products_of_pairs
from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.tile import Tile


@dataclass(frozen=True)
class Gates:
    """There are none."""


def pairs(
    tile: Tile, gate: Gates, depth: int, left_rows: Buffer, k_cols: Buffer, scores: Buffer, after: bool, diagonal: bool
) -> None:
    """scores[t, s] <- left_t . k_s for s < t, and for s = t with the diagonal; else 0."""
    products_of_pairs(tile, depth, left_rows, k_cols, scores, lambda t, s: T.float32(1), diagonal)


def from_start(tile: Tile, gate: Gates, rows: Buffer, after: bool) -> None:
    """Rows stay as they are."""


def to_end(tile: Tile, gate: Gates, rows: Buffer) -> None:
    """Rows stay as they are."""


def kept(gate: Gates, i: Expr) -> Expr:
    """1: all of the state is kept."""
    return T.float32(1)


def pull_pairs(
    tile: Tile,
    gate: Gates,
    G: Buffer,
    scores: Buffer,
    left_rows: Buffer,
    k_rows: Buffer,
    dleft_rows: Buffer,
    dk_rows: Buffer,
    dgates: None,
    after: bool,
    diagonal: bool,
) -> None:
    """Adds what `pairs` gives back to its rows; overwrites G, the cotangent of its scores."""
    pull_products_of_pairs(tile, G, lambda t, s: T.float32(1), diagonal, left_rows, k_rows, dleft_rows, dk_rows)
