"""Runs a compiled program on the tensors of a call: flattens tokens, allocates outputs, makes the offsets.

Shapes are those of the public operators; arguments have been checked. A call of torch costs as much as the Python of
a whole layer: `contiguous` is cheap where nothing is to do, `float` and `to` are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from codegen.program import GRADIENTS, Program, Sequences
from trellis_ops.tokens import States


def attention(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor]:
    """y `[B, T, H, D_v]` and the final states of both memories."""
    s_k, s_v = _first_state(S_k, sequences, alpha, k), _first_state(S_v, sequences, alpha, v)
    rows = _rows(v)
    y = torch.empty_like(rows)
    program.attention(
        *(_rows(q), _rows(k), rows, _rows(alpha), _rows(_float32(log_beta)), _gamma(gamma)),
        *(s_k, s_v, sequences, y),
    )
    return y.view_as(v), s_k, s_v


def attention_kept(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `attention`, of a backward program; and the kept states `[kept, H, M, D]` of both memories.

    Args:
        sequences: with chunks of `program.segment_tokens`.
    """
    s_k, s_v = _first_state(S_k, sequences, alpha, k), _first_state(S_v, sequences, alpha, v)
    kept_k, kept_v = (s.new_empty((sequences.chunks, *s.shape[1:])) for s in (s_k, s_v))
    rows = _rows(v)
    y = torch.empty_like(rows)
    program.attention_kept(
        *(_rows(q), _rows(k), rows, _rows(alpha), _rows(_float32(log_beta)), _gamma(gamma)),
        *(s_k, s_v, sequences, (kept_k, kept_v), y),
    )
    return y.view_as(v), s_k, s_v, kept_k, kept_v


def attention_backward(
    program: Program,
    inputs: Sequence[Tensor],
    chunk_states: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    sequences: Sequences,
    wanted: Sequence[int],
) -> list[Tensor]:
    """The wanted gradients, each in the shape and type of its input.

    Args:
        inputs: the first six of `attention_kept`.
        chunk_states: its last two results.
        cotangents: of y and of the final states.
        sequences: as it was given.
        wanted: numbers of those inputs of `attention_kept` whose gradients are computed, in order.
    """
    q, k, v, alpha, log_beta, gamma = inputs
    bars = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, alpha)]
    bar_gates = [torch.empty(log_beta.shape, dtype=torch.float32, device=q.device) for _ in range(2)]
    bar_states = [x.clone(memory_format=torch.contiguous_format) for x in cotangents[1:]]
    program.backward(
        (_rows(q), _rows(k), _rows(v), _rows(alpha), _rows(_float32(log_beta)), _gamma(gamma)),
        (chunk_states[0], chunk_states[1]),
        _rows(cotangents[0]),
        (bar_states[0], bar_states[1]),
        sequences,
        tuple(_rows(x) for x in (*bars, *bar_gates)),
        tuple(dict.fromkeys(GRADIENTS[min(i, 6)] for i in wanted)),
    )
    if 5 in wanted and gamma.ndim == 1:
        bar_gates[1] = bar_gates[1].sum(dim=(0, 1))
    computed = (*bars, bar_gates[0].to(log_beta.dtype), bar_gates[1].to(gamma.dtype), *bar_states)
    return [computed[i] for i in wanted]


def update(
    program: Program,
    w: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    S: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor]:
    """chunk_states `[B, N, H, M, D]`, codes `[B, T, H, M]` and the final state, all float32."""
    batch, tokens, heads, dim = w.shape
    slots = alpha.shape[-1]
    state = _first_state(S, sequences, alpha, w)
    chunk_states = state.new_empty((sequences.chunks, heads, slots, dim))
    codes = state.new_empty((batch * tokens, heads, slots))
    gates = _rows(_float32(log_beta)), _gamma(gamma)
    program.update(_rows(w), _rows(alpha), *gates, state, sequences, chunk_states, codes)
    return chunk_states.view(batch, -1, heads, slots, dim), codes.view(batch, tokens, heads, slots), state


def readout(
    program: Program,
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    transpose: bool,
    sequences: Sequences,
) -> Tensor:
    """S_t q_t `[B, T, H, M]`, or S_t^T r_t `[B, T, H, D]`, in the type of `read`."""
    y = read.new_empty((*w.shape[:3], w.shape[3] if transpose else codes.shape[3]))
    gates = _rows(_float32(log_beta)), _gamma(gamma)
    program.readout(_rows(read), _rows(w), _rows(chunk_states), _rows(codes), *gates, sequences, y.flatten(0, 1))
    return y


def step(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    S_k: Tensor,
    S_v: Tensor,
    gradient_state: States | None,
    sequences: Sequences,
) -> Tensor:
    """y `[B, H, D_v]`; S_k and S_v move in place."""
    s_k, s_v = S_k.contiguous(), S_v.contiguous()
    gradient_states = () if gradient_state is None else (gradient_state[0].contiguous(), gradient_state[1].contiguous())
    tokens = q.contiguous(), k.contiguous(), v.contiguous(), alpha.contiguous()
    y = torch.empty_like(tokens[2])
    gates = _float32(log_beta).contiguous(), _float32(gamma).contiguous()
    try:
        program.step(*tokens, *gates, s_k, s_v, gradient_states, sequences.cu_seqlens, y)
    finally:
        # Kernels write behind autograd's back; what it has saved of these states is gone, also if a kernel fails.
        increment_version((s_k, s_v))
    if s_k is not S_k:
        S_k.copy_(s_k)
    if s_v is not S_v:
        S_v.copy_(s_v)
    return y


def packed_sequences(cu_seqlens: Tensor, tokens: int, chunk_size: int) -> Sequences:
    """The offsets of packed sequences; nothing is read back from the device."""
    chunks = -(-tokens // chunk_size)
    count = cu_seqlens.shape[0] - 1
    total = count_chunks(1, tokens, chunk_size, count)
    # Sequence n has at most floor(end / C) - floor(start / C) + 1 chunks, so these offsets never overlap.
    chunk_offsets = cu_seqlens // chunk_size + torch.arange(count + 1, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    offsets = cu_seqlens.to(torch.int32).contiguous()
    return Sequences(offsets, chunk_offsets.to(torch.int32), total, chunks)


def count_chunks(batch: int, tokens: int, chunk_size: int, packed: int | None) -> int:
    """How many states are allocated, one of every `chunk_size` tokens, for `packed` sequences or for a batch."""
    chunks = -(-tokens // chunk_size)
    return batch * chunks if packed is None else chunks + packed


def even_sequences(batch: int, tokens: int, chunk_size: int, device: torch.device) -> Sequences:
    """The offsets of a batch of sequences of equal length."""
    chunks = -(-tokens // chunk_size)
    numbers = torch.arange(batch + 1, device=device, dtype=torch.int32)
    return Sequences(numbers * tokens, numbers * chunks, batch * chunks, chunks)


def _rows(x: Tensor) -> Tensor:
    return x.contiguous().flatten(0, 1)


def _gamma(gamma: Tensor) -> Tensor:
    return _float32(gamma).contiguous() if gamma.ndim == 1 else _rows(_float32(gamma))


def _float32(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def _first_state(given: Tensor | None, sequences: Sequences, alpha: Tensor, w: Tensor) -> Tensor:
    if given is None:
        return w.new_zeros((sequences.count, *alpha.shape[2:], w.shape[3]), dtype=torch.float32)
    return given.clone() if given.is_contiguous() else given.contiguous()
