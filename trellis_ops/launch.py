"""Runs a compiled program on the tensors of a call: flattens tokens, allocates outputs, makes the offsets.

Shapes are those of the public operators; arguments have been checked. A call of torch costs as much as the Python of
a whole layer: `contiguous` and `float` are cheap where nothing is to do, `to` is not.
"""

from __future__ import annotations

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
    S_k: Tensor | None,
    S_v: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor]:
    """y `[B, T, H, D_v]` and the final states of both memories."""
    s_k, s_v = _first_state(S_k, sequences, alpha, k), _first_state(S_v, sequences, alpha, v)
    rows = _rows(v)
    y = torch.empty_like(rows)
    program.attention(
        *(_rows(q), _rows(k), rows, _rows(alpha), _rows(log_beta.float()), _gamma(gamma)),
        *(s_k, s_v, sequences, y),
    )
    return y.view_as(v), s_k, s_v


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
    gates = _rows(log_beta.float()), _gamma(gamma)
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
    gates = _rows(log_beta.float()), _gamma(gamma)
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
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    tokens = q.contiguous(), k.contiguous(), v.contiguous(), alpha.contiguous()
    gates = log_beta.float().contiguous(), gamma.float().contiguous()
    program.step(*tokens, *gates, s_k, s_v, gradient_states, sequences.cu_seqlens, y)
    if s_k is not S_k:
        S_k.copy_(s_k)
    if s_v is not S_v:
        S_v.copy_(s_v)
    return y


def packed_sequences(cu_seqlens: Tensor, tokens: int, chunk_size: int) -> Sequences:
    """The offsets of packed sequences; nothing is read back from the device."""
    chunks = -(-tokens // chunk_size)
    count = cu_seqlens.shape[0] - 1
    # Sequence n has at most floor(end / C) - floor(start / C) + 1 chunks, so these offsets never overlap.
    chunk_offsets = cu_seqlens // chunk_size + torch.arange(count + 1, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    offsets = cu_seqlens.to(torch.int32).contiguous()
    return Sequences(offsets, chunk_offsets.to(torch.int32), chunks + count, chunks)


def even_sequences(batch: int, tokens: int, chunk_size: int, device: torch.device) -> Sequences:
    """The offsets of a batch of sequences of equal length."""
    chunks = -(-tokens // chunk_size)
    numbers = torch.arange(batch + 1, device=device, dtype=torch.int32)
    return Sequences(numbers * tokens, numbers * chunks, batch * chunks, chunks)


def _rows(x: Tensor) -> Tensor:
    return x.contiguous().flatten(0, 1)


def _gamma(gamma: Tensor) -> Tensor:
    return gamma.float().contiguous() if gamma.ndim == 1 else _rows(gamma.float())


def _first_state(given: Tensor | None, sequences: Sequences, alpha: Tensor, w: Tensor) -> Tensor:
    if given is None:
        return w.new_zeros((sequences.count, *alpha.shape[2:], w.shape[3]), dtype=torch.float32)
    return given.clone() if given.is_contiguous() else given.contiguous()
