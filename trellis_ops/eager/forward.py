"""Bounded-memory attention in eager PyTorch, chunk by chunk: the fallback, and the baseline of the benchmarks.

Source: TRELLIS, arXiv 2512.23852, sections 3 and 3.2. Inside a chunk with start state S_0, rows being tokens:

    Z   = W S_0^T,   U = rows of the vector-Jacobian product at Z
    O   = diag(exp L) Q S_0^T - [(Q W^T) * Omega] diag(gamma) U
    Y   = diag(exp L) R S_0   - [(R U^T) * Omega] diag(gamma) W
    S_C = exp(L_C) S_0 - U^T diag(gamma exp(L_C - L)) W

Only Z, U and S_C depend on the chunk before; the loop over chunks computes nothing else. Both memories evolve in it
side by side. States and arithmetic are float32, or float64 for float64 inputs. Everything is differentiable by
autograd, except `step`, which works in place.

Internal layout: `[B x H, N, C, D]` for tokens, `[B x H, M, D]` for states; two memories stacked double the first axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.rule import Rule
from trellis_ops.eager import chunks, evolution, packed
from trellis_ops.eager.maps import apply_map, inner_gradient
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.tokens import States, Tokens

_SEGMENT_ELEMENTS = {"cpu": 2**20}
"""State elements kept before their readouts are taken, by device type: on a CPU 4 MiB, which stay in its caches."""

_SEGMENT_ELEMENTS_ELSEWHERE = 2**26
"""The same on any other device, where the fewest kernel launches are fastest: 256 MiB."""

_SEGMENT_TOKENS = 8
"""Fewest tokens whose readouts are taken together."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    rule: Rule,
    chunk_size: int,
    initial_state: States | None = None,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
) -> tuple[Tensor, States]:
    """The two-pass memory over T tokens.

    Args:
        q, k: `[B, T, H, D_k]`.
        v: `[B, T, H, D_v]`.
        target: `[B, T, H, M]`, the target that both memories share.
        log_decay: `[B, T, H]`, log of the forget gate; -inf forgets everything.
        step_size: `[H]` or `[B, T, H]`, the step size.
        rule: the maps.
        chunk_size: C; z is taken at the state at the start of the token's chunk. 1 is the exact recurrence.
        initial_state: S_k `[B, H, M, D_k]` and S_v `[B, H, M, D_v]`, zero if None; `[N, H, M, D]` when packed.
        cu_seqlens: `[N + 1]` offsets of N sequences packed into B = 1; chunks restart with each of them. Reading them
            waits for the device, and `torch.compile` cannot trace them.
        outer_gradient: "bilevel", or "first_order" to treat z as a constant inside u.

    Returns:
        y `[B, T, H, D_v]` in the type of q, and the final states in float32 (float64 for float64 inputs).

    Raises:
        ValueError: an unknown `outer_gradient`.
    """
    first_order = is_first_order(outer_gradient)
    tokens = Tokens(q, k, v, target, log_decay, step_size.expand(log_decay.shape))
    if cu_seqlens is None:
        states = first_states(tokens, initial_state, sequences=q.shape[0])
        return _run(tokens, states, rule, chunk_size, first_order)
    states = first_states(tokens, initial_state, sequences=len(cu_seqlens) - 1)

    def run_batch(batch: Sequence[Tensor], start: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        s_k, s_v = start
        y, finals = _run(Tokens(*batch), (s_k, s_v), rule, chunk_size, first_order)
        return (y,), finals

    (y,), (s_k, s_v) = packed.run(tokens, states, cu_seqlens, run_batch, idle=states)
    return y, (s_k, s_v)


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The type of states and arithmetic for inputs like x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def first_states(tokens: Tokens, initial_state: States | None, sequences: int) -> States:
    """The initial states in the type of all arithmetic, zero for None."""
    dtype = accumulation_dtype(tokens.q)
    if initial_state is not None:
        s_k, s_v = initial_state
        return s_k.to(dtype), s_v.to(dtype)
    heads, slots = tokens.target.shape[-2:]
    return (
        tokens.q.new_zeros(sequences, heads, slots, tokens.q.shape[-1], dtype=dtype),
        tokens.q.new_zeros(sequences, heads, slots, tokens.v.shape[-1], dtype=dtype),
    )


def _run(tokens: Tokens, states: States, rule: Rule, chunk_size: int, first_order: bool) -> tuple[Tensor, States]:
    batch, length = tokens.q.shape[:2]
    chunk = min(chunk_size, length)
    shapes = [s.shape for s in states]
    flat = [s.flatten(0, 1) for s in states]
    segment = segment_tokens(flat, chunk)
    outputs = []
    for start in range(0, length, segment):
        part = Tokens(*(x[:, start : start + segment] for x in tokens))
        y, flat = _segment(part, flat, rule, chunk, first_order)
        outputs.append(chunks.merge(y.to(tokens.q.dtype), batch))
    y = torch.cat(outputs, dim=1).flatten(1, 2)[:, :length].contiguous()
    # Copied apart: side by side they share one storage, and an operator must not return tensors that overlap.
    s_k, s_v = (s.view(shape).clone() for s, shape in zip(flat, shapes, strict=True))
    return y, (s_k, s_v)


def segment_tokens(states: Sequence[Tensor], chunk: int) -> int:
    """How many tokens, a multiple of the chunk, have their chunk-start states kept at once."""
    elements = _SEGMENT_ELEMENTS.get(states[0].device.type, _SEGMENT_ELEMENTS_ELSEWHERE)
    return chunk * max(-(-_SEGMENT_TOKENS // chunk), elements // sum(s.numel() for s in states))


def _segment(
    tokens: Tokens, states: list[Tensor], rule: Rule, chunk: int, first_order: bool
) -> tuple[Tensor, list[Tensor]]:
    """y `[B x H, N, C, D_v]` of a few chunks, and the states after them."""
    dtype = states[0].dtype
    split = tokens.each(lambda x: chunks.split(x.to(dtype), chunk))
    decay = chunks.decay(chunks.pack(split.log_decay), dtype)
    evolved = evolution.evolve(split, decay, states, rule, first_order)
    (start_k, start_v), (u_k, u_v), (scaled_k, scaled_v), finals = evolved
    o = evolution.readout(chunks.pack(split.q), scaled_k, u_k, start_k.mT, decay)
    y = evolution.readout(apply_map(rule.link, o), u_v, scaled_v, start_v, decay)
    return apply_map(rule.out, y), finals


def update(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    rule: Rule,
    chunk_size: int,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states of one memory.

    Args:
        w: `[B, T, H, D]`, the write vectors: k for the first memory, v for the second.
        target, log_decay, step_size, rule, chunk_size: as in `attention`.
        initial_state: `[B, H, M, D]`, zero if None.

    Returns:
        The state at the start of each chunk `[B, ceil(T / C), H, M, D]`, the codes u `[B, T, H, M]`, the final state
        `[B, H, M, D]`; all in float32 (float64 for float64 inputs).
    """
    batch, length, heads, dim = w.shape
    dtype = accumulation_dtype(w)
    chunk = min(chunk_size, length)
    if initial_state is None:
        initial_state = w.new_zeros(batch, heads, target.shape[-1], dim, dtype=dtype)
    w, target, log_decay, step_size = (
        chunks.pack(chunks.split(x.to(dtype), chunk)) for x in (w, target, log_decay, step_size.expand(log_decay.shape))
    )
    decay = chunks.decay(log_decay, dtype)
    state = initial_state.to(dtype).flatten(0, 1)
    starts, codes, _, final = evolution.of_memories(
        w, target, step_size.unsqueeze(-1), decay, state, rule, first_order=False
    )
    codes = chunks.merge(codes, batch).flatten(1, 2)[:, :length]
    return (
        torch.unflatten(starts, 0, (batch, heads)).transpose(1, 2).contiguous(),
        codes.contiguous(),
        torch.unflatten(final, 0, (batch, heads)),
    )


def readout(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    chunk_size: int,
    transpose: bool = False,
) -> Tensor:
    """One readout per token, from what `update` returned.

    Args:
        read: q `[B, T, H, D]`, or with `transpose` r `[B, T, H, M]`.
        w: `[B, T, H, D]`, the write vectors that `update` was given.
        chunk_states, codes: the first two results of `update`.
        log_decay, step_size, chunk_size: as in `attention`.
        transpose: read S_t^T r_t instead of S_t q_t.

    Returns:
        S_t q_t `[B, T, H, M]`, or with `transpose` S_t^T r_t `[B, T, H, D]`, in the type of `read`; no map is applied.
    """
    batch, length = read.shape[:2]
    dtype = accumulation_dtype(w)
    chunk = min(chunk_size, length)
    x, scaled, codes, log_decay = (
        chunks.pack(chunks.split(x.to(dtype), chunk)) for x in (read, w * step_size.unsqueeze(-1), codes, log_decay)
    )
    starts = chunk_states.to(dtype).transpose(1, 2).flatten(0, 1)
    decay = chunks.decay(log_decay, dtype)
    y = (
        evolution.readout(x, codes, scaled, starts, decay)
        if transpose
        else evolution.readout(x, scaled, codes, starts.mT, decay)
    )
    return chunks.merge(y.to(read.dtype), batch).flatten(1, 2)[:, :length].contiguous()


@torch.no_grad()
def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    state: States,
    *,
    rule: Rule,
    gradient_state: States | None = None,
) -> Tensor:
    """One token, without gradients; the states are updated in place.

    Args:
        q, k: `[B, H, D_k]`.
        v: `[B, H, D_v]`.
        target: `[B, H, M]`.
        log_decay: `[B, H]`.
        step_size: `[H]` or `[B, H]`.
        state: S_k `[B, H, M, D_k]` and S_v `[B, H, M, D_v]`, float32 (or float64); any strides that do not overlap.
        rule: the maps.
        gradient_state: the states that z is taken at, the chunk's first ones; None is `state`, the exact recurrence.

    Returns:
        y `[B, H, D_v]` in the type of q.
    """
    dtype = state[0].dtype
    target = target.to(dtype)
    beta = log_decay.to(dtype).exp()[..., None, None]
    step_size = step_size.to(dtype).unsqueeze(-1)
    for memory, start, x in zip(state, gradient_state or state, (k, v), strict=True):
        w = x.to(dtype)
        z = _product(w, start.mT)
        u = inner_gradient(rule.phi, z, target, rule.phi_eps) * step_size
        memory.mul_(beta).addcmul_(u.unsqueeze(-1), w.unsqueeze(-2), value=-1)
    s_k, s_v = state
    r = apply_map(rule.link, _product(q.to(dtype), s_k.mT))
    return apply_map(rule.out, _product(r, s_v)).to(q.dtype)


def _product(row: Tensor, matrix: Tensor) -> Tensor:
    # As a row, not as a column: the CPU's batched matrix-vector product is seven times slower.
    return torch.matmul(row.unsqueeze(-2), matrix).squeeze(-2)
