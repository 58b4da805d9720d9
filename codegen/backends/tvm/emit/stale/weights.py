"""What the pairs of a tile weigh in the states of its tokens, by recurrences over numbers and rows of pairs.

With beta the forget gate, eta the momentum, tau the reader's step, and row g_t: gamma_t at every pair of the last
`window` tokens up to t, without a window at pair t alone:

    plain           G_t = beta_t G_{t-1} + g_t                               B_t = beta_t B_{t-1}
    momentum        n_t = eta_t n_{t-1} + g_t      G_t = beta_t G_{t-1} + n_t
                    m_t = eta_t m_{t-1}            f_t = beta_t f_{t-1} + m_t
    reader-writer   n_t = n_{t-1} + g_t            G_t = tau_t n_t           B = 1, f_t = tau_t, m = 1

All are sums of products of gates: nothing overflows for gates of at most 1, and a gate of 0 forgets exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent, forget_gate
from codegen.backends.tvm.emit.tile import Tile
from codegen.backends.tvm.emit.vectors import each_feature, fill


@dataclass(frozen=True)
class Weights:
    """The buffers of a tile's weights; pairs are the tile's tokens, then those that a window carries.

    Attributes:
        window: tokens whose writes are repeated; 1 is no window.
        g: gamma of each token.
        kept, share: B and f of each token, as it is read.
        G: [tokens, pairs in whole vectors], as it is read.
        G_end, B_end, f_end: those after the tile's last token.
        n_end, m_end: likewise of n and m; None where n is g.
        beta, eta, tau: of each token; None where the rule has none.
    """

    window: int
    g: Buffer
    kept: Buffer
    share: Buffer
    G: Buffer
    G_end: Buffer
    B_end: Buffer
    f_end: Buffer
    n_end: Buffer | None = None
    m_end: Buffer | None = None
    beta: Buffer | None = None
    eta: Buffer | None = None
    tau: Buffer | None = None


def load(tile: Tile, to: Buffer, tensor: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """to[t] <- the numbers of the tile's tokens, of a tensor [heads] or [tokens, heads]; 0 past its end."""
    fill(to, T.float32(0))
    with T.serial(valid) as t:
        T.buffer_store(to, tensor[h] if len(tensor.shape) == 1 else tensor[first + t, h], [t])


def load_gates(tile: Tile, beta: Buffer, log_decay: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """beta[t] <- exp(log_decay) of the tile's tokens; 1 past its end."""
    load(tile, beta, log_decay, first, valid, h)
    with T.vectorized(tile.tokens) as t:
        T.buffer_store(beta, forget_gate(beta[t]), [t])


def find(tile: Tile, of: Weights, valid: Expr, after: bool) -> None:
    """The weights of the states that the tile's tokens read, and of those after its last token.

    Args:
        tile: sizes.
        of: the gates, and the result. What a reader reads of a chunk's earlier tiles goes on from `f_end`.
        valid: tokens.
        after: whether a token reads the state after its write, else before it.
    """
    _begin(of)
    with T.serial(valid) as t:
        if not after:
            _keep(tile, of, t)
        _move_numbers(of, t)
        each_feature(tile.width, extent(of.G_end, 0), lambda s: _move_rows(tile, of, t, s))
        if after:
            _keep(tile, of, t)


def _begin(of: Weights) -> None:
    """At the tile's start S is S_0, and P is P_0."""
    fill(of.G_end, T.float32(0))
    fill(of.B_end, T.float32(1))
    if of.n_end is not None:
        fill(of.n_end, T.float32(0))
        fill(of.m_end, T.float32(1))
    if of.tau is None:
        fill(of.f_end, T.float32(0))


def _move_numbers(of: Weights, t: Expr) -> None:
    if of.beta is not None:
        T.buffer_store(of.B_end, of.beta[t] * of.B_end[0], [0])
        T.buffer_store(of.f_end, of.beta[t] * of.f_end[0], [0])
    if of.eta is not None and of.m_end is not None:
        T.buffer_store(of.m_end, of.eta[t] * of.m_end[0], [0])
        T.buffer_store(of.f_end, of.f_end[0] + of.m_end[0], [0])
    if of.tau is not None:
        T.buffer_store(of.f_end, of.tau[t], [0])


def _move_rows(tile: Tile, of: Weights, t: Expr, s: Expr) -> None:
    """G and n of pair s, a lane."""
    added = T.Select(_repeats(tile, of.window, t, s), of.g[t], T.float32(0))
    if of.n_end is not None:
        before = of.n_end[s] if of.eta is None else of.eta[t] * of.n_end[s]
        T.buffer_store(of.n_end, before + added, [s])
        added = of.n_end[s]
    if of.tau is not None:
        T.buffer_store(of.G_end, of.tau[t] * added, [s])
    else:
        T.buffer_store(of.G_end, (of.G_end[s] if of.beta is None else of.beta[t] * of.G_end[s]) + added, [s])


def _repeats(tile: Tile, window: int, t: Expr, s: Expr) -> Expr:
    """Whether token t repeats the write of pair s.

    Pair j after those of the tile is of the token window - 1 - j before it.
    """
    if window == 1:
        return T.EQ(s, t)
    carried = s - tile.tokens
    of_tile = T.And(s <= t, t < s + window)
    return T.Select(s < tile.tokens, of_tile, T.And(t <= carried, carried < window - 1))


def _keep(tile: Tile, of: Weights, t: Expr) -> None:
    """Row t of what is read <- the weights as they are."""
    T.buffer_store(of.kept, of.B_end[0], [t])
    T.buffer_store(of.share, of.f_end[0], [t])
    each_feature(tile.width, extent(of.G_end, 0), lambda s: T.buffer_store(of.G, of.G_end[s], [t, s]))
