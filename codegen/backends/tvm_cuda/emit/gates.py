"""Gates of a tile. Products of betas, as a difference of logarithms would be inf - inf."""

from __future__ import annotations

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm_cuda.emit.threads import register
from codegen.backends.tvm_cuda.emit.tile import Tile


def load(
    tile: Tile, beta: Buffer, g: Buffer, log_decay: Buffer, step_size: Buffer, first: Expr, valid: Expr, h: Expr
) -> None:
    """beta and gamma (g) of the tile's tokens, each by a thread of its own.

    A step_size [heads] is each head's, one of [tokens, heads] each token's.
    """
    t = tile.thread
    with T.If(t < tile.tokens), T.Then():
        T.buffer_store(beta, T.float32(1), [t])
        T.buffer_store(g, T.float32(0), [t])
        with T.If(t < valid), T.Then():
            T.buffer_store(beta, T.exp(log_decay[first + t, h]), [t])
            T.buffer_store(g, step_size[h] if len(step_size.shape) == 1 else step_size[first + t, h], [t])


def write_weights(tile: Tile, weight: Buffer, forget: Buffer, beta: Buffer, g: Buffer) -> None:
    """weight[s] = -gamma_s exp(L_C - L_s), forget = exp(L_C), with C the tile's last token."""
    s, kept = tile.thread, register()
    with T.If(s < tile.tokens), T.Then():
        T.buffer_store(kept, T.float32(1), [0])
        with T.serial(tile.tokens) as t:
            T.buffer_store(kept, T.Select(t > s, kept[0] * beta[t], kept[0]), [0])
        T.buffer_store(weight, T.float32(0) - kept[0] * g[s], [s])
        with T.If(T.EQ(s, 0)), T.Then():
            T.buffer_store(forget, kept[0] * beta[0], [0])


def read_weights(tile: Tile, Omega: Buffer, start: Buffer, beta: Buffer, g: Buffer) -> None:
    """Omega[t, s] = gamma_s exp(L_t - L_s) for s <= t, else 0; start[t] = exp(L_t)."""
    s, kept = tile.thread, register()
    with T.If(s < tile.tokens), T.Then():
        T.buffer_store(kept, T.float32(0), [0])
        with T.serial(tile.tokens) as t:
            T.buffer_store(kept, T.Select(T.EQ(t, s), g[t], kept[0] * beta[t]), [0])
            T.buffer_store(Omega, kept[0], [t, s])
        T.buffer_store(kept, T.float32(1), [0])
        with T.serial(tile.tokens) as t:
            T.buffer_store(kept, T.Select(t <= s, kept[0] * beta[t], kept[0]), [0])
        T.buffer_store(start, kept[0], [s])
