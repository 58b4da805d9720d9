"""What a head makes of its part of a row of projections: q and k by short convolutions, v, target and gates."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, sigmoid
from codegen.backends.tvm.emit.vectors import each_feature
from codegen.backends.tvm.layer.gates import softplus


@dataclass(frozen=True)
class Head:
    """One head of one row.

    Attributes:
        width: lanes of a vector.
        projected: what the linear maps made of every row.
        vectors: the packed numbers that are no matrix.
        row, h: which row, which head.
    """

    width: int
    projected: Buffer
    vectors: Buffer
    row: Expr
    h: Expr


def convolve(
    head: Head, q: Buffer, k: Buffer, tail: Buffer, slot: Expr, features: int, qk: int, taps_q: int, taps_k: int
) -> None:
    """q, k <- the convolutions of tail and projection; the tail moves on by one token.

    Args:
        slot: where the row's tail lies in `tail`.
        features: D_k.
        qk: where the shared projection begins.
        taps_q, taps_k: where the taps begin among the vectors, each `[taps, H D_k]`.
    """
    before, channels = extent(tail, 1), extent(tail, 2)
    row, projected, vectors = head.row, head.projected, head.vectors

    def of_channel(d: Expr) -> None:
        c = head.h * features + d
        for to, taps in ((q, taps_q), (k, taps_k)):
            total = projected[row, qk + c] * vectors[taps + before * channels + c]
            for j in range(before):
                total = total + tail[slot, j, c] * vectors[taps + j * channels + c]
            T.buffer_store(to, total, [d])
        for j in range(before - 1):
            T.buffer_store(tail, tail[slot, j + 1, c], [slot, j, c])
        T.buffer_store(tail, projected[row, qk + c], [slot, before - 1, c])

    each_feature(head.width, features, of_channel)


def load(head: Head, to: Buffer, start: int, features: int) -> None:
    """to[d] <- the head's features of a projection that begins at `start`."""
    each_feature(
        head.width,
        features,
        lambda d: T.buffer_store(to, head.projected[head.row, start + head.h * features + d], [d]),
    )


def load_slots(head: Head, to: Buffer, start: int, slots: int) -> None:
    """to[m // width, m % width] <- the head's slots of a projection that begins at `start`."""
    width, whole = head.width, slots // head.width
    first = start + head.h * slots
    if whole:
        with T.serial(whole) as b, T.vectorized(width) as lane:
            T.buffer_store(to, head.projected[head.row, first + b * width + lane], [b, lane])
    with T.serial(slots % width) as lane:
        T.buffer_store(to, head.projected[head.row, first + whole * width + lane], [whole, lane])


def forget_gate(head: Head, start: int, bias: int) -> Expr:
    """beta = sigmoid of the projection at `start` and its bias."""
    return sigmoid(head.projected[head.row, start + head.h] + head.vectors[bias + head.h])


def step_size(head: Head, start: int | None, bias: int) -> Expr:
    """gamma: the softplus of the projection at `start` and its bias; what stands for the head where there is none."""
    if start is None:
        return head.vectors[bias + head.h]
    return softplus(head.projected[head.row, start + head.h] + head.vectors[bias + head.h])


def copy_state(width: int, to: Buffer, S: Buffer, n: Expr, h: Expr) -> None:
    """One head's state of another tensor <- that of S."""
    with T.serial(extent(S, 2)) as m:
        each_feature(width, extent(S, 3), lambda d: T.buffer_store(to, S[n, h, m, d], [n, h, m, d]))
