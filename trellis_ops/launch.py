"""Runs a compiled program on the tensors of a call: flattens tokens, allocates outputs, makes the offsets.

Shapes are those of the public operators; arguments have been checked.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.program import Program, Sequences
from trellis_ops.tokens import States


def attention(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    initial_state: tuple[Tensor | None, Tensor | None],
    cu_seqlens: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y `[B, T, H, D_v]` and the final states of both memories."""
    batch, tokens = q.shape[:2]
    sequences = sequences_of(batch, tokens, chunk_size, q.device, cu_seqlens)
    s_k = _first_state(initial_state[0], sequences.count, alpha, k)
    s_v = _first_state(initial_state[1], sequences.count, alpha, v)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    log_beta, gamma = _gates(log_beta, gamma)
    rows = y.view(-1, *v.shape[2:])
    program.attention(_rows(q), _rows(k), _rows(v), _rows(alpha), log_beta, gamma, s_k, s_v, sequences, rows)
    return y, s_k, s_v


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
    cu_seqlens: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `attention`, of a backward program; and the chunk-start states `[chunks, H, M, D]` of both memories."""
    batch, length = q.shape[:2]
    sequences = sequences_of(batch, length, chunk_size, q.device, cu_seqlens)
    s_k = _first_state(S_k, sequences.count, alpha, k)
    s_v = _first_state(S_v, sequences.count, alpha, v)
    kept_k, kept_v = (s.new_empty((sequences.chunks, *s.shape[1:])) for s in (s_k, s_v))
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    log_beta, gamma = _gates(log_beta, gamma)
    tokens = (_rows(q), _rows(k), _rows(v), _rows(alpha), log_beta, gamma)
    program.attention_kept(*tokens, s_k, s_v, sequences, (kept_k, kept_v), y.view(-1, *v.shape[2:]))
    return y, s_k, s_v, kept_k, kept_v


def attention_backward(
    program: Program,
    inputs: Sequence[Tensor | None],
    chunk_states: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """The gradients of q, k, v, alpha, log_beta, gamma, S_k and S_v, each in the shape and type of its input.

    Args:
        inputs: those of `attention_kept`, cu_seqlens last.
        chunk_states: its last two results.
        cotangents: of y and of the final states.
    """
    q, k, v, alpha, log_beta, gamma, _, _, cu_seqlens = inputs
    kept_k, kept_v = chunk_states
    assert q is not None and k is not None and v is not None and alpha is not None
    assert log_beta is not None and gamma is not None and kept_k is not None and kept_v is not None
    batch, length = q.shape[:2]
    sequences = sequences_of(batch, length, chunk_size, q.device, cu_seqlens)
    gates = _gates(log_beta, gamma)
    bars = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, alpha)]
    bar_gates = [torch.empty(log_beta.shape, dtype=torch.float32, device=q.device) for _ in range(2)]
    bar_states = [x.clone(memory_format=torch.contiguous_format) for x in cotangents[1:]]
    program.backward(
        (_rows(q), _rows(k), _rows(v), _rows(alpha), *gates),
        (kept_k, kept_v),
        _rows(cotangents[0]),
        (bar_states[0], bar_states[1]),
        sequences,
        tuple(_rows(x) for x in (*bars, *bar_gates)),
    )
    bar_gamma = bar_gates[1].sum(dim=(0, 1)) if gamma.ndim == 1 else bar_gates[1]
    return (*bars, bar_gates[0].to(log_beta.dtype), bar_gamma.to(gamma.dtype), *bar_states)


def update(
    program: Program,
    w: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    initial_state: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """chunk_states `[B, N, H, M, D]`, codes `[B, T, H, M]` and the final state, all float32."""
    batch, tokens, heads, dim = w.shape
    slots = alpha.shape[-1]
    sequences = sequences_of(batch, tokens, chunk_size, w.device, None)
    state = _first_state(initial_state, batch, alpha, w)
    chunk_states = state.new_empty((sequences.chunks, heads, slots, dim))
    codes = state.new_empty((batch * tokens, heads, slots))
    program.update(_rows(w), _rows(alpha), *_gates(log_beta, gamma), state, sequences, chunk_states, codes)
    return chunk_states.view(batch, -1, heads, slots, dim), codes.view(batch, tokens, heads, slots), state


def readout(
    program: Program,
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    chunk_size: int,
    transpose: bool,
) -> Tensor:
    """S_t q_t `[B, T, H, M]`, or S_t^T r_t `[B, T, H, D]`, in the type of `read`."""
    batch, tokens, heads, dim = w.shape
    sequences = sequences_of(batch, tokens, chunk_size, w.device, None)
    y = read.new_empty((batch, tokens, heads, dim if transpose else codes.shape[-1]))
    log_beta, gamma = _gates(log_beta, gamma)
    rows = y.view(-1, *y.shape[2:])
    program.readout(_rows(read), _rows(w), _rows(chunk_states), _rows(codes), log_beta, gamma, sequences, rows)
    return y


def step(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    log_beta: Tensor,
    gamma: Tensor,
    state: States,
    gradient_state: States | None,
) -> Tensor:
    """y `[B, H, D_v]`; `state` moves in place."""
    s_k, s_v = state[0].contiguous(), state[1].contiguous()
    gradient_states = () if gradient_state is None else (gradient_state[0].contiguous(), gradient_state[1].contiguous())
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    offsets = _even_offsets(q.shape[0], 1, q.device)
    q, k, v, alpha = q.contiguous(), k.contiguous(), v.contiguous(), alpha.contiguous()
    log_beta, gamma = log_beta.to(torch.float32).contiguous(), gamma.to(torch.float32).contiguous()
    program.step(q, k, v, alpha, log_beta, gamma, s_k, s_v, gradient_states, offsets, y)
    for moved, given in ((s_k, state[0]), (s_v, state[1])):
        if moved is not given:
            given.copy_(moved)
    return y


def sequences_of(
    batch: int, tokens: int, chunk_size: int, device: torch.device, cu_seqlens: Tensor | None
) -> Sequences:
    """The offsets of a batch of equal lengths, or of packed sequences; nothing is read back from the device."""
    chunks = -(-tokens // chunk_size)
    if cu_seqlens is None:
        return _even_sequences(batch, tokens, chunks, device)
    count = cu_seqlens.shape[0] - 1
    total = count_chunks(batch, tokens, chunk_size, count)
    # Sequence n has at most floor(end / C) - floor(start / C) + 1 chunks, so these offsets never overlap.
    chunk_offsets = cu_seqlens // chunk_size + torch.arange(count + 1, device=device, dtype=cu_seqlens.dtype)
    offsets = cu_seqlens.to(torch.int32).contiguous()
    return Sequences(offsets, chunk_offsets.to(torch.int32), total, chunks)


def count_chunks(batch: int, tokens: int, chunk_size: int, packed: int | None) -> int:
    """How many chunk-start states are allocated, for `packed` sequences or for a batch."""
    chunks = -(-tokens // chunk_size)
    return batch * chunks if packed is None else chunks + packed


@functools.lru_cache(maxsize=256)
def _even_sequences(batch: int, tokens: int, chunks: int, device: torch.device) -> Sequences:
    offsets, chunk_offsets = _even_offsets(batch, tokens, device), _even_offsets(batch, chunks, device)
    return Sequences(offsets, chunk_offsets, batch * chunks, chunks)


@functools.lru_cache(maxsize=256)
def _even_offsets(count: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(count + 1, device=device, dtype=torch.int32) * length


def _rows(x: Tensor) -> Tensor:
    return x.contiguous().view(-1, *x.shape[2:])


def _gates(log_beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    gates = log_beta.to(torch.float32), gamma.to(torch.float32)
    return _rows(gates[0]), gates[1].contiguous() if gamma.ndim == 1 else _rows(gates[1])


def _first_state(initial_state: Tensor | None, sequences: int, alpha: Tensor, w: Tensor) -> Tensor:
    if initial_state is not None:
        return initial_state.clone(memory_format=torch.contiguous_format)
    return w.new_zeros((sequences, alpha.shape[2], alpha.shape[3], w.shape[3]), dtype=torch.float32)
