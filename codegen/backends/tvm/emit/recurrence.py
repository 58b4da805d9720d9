"""Token by token: products with a state that stays in its tensor, since one head's state fits the first-level cache.

A vector over slots lies row after row, `width` lanes to a row; one over dimensions lies flat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit import rows
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, narrowed
from codegen.backends.tvm.emit.vectors import bits, each_block, each_feature, zeros
from codegen.backends.tvm.emit.walks import Token
from codegen.schedules.tvm_fields import VECTORS_PER_ROW

AHEAD = 4
"""Tokens that rows are asked for before they are needed."""

Move = Callable[[Expr, Expr, Expr, Expr], Expr]
"""move(S[m, d], b, r, d), m = b * width + r: what an entry of a state becomes."""


@dataclass(frozen=True)
class Step:
    """The sizes that a kernel without tiles is generated for.

    Attributes:
        slots: M.
        width: lanes of a vector.
    """

    slots: int
    width: int

    @property
    def walk(self) -> Token:
        """The walk along the slots, or the features, of the token."""
        return Token(self.width)


def product(step: Step, Z: Buffer, S: Buffer, n: Expr, h: Expr, w: Buffer, move: Move | None = None) -> None:
    """Z <- S w. With `move`, S is moved first and in the same sweep."""
    whole, rest = step.slots // step.width, step.slots % step.width
    if whole:
        with T.serial(whole) as b:
            _product_of_slots(step, Z, S, n, h, w, b, step.width, move)
    if rest:
        _product_of_slots(step, Z, S, n, h, w, whole, rest, move)


def _product_of_slots(
    step: Step, Z: Buffer, S: Buffer, n: Expr, h: Expr, w: Buffer, b: Expr, count: int, move: Move | None
) -> None:
    """Z[b, r] <- <S[m, :], w> for `count` slots m = b * width + r: a vector of partial sums each, folded into one."""
    width, features = step.width, extent(S, 3)
    sums = zeros(width, width)

    def add(d: Expr, lane: Expr) -> None:
        for r in range(count):
            m = b * width + r
            if move is not None:
                T.buffer_store(S, move(S[n, h, m, d], b, r, d), [n, h, m, d])
            T.buffer_store(sums[r], sums[r][lane] + S[n, h, m, d] * w[d], [lane])

    if features // width:
        with T.serial(features // width) as i, T.vectorized(width) as lane:
            add(i * width + lane, lane)
    if features % width:
        with T.serial(features % width) as lane:
            add(features // width * width + lane, lane)
    for stride in reversed(bits(width)):
        for r in range(stride):
            _fold(sums[r], sums[r + stride], stride)
    with T.vectorized(width) as lane:
        T.buffer_store(Z, sums[0][lane], [b, lane])


def _fold(x: Buffer, y: Buffer, stride: int) -> None:
    """Lanes of x <- sums of two of its lanes where bit `stride` is clear, of two lanes of y where it is set."""
    width = extent(x, 0)
    row = T.ramp(0, 1, width)
    near = [lane + width if lane & stride else lane for lane in range(width)]
    far = [(lane ^ stride) + width if lane & stride else lane ^ stride for lane in range(width)]
    T.buffer_store(x, T.Shuffle([x[row], y[row]], near) + T.Shuffle([x[row], y[row]], far), [row])


def transposed_product(step: Step, y: Buffer, S: Buffer, n: Expr, h: Expr, r: Buffer, move: Move) -> None:
    """y <- S^T r, with S moved first and in the same sweep."""
    each_block(
        extent(S, 3),
        VECTORS_PER_ROW * step.width,
        lambda offset, block: _product_of_dims(step, y, S, n, h, r, offset, block, move),
    )


def _product_of_dims(
    step: Step, y: Buffer, S: Buffer, n: Expr, h: Expr, r: Buffer, offset: Expr, block: int, move: Move
) -> None:
    """y[d] <- sum over m of r[m] S[m, d] for `block` dimensions d from `offset` on, summed in registers."""
    width = step.width
    sums = T.alloc_buffer((block,), "float32")
    with T.vectorized(block) as lane:
        T.buffer_store(sums, T.float32(0), [lane])
    with T.serial(step.slots) as m, T.vectorized(block) as lane:
        d = offset + lane
        T.buffer_store(S, move(S[n, h, m, d], m // width, m % width, d), [n, h, m, d])
        T.buffer_store(sums, sums[lane] + r[m // width, m % width] * S[n, h, m, d], [lane])
    with T.vectorized(block) as lane:
        T.buffer_store(y, sums[lane], [offset + lane])


def load(step: Step, row: Buffer, tensor: Buffer, token: Expr, h: Expr) -> None:
    """row <- one token of a tensor [tokens, heads, features] in float32."""
    each_feature(
        step.width,
        extent(tensor, 2),
        lambda d: T.buffer_store(row, T.cast(tensor[token, h, d], "float32"), [d]),
    )
    prefetch(tensor, token, h)


def store(step: Step, tensor: Buffer, row: Buffer, token: Expr, h: Expr) -> None:
    """One token of a tensor <- row, in the tensor's type."""
    cast = narrowed if tensor.dtype == "bfloat16" else T.cast
    each_feature(
        step.width, extent(tensor, 2), lambda d: T.buffer_store(tensor, cast(row[d], tensor.dtype), [token, h, d])
    )


def prefetch(tensor: Buffer, token: Expr, h: Expr) -> None:
    """Asks for the row of the token after next ones: they lie too far apart for the processor to foresee the next."""
    rows.prefetch(tensor, T.min(token + AHEAD, tensor.shape[0] - 1), h)


def scale(step: Step, U: Buffer, g: Buffer) -> None:
    """U <- gamma U."""
    with T.serial(T.ceildiv(step.slots, step.width)) as b, T.vectorized(step.width) as lane:
        T.buffer_store(U, g[0] * U[b, lane], [b, lane])


def clear_past(width: int, X: Buffer, features: int) -> None:
    """Lanes past the last feature <- 0."""
    with T.serial(-features % width) as lane:
        T.buffer_store(X, T.float32(0), [features // width, features % width + lane])
