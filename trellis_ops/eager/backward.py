"""The reverse pass of the chunked memory in eager PyTorch; numbers are the equations of docs/backward.md.

Source: TRELLIS, arXiv 2512.23852, sections 3 and 3.2. Nothing is kept from the forward: the states at the starts of
segments of chunks are computed again, then each segment is walked backwards from its chunk-start states. Inside a
segment only what passes from chunk to chunk (B7, B9, B11) is a loop; everything else is done for all its chunks at
once. dx is the cotangent of x.

Internal layout as in `trellis_ops.eager.forward`: `[B x H, N, C, D]` for tokens, `[B x H, M, D]` for states.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops.eager import chunks, packed
from trellis_ops.eager import forward as eager
from trellis_ops.eager.chunk_derivatives import (
    GateGradients,
    Gates,
    Readout,
    Write,
    pull_back_read,
    pull_back_write,
    read,
)
from trellis_ops.eager.chunks import Decay
from trellis_ops.eager.evolution import evolve
from trellis_ops.eager.maps import apply_map, pull_back
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.tokens import States, Tokens

_COPIES_PAY_BELOW = 16
"""Tokens of a chunk below which walking both memories at once saves more than copying them side by side costs."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    dy: Tensor,
    dstates: States,
    *,
    rule: Rule,
    chunk_size: int,
    initial_state: States | None = None,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
    wants_gates: bool = True,
) -> tuple[Tokens, States]:
    """Vector-Jacobian products of `trellis_ops.eager.forward.attention`.

    Args:
        q, k, v, target, log_decay, step_size, rule, chunk_size, initial_state, cu_seqlens, outer_gradient: as it was
            called.
        dy: `[B, T, H, D_v]`.
        dstates: of the final states, `[B, H, M, D_k]` and `[B, H, M, D_v]`; `[N, H, M, D]` when packed.
        wants_gates: whether the gradients of log_decay and step_size are needed; they come back as zeros otherwise.

    Returns:
        The gradients of the tokens, step_size's `[B, T, H]` also where it was given per head, and of the initial
        states;
        all in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an unknown `outer_gradient`.
    """
    first_order = is_first_order(outer_gradient)
    tokens = Tokens(q, k, v, target, log_decay, step_size.expand(log_decay.shape))
    dtype = eager.accumulation_dtype(q)
    ds_k, ds_v = (cotangent.to(dtype) for cotangent in dstates)
    incoming = (ds_k, ds_v)
    if cu_seqlens is None:
        states = eager.first_states(tokens, initial_state, sequences=q.shape[0])
        return _run(tokens, dy, states, incoming, rule, chunk_size, first_order, wants_gates)
    states = eager.first_states(tokens, initial_state, sequences=len(cu_seqlens) - 1)

    def run_batch(batch: Sequence[Tensor], both: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        (*part, dy), (s_k, s_v, ds_k, ds_v) = batch, both
        return _run(Tokens(*part), dy, (s_k, s_v), (ds_k, ds_v), rule, chunk_size, first_order, wants_gates)

    of_tokens, (ds_k, ds_v) = packed.run((*tokens, dy), (*states, *incoming), cu_seqlens, run_batch, idle=incoming)
    return Tokens(*of_tokens), (ds_k, ds_v)


def gradients(
    inputs: Mapping[str, Any],
    wanted: Collection[str],
    cotangents: Mapping[str, Tensor],
    *,
    rule: Rule,
    chunk_size: int,
    outer_gradient: str,
) -> dict[str, Tensor]:
    """The gradients of an operator call by name, each in the shape and type of its input.

    Args:
        inputs: q, k, v, target, log_decay, step_size, S_k, S_v and cu_seqlens; the last three may be None.
        wanted: names of the inputs whose gradients are returned.
        cotangents: of y and of both final states, S_k and S_v.
        rule, chunk_size, outer_gradient: as in `attention`.
    """
    given = {name: inputs[name] for name in Tokens._fields}
    s_k, s_v = inputs["S_k"], inputs["S_v"]
    tokens, (ds_k, ds_v) = attention(
        **given,
        dy=cotangents["y"],
        dstates=(cotangents["S_k"], cotangents["S_v"]),
        rule=rule,
        chunk_size=chunk_size,
        initial_state=None if s_k is None or s_v is None else (s_k, s_v),
        cu_seqlens=inputs["cu_seqlens"],
        outer_gradient=outer_gradient,
        wants_gates="log_decay" in wanted or "step_size" in wanted,
    )
    if given["step_size"].ndim == 1:
        tokens = tokens._replace(step_size=tokens.step_size.sum(dim=(0, 1)))
    found = {**tokens._asdict(), "S_k": ds_k, "S_v": ds_v}
    return {name: found[name].to(inputs[name].dtype).contiguous() for name in wanted}


def _run(
    tokens: Tokens,
    dy: Tensor,
    states: States,
    dstates: States,
    rule: Rule,
    chunk_size: int,
    first_order: bool,
    wants_gates: bool,
) -> tuple[Tokens, States]:
    batch, length = tokens.q.shape[:2]
    chunk = min(chunk_size, length)
    shapes = [s.shape for s in states]
    starts = [[s.flatten(0, 1) for s in states]]
    incoming = [cotangent.flatten(0, 1) for cotangent in dstates]
    segment = eager.segment_tokens(starts[0], chunk)
    parts = [
        (tokens.each(lambda x, t=t: x[:, t : t + segment]), dy[:, t : t + segment])  # type: ignore[misc]
        for t in range(0, length, segment)
    ]
    for part, _ in parts[:-1]:
        starts.append(_last_states(part, starts[-1], rule, chunk))
    results = []
    for (part, cotangent), start in zip(reversed(parts), reversed(starts), strict=True):
        gradients, incoming = _segment(part, cotangent, start, incoming, rule, chunk, first_order, wants_gates)
        results.append(gradients.each(lambda x: chunks.merge(x, batch).flatten(1, 2)))
    whole = Tokens(*(torch.cat(x[::-1], dim=1)[:, :length] for x in zip(*results, strict=True)))
    # Copied apart: side by side they share one storage, and an operator must not return tensors that overlap.
    dk, dv = (cotangent.view(shape).clone() for cotangent, shape in zip(incoming, shapes, strict=True))
    return whole._replace(log_decay=whole.log_decay.squeeze(-1), step_size=whole.step_size.squeeze(-1)), (dk, dv)


def _last_states(tokens: Tokens, states: list[Tensor], rule: Rule, chunk: int) -> list[Tensor]:
    split = tokens.each(lambda x: chunks.split(x.to(states[0].dtype), chunk))
    decay = chunks.decay(chunks.pack(split.log_decay), states[0].dtype)
    return evolve(split, decay, states, rule, first_order=False).finals


def _segment(
    tokens: Tokens,
    dy: Tensor,
    states: list[Tensor],
    dstates: list[Tensor],
    rule: Rule,
    chunk: int,
    first_order: bool,
    wants_gates: bool,
) -> tuple[Tokens, list[Tensor]]:
    """Gradients `[B x H, N, C, ...]` of a few chunks, those of the gates with a last axis of 1, and of `states`."""
    dtype = states[0].dtype
    split = tokens.each(lambda x: chunks.split(x.to(dtype), chunk))
    q, k, v, target, log_decay, step_size = split.each(chunks.pack)
    gates = Gates(step_size.unsqueeze(-1), chunks.decay(log_decay, dtype))
    (start_k, start_v), (u_k, u_v), _, _ = evolve(split, gates.decay, states, rule, first_order)

    first = Readout(q, k, u_k, start_k.mT)
    o = read(first, gates)
    second = Readout(apply_map(rule.link, o), u_v, v, start_v)
    dx = chunks.pack(chunks.split(dy.to(dtype), chunk))
    if rule.out != "identity":
        dx = pull_back(rule.out, read(second, gates), dx)
    dsecond, read_v = pull_back_read(second, dx, gates, wants_gates)
    do = pull_back(rule.link, o, dsecond.read)
    dfirst, read_k = pull_back_read(first, do, gates, wants_gates)

    writes = (
        Write(k, u_k, start_k, dfirst.values, dfirst.keys, dfirst.start.mT),
        Write(v, u_v, start_v, dsecond.keys, dsecond.values, dsecond.start),
    )
    side_by_side = ((0, 1),) if k.shape == v.shape and chunk < _COPIES_PAY_BELOW else ((0,), (1,))
    pulled = [
        result
        for memories in side_by_side
        for result in _pull_back_together(
            [writes[i] for i in memories],
            [dstates[i] for i in memories],
            target,
            gates,
            rule,
            first_order,
            wants_gates,
        )
    ]
    (dk, target_k, ds_k, write_k), (dv, target_v, ds_v, write_v) = pulled
    dstep_size, dlog_decay = (
        torch.stack(parts).sum(dim=0).unsqueeze(-1) for parts in zip(read_k, read_v, write_k, write_v, strict=True)
    )
    return Tokens(dfirst.read, dk, dv, target_k + target_v, dlog_decay, dstep_size), [ds_k, ds_v]


def _pull_back_together(
    writes: list[Write],
    dstates: list[Tensor],
    target: Tensor,
    gates: Gates,
    rule: Rule,
    first_order: bool,
    wants_gates: bool,
) -> list[tuple[Tensor, Tensor, Tensor, GateGradients]]:
    """`pull_back_write` of memories of one shape, in one walk."""
    if len(writes) == 1:
        return [pull_back_write(writes[0], dstates[0], target, gates, rule, first_order, wants_gates)]
    count = len(writes)

    def repeated(x: Tensor) -> Tensor:
        return torch.cat([x] * count)

    decay = Decay(*(repeated(x) for x in gates.decay))
    dw, dtarget, dstate, (dstep_size, dlog_decay) = pull_back_write(
        Write(*(torch.cat(parts) for parts in zip(*writes, strict=True))),
        torch.cat(dstates),
        repeated(target),
        Gates(repeated(gates.step_size), decay),
        rule,
        first_order,
        wants_gates,
    )
    each = (x.chunk(count) for x in (dw, dtarget, dstate, dstep_size, dlog_decay))
    return [(w, a, s, GateGradients(g, b)) for w, a, s, g, b in zip(*each, strict=True)]
