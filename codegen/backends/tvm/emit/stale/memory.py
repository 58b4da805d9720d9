"""The memory over a tile: what its tokens read, and how its states move on, by weights of `weights`.

Pairs are the columns of U, [D_v, pairs], and the rows of w_rows, [pairs, D_k].
"""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, extent
from codegen.backends.tvm.emit.products import Term, product
from codegen.backends.tvm.emit.stale.weights import Weights
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature


def scale_tokens(cols: Buffer, numbers: Buffer, to: Buffer) -> None:
    """to[:, t] <- numbers[t] cols[:, t]."""
    with T.serial(extent(cols, 0)) as i, T.vectorized(extent(cols, 1)) as t:
        T.buffer_store(to, numbers[t] * cols[i, t], [i, t])


def read(
    tile: Tile,
    of: Weights,
    S: Buffer,
    U: Buffer,
    w_rows: Buffer,
    q_cols: Buffer,
    G_cols: Buffer,
    scores: Buffer,
    o_cols: Buffer,
    second: tuple[Buffer, Buffer] | None = None,
) -> None:
    """O = B Q S^T + f Q P^T - [(Q W^T) * G] U, transposed.

    Args:
        tile, of: sizes and weights.
        S: S_0.
        U, w_rows: pairs.
        q_cols: queries, transposed.
        G_cols: G, transposed.
        scores: scratch, [pairs, tokens].
        o_cols: the result.
        second: P_0, and queries times f; None without a second state.
    """
    features, pairs = extent(q_cols, 0), extent(w_rows, 0)
    product(
        tile,
        pairs,
        tile.tokens,
        (features, lambda s, i: w_rows[s, i], lambda i, t: q_cols[i, t]),
        lambda s, t, x: T.buffer_store(scores, (T.float32(0) - x) * G_cols[s, t], [s, t]),
    )
    product(
        tile,
        tile.slots,
        tile.tokens,
        _of_state(S, q_cols),
        lambda m, t, x: T.buffer_store(o_cols, x, [m, t]),
        lambda m, t: of.kept[t],
        *((_of_state(*second),) if second is not None else ()),
        (pairs, lambda m, s: U[m, s], lambda s, t: scores[s, t]),
    )


def _of_state(S: Buffer, cols: Buffer) -> Term:
    return extent(cols, 0), lambda m, i: S[m, i], lambda i, t: cols[i, t]


def move(tile: Tile, of: Weights, S: Buffer, U: Buffer, w_rows: Buffer, V: Buffer, P: Buffer | None = None) -> None:
    """S <- B S + f P - U^T diag(G) W, at the tile's end; V is scratch of the size of U."""
    _weigh(tile, U, of.G_end, V)
    product(
        tile,
        tile.slots,
        extent(w_rows, 1),
        _of_pairs(V, w_rows),
        lambda m, d, x: T.buffer_store(
            S, of.B_end[0] * S[m, d] + (x if P is None else of.f_end[0] * P[m, d] + x), [m, d]
        ),
    )


def move_second(tile: Tile, of: Weights, P: Buffer, U: Buffer, w_rows: Buffer, V: Buffer) -> None:
    """P <- m P - U^T diag(n) W, at the tile's end."""
    assert of.m_end is not None
    m_end = of.m_end
    _weigh(tile, U, of.n_end, V)
    product(
        tile,
        tile.slots,
        extent(w_rows, 1),
        _of_pairs(V, w_rows),
        lambda m, d, x: T.buffer_store(P, m_end[0] * P[m, d] + x, [m, d]),
    )


def add_read(tile: Tile, of: Weights, S: Buffer, P: Buffer) -> None:
    """S <- S + f P: what a reader-writer step leaves at the end of its chunk."""
    with T.serial(tile.slots) as m, T.vectorized(extent(S, 1)) as d:
        T.buffer_store(S, S[m, d] + of.f_end[0] * P[m, d], [m, d])


def _of_pairs(V: Buffer, w_rows: Buffer) -> Term:
    return extent(w_rows, 0), lambda m, s: V[m, s], lambda s, d: w_rows[s, d]


def _weigh(tile: Tile, U: Buffer, end: Buffer, V: Buffer) -> None:
    """V[:, s] <- -end[s] U[:, s]."""
    with T.serial(tile.slots) as m:
        each_feature(
            tile.width,
            extent(end, 0),
            lambda s: T.buffer_store(V, (T.float32(0) - end[s]) * U[m, s], [m, s]),
        )
