"""Statements over single rows and numbers."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, forget_gate, narrowed
from codegen.backends.tvm.emit.rows import prefetch as prefetch_row
from codegen.backends.tvm.emit.rule.values import Columns, Matrix, pieces
from codegen.backends.tvm.emit.vectors import sum_of_lanes, zeros

AHEAD = 4
"""Tokens that rows are asked for before they are needed."""

Of = Callable[[Buffer], Expr]
"""Gives the entries of a row at the columns that are written."""


def _of(piece: Columns) -> Of:
    return lambda x: x[piece.v, piece.inside]


def row(to: Buffer, value: Callable[[Of], Expr]) -> None:
    """Row <- value(of), of(x) an entry of the row x; also of what only pads it."""
    width = extent(to, 1)
    for piece in pieces(width, extent(to, 0) * width):
        T.buffer_store(to, piece.vector(value(_of(piece))), [piece.v, piece.inside])


def number(to: Buffer, value: Expr) -> None:
    """Number <- value."""
    T.buffer_store(to, value, [0])


def dot(to: Buffer, width: int, features: int, value: Callable[[Of], Expr]) -> None:
    """Number <- the sum of value(of) over a row."""
    (total,) = zeros(width, 1)
    for piece in pieces(width, features):
        T.buffer_store(total, total[piece.inside] + value(_of(piece)), [piece.inside])
    sum_of_lanes(total)
    T.buffer_store(to, total[0], [0])


def gate(to: Buffer, log_decay: Buffer) -> None:
    """beta <- exp(log_decay), of numbers or of rows."""
    if len(to.shape) == 1:
        T.buffer_store(to, forget_gate(log_decay[0]), [0])
        return
    with T.serial(extent(to, 0)) as v, T.vectorized(extent(to, 1)) as lane:
        T.buffer_store(to, forget_gate(log_decay[v, lane]), [v, lane])


def reciprocal(to: Buffer, x: Buffer, eps: float) -> None:
    """Number <- 1 / (x + eps)."""
    T.buffer_store(to, T.float32(1) / (x[0] + T.float32(eps)), [0])


def copy(to: Buffer, x: Buffer) -> None:
    """Row <- another."""
    row(to, lambda of: of(x))


def clear(to: Buffer) -> None:
    """Row <- 0."""
    row(to, lambda of: T.float32(0))


def load(to: Buffer, tensor: Buffer, *lead: Expr) -> None:
    """Row, or number, <- what a tensor has at its leading indices, in float32."""
    if len(tensor.shape) == len(lead):
        T.buffer_store(to, T.cast(tensor[lead], "float32"), [0])
        return
    _each(extent(to, 1), extent(tensor, -1), lambda v, lane, d: _load(to, tensor, lead, v, lane, d))


def _load(to: Buffer, tensor: Buffer, lead: tuple[Expr, ...], v: Expr, lane: Expr, d: Expr) -> None:
    T.buffer_store(to, T.cast(tensor[(*lead, d)], "float32"), [v, lane])


def load_token(to: Buffer, tensor: Buffer, token: Expr, h: Expr) -> None:
    """As `load`; and asks for the row of a later token, which lies too far off for the processor to foresee it."""
    load(to, tensor, token, h)
    if len(tensor.shape) > 2:
        prefetch(tensor, token, h)


def prefetch(tensor: Buffer, token: Expr, h: Expr) -> None:
    """Asks for the row of a later token."""
    prefetch_row(tensor, T.min(token + AHEAD, tensor.shape[0] - 1), h)


def store(tensor: Buffer, x: Buffer, *lead: Expr) -> None:
    """A tensor at its leading indices <- a row, or a number, in the tensor's type."""
    cast = narrowed if tensor.dtype == "bfloat16" else T.cast
    if len(tensor.shape) == len(lead):
        T.buffer_store(tensor, cast(x[0], tensor.dtype), list(lead))
        return
    _each(
        extent(x, 1),
        extent(tensor, -1),
        lambda v, lane, d: T.buffer_store(tensor, cast(x[v, lane], tensor.dtype), [*lead, d]),
    )


def _each(width: int, features: int, statement: Callable[[Expr, Expr, Expr], None]) -> None:
    """Emits statement(v, lane, d) for every feature d = v * width + lane."""
    whole, rest = divmod(features, width)
    if whole:
        with T.serial(whole) as v, T.vectorized(width) as lane:
            statement(v, lane, v * width + lane)
    if rest:
        with T.serial(rest) as lane:
            statement(whole, lane, whole * width + lane)


def mark(keep: Buffer, put: Buffer, window: int, t: Expr) -> None:
    """Rows over the window <- 0 and 1 at the oldest pair of token t, which is replaced, 1 and 0 elsewhere."""
    width = extent(keep, 1)
    with T.serial(window) as p:
        oldest = T.EQ(p, t % window)
        at = [p // width, p % width]
        T.buffer_store(keep, T.Select(oldest, T.float32(0), T.float32(1)), at)
        T.buffer_store(put, T.Select(oldest, T.float32(1), T.float32(0)), at)


def rotate(width: int, ring: Matrix, scratch: Matrix, tokens: Expr) -> None:
    """Row (p - tokens) mod window of a ring <- its row p: the oldest pair comes first."""
    window = ring.rows
    _copy_rows(width, scratch, ring, lambda p: p)
    _copy_rows(width, ring, scratch, lambda p: (p + tokens) % window)


def unrotate(width: int, ring: Matrix, scratch: Matrix, tokens: Expr) -> None:
    """The reverse of `rotate`: row p <- row (p - tokens) mod window."""
    window = ring.rows
    _copy_rows(width, scratch, ring, lambda p: p)
    _copy_rows(width, ring, scratch, lambda p: (p + window - tokens % window) % window)


def _copy_rows(width: int, to: Matrix, source: Matrix, of: Callable[[Expr], Expr]) -> None:
    with T.serial(to.rows) as p:
        for piece in pieces(width, to.columns):
            to.store(source.at(of(p), piece.index), p, piece.index)
