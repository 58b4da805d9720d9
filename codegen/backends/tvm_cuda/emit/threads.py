"""The threads of a block: their barrier, what each has for itself, what they share, and how they share out work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr


@dataclass(frozen=True)
class Threads:
    """The threads of a block, as one of them sees it.

    Attributes:
        thread: which of them it is.
        threads: how many there are.
    """

    thread: Expr
    threads: int


def sync() -> None:
    """Emits the barrier: all threads of the block have come here, and see what the others wrote."""
    T.evaluate(T.tvm_storage_sync("shared"))


def register(count: int = 1) -> Buffer:
    """Numbers of one thread."""
    return T.alloc_buffer((count,), "float32", scope="local")


def view(shared: Buffer, offset: int, *shape: int) -> Buffer:
    """Some of the block's shared memory."""
    return T.decl_buffer(shape, "float32", data=shared.data, elem_offset=offset, scope="shared.dyn")


def each_number(own: Threads, rows: int, columns: int, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(r, c) for every number of a matrix, which neighbouring threads take side by side."""
    count = rows * columns
    with T.serial((count + own.threads - 1) // own.threads) as turn:
        number = turn * own.threads + own.thread
        with T.If(number < count), T.Then():
            statement(number // columns, number % columns)


def each_feature(own: Threads, features: int, statement: Callable[[Expr], None]) -> None:
    """Emits statement(d) for every feature d, which the threads share out."""
    with T.serial((features + own.threads - 1) // own.threads) as turn:
        d = turn * own.threads + own.thread
        with T.If(d < features), T.Then():
            statement(d)


def combine_lanes(
    x: Buffer, sums: Buffer, which: int, row: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]
) -> None:
    """x <- what the lanes of a row have written to one of `sums`, combined."""
    T.buffer_store(x, sums[which, row * lanes], [0])
    with T.serial(lanes - 1) as lane:
        T.buffer_store(x, combine(x[0], sums[which, row * lanes + 1 + lane]), [0])
