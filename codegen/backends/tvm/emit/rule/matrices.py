"""Whole matrices: copies, zeros, sums."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.rule.values import Matrix, pieces


def copy(width: int, to: Matrix, source: Matrix) -> None:
    """Matrix <- another."""
    with T.serial(to.rows) as m:
        for piece in pieces(width, to.columns):
            to.store(source.at(m, piece.index), m, piece.index)


def clear(width: int, to: Matrix) -> None:
    """Matrix <- 0."""
    with T.serial(to.rows) as m:
        for piece in pieces(width, to.columns):
            to.store(piece.vector(T.float32(0)), m, piece.index)


def add(width: int, to: Matrix, other: Matrix) -> None:
    """Matrix <- itself + another."""
    with T.serial(to.rows) as m:
        for piece in pieces(width, to.columns):
            to.store(to.at(m, piece.index) + other.at(m, piece.index), m, piece.index)
