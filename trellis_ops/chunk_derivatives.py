"""Vector-Jacobian products of what happens inside a chunk; numbers are the equations of docs/backward.md.

Tensors are `[G, N, C, ...]` for the tokens of N chunks of G heads, `[G, N, A, B]` for their states. A name with
`bar_` is the cotangent of what follows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops.chunks import Decay
from trellis_ops.maps import prepare_write, push_write


class Gates(NamedTuple):
    """gamma `[G, N, C, 1]` and the decay of every chunk."""

    gamma: Tensor
    decay: Decay


class GateGradients(NamedTuple):
    """The gradients of gamma and log beta, `[G, N, C]`."""

    gamma: Tensor
    log_beta: Tensor


class Readout(NamedTuple):
    """diag(exp L) read start - [(read keys^T) * Omega] diag(gamma) values.

    The first readout has read = q, keys = k, values = codes, start = S_k^T; the second has read = r, keys = codes,
    values = v, start = S_v.
    """

    read: Tensor
    keys: Tensor
    values: Tensor
    start: Tensor


class Write(NamedTuple):
    """The write of w to a memory, and what the readouts already know of its cotangents.

    Attributes:
        w: `[G, N, C, D]`.
        codes: `[G, N, C, M]`.
        start: the chunk-start states `[G, N, M, D]`.
        bar_codes, bar_w, bar_start: shaped as these.
    """

    w: Tensor
    codes: Tensor
    start: Tensor
    bar_codes: Tensor
    bar_w: Tensor
    bar_start: Tensor


def read(readout: Readout, gates: Gates) -> Tensor:
    """What the readout gives, `[G, N, C, B]`."""
    x, keys, values, start = readout
    gamma, decay = gates
    scores = (x @ keys.mT) * decay.between
    return (x @ start) * decay.since_start - scores @ (gamma * values)


def pull_back_read(readout: Readout, bar: Tensor, gates: Gates, wants_gates: bool) -> tuple[Readout, GateGradients]:
    """The cotangents of a readout (B1 to B4) and of its gates (B5, B6; zero unless `wants_gates`)."""
    x, keys, values, start = readout
    gamma, decay = gates
    scores = (x @ keys.mT) * decay.between
    products = bar @ values.mT
    bar_scores = products * decay.between
    faded = bar * decay.since_start
    from_start = faded @ start.mT
    bar_readout = Readout(
        from_start - bar_scores @ (gamma * keys),
        (bar_scores.mT @ x) * -gamma,
        (scores.mT @ bar) * -gamma,
        x.mT @ faded,
    )
    if not wants_gates:
        return bar_readout, _no_gates(x)
    pairs = scores * products
    kept = (x * from_start).sum(dim=-1)
    # Suffix sums over the reading token, then the writing tokens before each: no large terms that cancel.
    later = _suffix_sums(pairs, dim=-2)
    crossing = (later.tril(-1) @ gamma).squeeze(-1)
    return bar_readout, GateGradients(-pairs.sum(dim=-2), _suffix_sums(kept, dim=-1) - crossing)


def pull_back_write(
    write: Write, bar_state: Tensor, alpha: Tensor, gates: Gates, rule: Rule, first_order: bool, wants_gates: bool
) -> tuple[Tensor, Tensor, Tensor, GateGradients]:
    """The cotangents of w, alpha, the first state and the gates, walking the chunks backwards (B7 to B13).

    Args:
        write: one memory, or several side by side in the first axis.
        bar_state: of the last state, `[G, M, D]`.
        alpha: `[G, N, C, M]`.
    """
    gamma, decay = gates
    faded = gamma * decay.until_end
    bar_next, bar_z, bar_alpha, bar_state = _walk(write, bar_state, alpha, faded, decay.whole, rule, first_order)
    moved = write.codes @ bar_next
    bar_w = write.bar_w - faded * moved
    if bar_z is not None:
        bar_w = bar_w + bar_z @ write.start
    if not wants_gates:
        return bar_w, bar_alpha, bar_state, _no_gates(write.w)
    amount = (moved * write.w).sum(dim=-1) * decay.until_end.squeeze(-1)
    kept = (bar_next * write.start).sum(dim=(-2, -1)).unsqueeze(-1) * decay.whole.squeeze(-1)
    written = gamma.squeeze(-1) * amount
    before = torch.cat([torch.zeros_like(written[..., :1]), written[..., :-1]], dim=-1).cumsum(dim=-1)
    return bar_w, bar_alpha, bar_state, GateGradients(-amount, kept - before)


def _walk(
    write: Write, bar_state: Tensor, alpha: Tensor, faded: Tensor, whole: Tensor, rule: Rule, first_order: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The cotangents of the states after each chunk, of z, of alpha, and of the first state."""
    parts = prepare_write(rule.phi, write.w @ write.start.mT, alpha, rule.phi_eps)
    scaled = faded * write.w
    after, bar_z, bar_alpha = [], [], []
    for n in reversed(range(write.w.shape[1])):
        after.append(bar_state)
        bar_u = torch.baddbmm(write.bar_codes[:, n], scaled[:, n], bar_state.mT, alpha=-1)
        of_z, of_alpha = push_write(rule.phi, tuple(part[:, n] for part in parts), bar_u, rule.phi_eps)
        bar_alpha.append(of_alpha)
        bar_state = torch.addcmul(write.bar_start[:, n], whole[:, n], bar_state)
        if not first_order:
            bar_z.append(of_z)
            bar_state = torch.baddbmm(bar_state, of_z.mT, write.w[:, n])
    stacked_z = None if first_order else torch.stack(bar_z[::-1], dim=1)
    return torch.stack(after[::-1], dim=1), stacked_z, torch.stack(bar_alpha[::-1], dim=1), bar_state


def _no_gates(like: Tensor) -> GateGradients:
    return GateGradients(like.new_zeros(like.shape[:-1]), like.new_zeros(like.shape[:-1]))


def _suffix_sums(x: Tensor, dim: int) -> Tensor:
    return x.flip(dim).cumsum(dim=dim).flip(dim)
