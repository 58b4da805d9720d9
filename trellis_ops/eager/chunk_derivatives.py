"""Vector-Jacobian products of what happens inside a chunk; numbers are the equations of docs/backward.md.

Tensors are `[G, N, C, ...]` for the tokens of N chunks of G heads, `[G, N, A, B]` for their states. A name with
dx is the cotangent of x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops.eager.chunks import Decay
from trellis_ops.eager.maps import prepare_write, push_write


class Gates(NamedTuple):
    """gamma `[G, N, C, 1]` and the decay of every chunk."""

    step_size: Tensor
    decay: Decay


class GateGradients(NamedTuple):
    """The gradients of step_size and log_decay, `[G, N, C]`."""

    step_size: Tensor
    log_decay: Tensor


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
        dcodes, dw, dstart: shaped as these.
    """

    w: Tensor
    codes: Tensor
    start: Tensor
    dcodes: Tensor
    dw: Tensor
    dstart: Tensor


def read(readout: Readout, gates: Gates) -> Tensor:
    """What the readout gives, `[G, N, C, B]`."""
    x, keys, values, start = readout
    step_size, decay = gates
    scores = (x @ keys.mT) * decay.between
    return (x @ start) * decay.since_start - scores @ (step_size * values)


def pull_back_read(
    readout: Readout, cotangent: Tensor, gates: Gates, wants_gates: bool
) -> tuple[Readout, GateGradients]:
    """The cotangents of a readout (B1 to B4) and of its gates (B5, B6; zero unless `wants_gates`)."""
    x, keys, values, start = readout
    step_size, decay = gates
    scores = (x @ keys.mT) * decay.between
    products = cotangent @ values.mT
    dscores = products * decay.between
    faded = cotangent * decay.since_start
    from_start = faded @ start.mT
    dreadout = Readout(
        from_start - dscores @ (step_size * keys),
        (dscores.mT @ x) * -step_size,
        (scores.mT @ cotangent) * -step_size,
        x.mT @ faded,
    )
    if not wants_gates:
        return dreadout, _no_gates(x)
    pairs = scores * products
    kept = (x * from_start).sum(dim=-1)
    # Suffix sums over the reading token, then the writing tokens before each: no large terms that cancel.
    later = _suffix_sums(pairs, dim=-2)
    crossing = (later.tril(-1) @ step_size).squeeze(-1)
    return dreadout, GateGradients(-pairs.sum(dim=-2), _suffix_sums(kept, dim=-1) - crossing)


def pull_back_write(
    write: Write, dstate: Tensor, target: Tensor, gates: Gates, rule: Rule, first_order: bool, wants_gates: bool
) -> tuple[Tensor, Tensor, Tensor, GateGradients]:
    """The cotangents of w, target, the first state and the gates, walking the chunks backwards (B7 to B13).

    Args:
        write: one memory, or several side by side in the first axis.
        dstate: of the last state, `[G, M, D]`.
        target: `[G, N, C, M]`.
    """
    step_size, decay = gates
    faded = step_size * decay.until_end
    dnext, dz, dtarget, dstate = _walk(write, dstate, target, faded, decay.whole, rule, first_order)
    moved = write.codes @ dnext
    dw = write.dw - faded * moved
    if dz is not None:
        dw = dw + dz @ write.start
    if not wants_gates:
        return dw, dtarget, dstate, _no_gates(write.w)
    amount = (moved * write.w).sum(dim=-1) * decay.until_end.squeeze(-1)
    kept = (dnext * write.start).sum(dim=(-2, -1)).unsqueeze(-1) * decay.whole.squeeze(-1)
    written = step_size.squeeze(-1) * amount
    before = torch.cat([torch.zeros_like(written[..., :1]), written[..., :-1]], dim=-1).cumsum(dim=-1)
    return dw, dtarget, dstate, GateGradients(-amount, kept - before)


def _walk(
    write: Write, dstate: Tensor, target: Tensor, faded: Tensor, whole: Tensor, rule: Rule, first_order: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The cotangents of the states after each chunk, of z, of target, and of the first state."""
    parts = prepare_write(rule.phi, write.w @ write.start.mT, target, rule.phi_eps)
    scaled = faded * write.w
    after, dz, dtarget = [], [], []
    for n in reversed(range(write.w.shape[1])):
        after.append(dstate)
        du = torch.baddbmm(write.dcodes[:, n], scaled[:, n], dstate.mT, alpha=-1)
        of_z, of_target = push_write(rule.phi, tuple(part[:, n] for part in parts), du, rule.phi_eps)
        dtarget.append(of_target)
        dstate = torch.addcmul(write.dstart[:, n], whole[:, n], dstate)
        if not first_order:
            dz.append(of_z)
            dstate = torch.baddbmm(dstate, of_z.mT, write.w[:, n])
    stacked_z = None if first_order else torch.stack(dz[::-1], dim=1)
    return torch.stack(after[::-1], dim=1), stacked_z, torch.stack(dtarget[::-1], dim=1), dstate


def _no_gates(like: Tensor) -> GateGradients:
    return GateGradients(like.new_zeros(like.shape[:-1]), like.new_zeros(like.shape[:-1]))


def _suffix_sums(x: Tensor, dim: int) -> Tensor:
    return x.flip(dim).cumsum(dim=dim).flip(dim)
