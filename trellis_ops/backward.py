"""The reverse pass of the chunked memory in eager PyTorch; numbers are the equations of docs/backward.md.

Source: TRELLIS, arXiv 2512.23852, sections 3 and 3.2. Nothing is kept from the forward: the states at the starts of
segments of chunks are computed again, then each segment is walked backwards from its chunk-start states. Inside a
segment only what passes from chunk to chunk (B7, B9, B11) is a loop; everything else is done for all its chunks at
once. A name with `bar_` is the cotangent of what follows.

Internal layout as in `trellis_ops.eager`: `[B x H, N, C, D]` for tokens, `[B x H, M, D]` for states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops import chunks, eager, packed
from trellis_ops.chunk_derivatives import GateGradients, Gates, Readout, Write, pull_back_read, pull_back_write, read
from trellis_ops.chunks import Decay
from trellis_ops.maps import apply_map, pull_back
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.tokens import States, Tokens

_COPIES_PAY_BELOW = 16
"""Tokens of a chunk below which walking both memories at once saves more than copying them side by side costs."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    bar_y: Tensor,
    bar_states: States,
    *,
    rule: Rule,
    chunk_size: int,
    initial_state: States | None = None,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
    wants_gates: bool = True,
) -> tuple[Tokens, States]:
    """Vector-Jacobian products of `trellis_ops.eager.attention`.

    Args:
        q, k, v, alpha, log_beta, gamma, rule, chunk_size, initial_state, cu_seqlens, outer_gradient: as it was called.
        bar_y: `[B, T, H, D_v]`.
        bar_states: of the final states, `[B, H, M, D_k]` and `[B, H, M, D_v]`; `[N, H, M, D]` when packed.
        wants_gates: whether the gradients of log_beta and gamma are needed; they come back as zeros otherwise.

    Returns:
        The gradients of the tokens, gamma's `[B, T, H]` also where it was given per head, and of the initial states;
        all in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an unknown `outer_gradient`.
    """
    first_order = is_first_order(outer_gradient)
    tokens = Tokens(q, k, v, alpha, log_beta, gamma.expand(log_beta.shape))
    dtype = eager.accumulation_dtype(q)
    bars = (bar_states[0].to(dtype), bar_states[1].to(dtype))
    if cu_seqlens is None:
        states = eager.first_states(tokens, initial_state, sequences=q.shape[0])
        return _run(tokens, bar_y, states, bars, rule, chunk_size, first_order, wants_gates)
    states = eager.first_states(tokens, initial_state, sequences=len(cu_seqlens) - 1)

    def run_batch(batch: Sequence[Tensor], both: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        before, after = (both[0], both[1]), (both[2], both[3])
        return _run(Tokens(*batch[:6]), batch[6], before, after, rule, chunk_size, first_order, wants_gates)

    of_tokens, (bar_k, bar_v) = packed.run((*tokens, bar_y), (*states, *bars), cu_seqlens, run_batch, idle=bars)
    return Tokens(*of_tokens), (bar_k, bar_v)


def gradients(
    inputs: Sequence[Tensor | None],
    wanted: Sequence[int],
    cotangents: Sequence[Tensor],
    *,
    rule: Rule,
    chunk_size: int,
    outer_gradient: str,
) -> list[Tensor]:
    """The gradients of an operator call, each in the shape and type of its input.

    Args:
        inputs: q, k, v, alpha, log_beta, gamma, S_k, S_v, cu_seqlens; the last three may be None.
        wanted: numbers of the inputs whose gradients are returned, in order.
        cotangents: of y and of both final states.
        rule, chunk_size, outer_gradient: as in `attention`.
    """
    q, k, v, alpha, log_beta, gamma, s_k, s_v, cu_seqlens = inputs
    assert q is not None and k is not None and v is not None
    assert alpha is not None and log_beta is not None and gamma is not None
    tokens, states = attention(
        *(q, k, v, alpha, log_beta, gamma),
        cotangents[0],
        (cotangents[1], cotangents[2]),
        rule=rule,
        chunk_size=chunk_size,
        initial_state=None if s_k is None or s_v is None else (s_k, s_v),
        cu_seqlens=cu_seqlens,
        outer_gradient=outer_gradient,
        wants_gates=4 in wanted or 5 in wanted,
    )
    if gamma.ndim == 1:
        tokens = tokens._replace(gamma=tokens.gamma.sum(dim=(0, 1)))
    found = (*tokens, *states)
    return [
        found[i].to(like.dtype).contiguous() for i, like in enumerate(inputs[:8]) if like is not None and i in wanted
    ]


def _run(
    tokens: Tokens,
    bar_y: Tensor,
    states: States,
    bar_states: States,
    rule: Rule,
    chunk_size: int,
    first_order: bool,
    wants_gates: bool,
) -> tuple[Tokens, States]:
    batch, length = tokens.q.shape[:2]
    chunk = min(chunk_size, length)
    shapes = [s.shape for s in states]
    starts = [[s.flatten(0, 1) for s in states]]
    bars = [bar.flatten(0, 1) for bar in bar_states]
    segment = eager.segment_tokens(starts[0], chunk)
    parts = [
        (tokens.each(lambda x, t=t: x[:, t : t + segment]), bar_y[:, t : t + segment])  # type: ignore[misc]
        for t in range(0, length, segment)
    ]
    for part, _ in parts[:-1]:
        starts.append(_last_states(part, starts[-1], rule, chunk))
    results = []
    for (part, bar), start in zip(reversed(parts), reversed(starts), strict=True):
        gradients, bars = _segment(part, bar, start, bars, rule, chunk, first_order, wants_gates)
        results.append(gradients.each(lambda x: chunks.merge(x, batch).flatten(1, 2)))
    whole = Tokens(*(torch.cat(x[::-1], dim=1)[:, :length] for x in zip(*results, strict=True)))
    # Copied apart: side by side they share one storage, and an operator must not return tensors that overlap.
    bar_k, bar_v = (bar.view(shape).clone() for bar, shape in zip(bars, shapes, strict=True))
    return whole._replace(log_beta=whole.log_beta.squeeze(-1), gamma=whole.gamma.squeeze(-1)), (bar_k, bar_v)


def _last_states(tokens: Tokens, states: list[Tensor], rule: Rule, chunk: int) -> list[Tensor]:
    split = tokens.each(lambda x: chunks.split(x.to(states[0].dtype), chunk))
    decay = chunks.decay(chunks.pack(split.log_beta), states[0].dtype)
    return eager.evolve(split, decay, states, rule, first_order=False)[3]


def _segment(
    tokens: Tokens,
    bar_y: Tensor,
    states: list[Tensor],
    bar_states: list[Tensor],
    rule: Rule,
    chunk: int,
    first_order: bool,
    wants_gates: bool,
) -> tuple[Tokens, list[Tensor]]:
    """Gradients `[B x H, N, C, ...]` of a few chunks, those of the gates with a last axis of 1, and of `states`."""
    dtype = states[0].dtype
    split = tokens.each(lambda x: chunks.split(x.to(dtype), chunk))
    q, k, v, alpha, log_beta, gamma = split.each(chunks.pack)
    gates = Gates(gamma.unsqueeze(-1), chunks.decay(log_beta, dtype))
    (start_k, start_v), (u_k, u_v), _, _ = eager.evolve(split, gates.decay, states, rule, first_order)

    first = Readout(q, k, u_k, start_k.mT)
    o = read(first, gates)
    second = Readout(apply_map(rule.link, o), u_v, v, start_v)
    bar_x = chunks.pack(chunks.split(bar_y.to(dtype), chunk))
    if rule.out != "identity":
        bar_x = pull_back(rule.out, read(second, gates), bar_x)
    bar_second, read_v = pull_back_read(second, bar_x, gates, wants_gates)
    bar_o = pull_back(rule.link, o, bar_second.read)
    bar_first, read_k = pull_back_read(first, bar_o, gates, wants_gates)

    writes = (
        Write(k, u_k, start_k, bar_first.values, bar_first.keys, bar_first.start.mT),
        Write(v, u_v, start_v, bar_second.keys, bar_second.values, bar_second.start),
    )
    side_by_side = ((0, 1),) if k.shape == v.shape and chunk < _COPIES_PAY_BELOW else ((0,), (1,))
    pulled = [
        result
        for memories in side_by_side
        for result in _pull_back_together(
            [writes[i] for i in memories],
            [bar_states[i] for i in memories],
            alpha,
            gates,
            rule,
            first_order,
            wants_gates,
        )
    ]
    (bar_k, alpha_k, bar_s_k, write_k), (bar_v, alpha_v, bar_s_v, write_v) = pulled
    bar_gamma, bar_log_beta = (
        torch.stack(parts).sum(dim=0).unsqueeze(-1) for parts in zip(read_k, read_v, write_k, write_v, strict=True)
    )
    return Tokens(bar_first.read, bar_k, bar_v, alpha_k + alpha_v, bar_log_beta, bar_gamma), [bar_s_k, bar_s_v]


def _pull_back_together(
    writes: list[Write],
    bar_states: list[Tensor],
    alpha: Tensor,
    gates: Gates,
    rule: Rule,
    first_order: bool,
    wants_gates: bool,
) -> list[tuple[Tensor, Tensor, Tensor, GateGradients]]:
    """`pull_back_write` of memories of one shape, in one walk."""
    if len(writes) == 1:
        return [pull_back_write(writes[0], bar_states[0], alpha, gates, rule, first_order, wants_gates)]
    count = len(writes)

    def repeated(x: Tensor) -> Tensor:
        return torch.cat([x] * count)

    decay = Decay(*(repeated(x) for x in gates.decay))
    bar_w, bar_alpha, bar_state, (bar_gamma, bar_log_beta) = pull_back_write(
        Write(*(torch.cat(parts) for parts in zip(*writes, strict=True))),
        torch.cat(bar_states),
        repeated(alpha),
        Gates(repeated(gates.gamma), decay),
        rule,
        first_order,
        wants_gates,
    )
    each = (x.chunk(count) for x in (bar_w, bar_alpha, bar_state, bar_gamma, bar_log_beta))
    return [(w, a, s, GateGradients(g, b)) for w, a, s, g, b in zip(*each, strict=True)]
