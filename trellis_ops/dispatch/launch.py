"""Runs a compiled operator on the tensors of a call: flattens tokens, allocates outputs, makes the offsets.

Shapes are those of the public operators; arguments have been checked. A call of torch costs as much as the Python of
a whole layer: `contiguous` is cheap where nothing is to do, `float` and `to` are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from codegen.kernels.arguments import IN_PLACE, INPUT, READ
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from trellis_ops.dispatch.put_back import put_back
from trellis_ops.tokens import States, Tokens

_GRADIENT_OF = {"S_k": "states", "S_v": "states"}


def attention(
    operator: CompiledOperator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor]:
    """y `[B, T, H, D_v]` and the final states of both memories."""
    tensors = _tokens(q, k, v, target, log_decay, step_size)
    s_k, s_v = _first_state(S_k, sequences, target, k), _first_state(S_v, sequences, target, v)
    y = torch.empty_like(tensors["v"])
    operator.forward(tensors | {"S_k": s_k, "S_v": s_v, "y": y}, sequences)
    return y.view_as(v), s_k, s_v


def attention_kept(
    operator: CompiledOperator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `attention`, of a backward operator; and the kept states `[kept, H, M, D]` of both memories.

    Args:
        sequences: with chunks of `operator.segment_tokens`.
    """
    tensors = _tokens(q, k, v, target, log_decay, step_size)
    s_k, s_v = _first_state(S_k, sequences, target, k), _first_state(S_v, sequences, target, v)
    kept_k, kept_v = (s.new_empty((sequences.chunks, *s.shape[1:])) for s in (s_k, s_v))
    y = torch.empty_like(tensors["v"])
    written = {"S_k": s_k, "S_v": s_v, "chunk_states_k": kept_k, "chunk_states_v": kept_v, "y": y}
    operator.forward(tensors | written, sequences)
    return y.view_as(v), s_k, s_v, kept_k, kept_v


def attention_backward(
    operator: CompiledOperator,
    inputs: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    cotangents: Mapping[str, Tensor],
    sequences: Sequences,
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """The wanted gradients by the names of the inputs, each in the shape and type of its input.

    Args:
        inputs: q, k, v, target, log_decay, step_size and what else `attention_kept` was given.
        kept: its last two results, chunk_states_k and chunk_states_v.
        cotangents: of y and of the final states, S_k and S_v.
        sequences: as it was given.
        wanted: names of the inputs whose gradients are computed, S_k and S_v for the initial states.
    """
    tensors = _tokens(**{name: inputs[name] for name in Tokens._fields}) | dict(kept)
    found: dict[str, Tensor] = {}
    for argument in operator.arguments:
        of = argument.cotangent_of
        if of is None:
            continue
        if argument.access == READ:
            tensors[argument.name] = _rows(cotangents[of])
        elif argument.access == IN_PLACE:
            found[of] = tensors[argument.name] = cotangents[of].clone(memory_format=torch.contiguous_format)
        else:
            # A kernel leaves the gradient of each token's step size, also where the tokens of a head share one.
            like = inputs["log_decay" if of == "step_size" else of]
            dtype = like.dtype if argument.type == INPUT else torch.float32
            found[of] = torch.empty(like.shape, dtype=dtype, device=like.device)
            tensors[argument.name] = _rows(found[of])
    operator.backward(tensors, sequences, tuple(dict.fromkeys(_GRADIENT_OF.get(name, name) for name in wanted)))
    if "step_size" in wanted and inputs["step_size"].ndim == 1:
        found["step_size"] = found["step_size"].sum(dim=(0, 1))
    return {name: found[name].to(inputs[name].dtype) for name in wanted}


def update(
    operator: CompiledOperator,
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S: Tensor | None,
    sequences: Sequences,
) -> tuple[Tensor, Tensor, Tensor]:
    """chunk_states `[B, N, H, M, D]`, codes `[B, T, H, M]` and the final state, all float32."""
    batch, tokens, heads, dim = w.shape
    slots = target.shape[-1]
    state = _first_state(S, sequences, target, w)
    tensors = {
        "w": _rows(w),
        "target": _rows(target),
        "log_decay": _rows(_float32(log_decay)),
        "step_size": _step_size(step_size),
    }
    tensors["S"] = state
    tensors["chunk_states"] = chunk_states = state.new_empty((sequences.chunks, heads, slots, dim))
    tensors["codes"] = codes = state.new_empty((batch * tokens, heads, slots))
    operator.forward(tensors, sequences)
    return chunk_states.view(batch, -1, heads, slots, dim), codes.view(batch, tokens, heads, slots), state


def readout(
    operator: CompiledOperator,
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    transpose: bool,
    sequences: Sequences,
) -> Tensor:
    """S_t q_t `[B, T, H, M]`, or S_t^T r_t `[B, T, H, D]`, in the type of `read`."""
    y = read.new_empty((*w.shape[:3], w.shape[3] if transpose else codes.shape[3]))
    tensors = {"read": _rows(read), "w": _rows(w), "chunk_states": _rows(chunk_states), "codes": _rows(codes)}
    tensors |= {"log_decay": _rows(_float32(log_decay)), "step_size": _step_size(step_size), "y": y.flatten(0, 1)}
    operator.forward(tensors, sequences)
    return y


def step(
    operator: CompiledOperator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor,
    S_v: Tensor,
    gradient_state: States | None,
    sequences: Sequences,
) -> Tensor:
    """y `[B, H, D_v]`; S_k and S_v move in place."""
    s_k, s_v = S_k.contiguous(), S_v.contiguous()
    tensors = {"q": q.contiguous(), "k": k.contiguous(), "v": v.contiguous(), "target": target.contiguous()}
    tensors |= {"log_decay": _float32(log_decay).contiguous(), "step_size": _float32(step_size).contiguous()}
    if gradient_state is not None:
        g_k, g_v = gradient_state
        tensors |= {"G_k": g_k.contiguous(), "G_v": g_v.contiguous()}
    y = torch.empty_like(tensors["v"])
    try:
        operator.forward(tensors | {"S_k": s_k, "S_v": s_v, "y": y}, sequences)
    finally:
        # Kernels write behind autograd's back; what it has saved of these states is gone, also if a kernel fails.
        increment_version((s_k, s_v))
    if s_k is not S_k:
        put_back(S_k, s_k)
    if s_v is not S_v:
        put_back(S_v, s_v)
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


def _tokens(q: Tensor, k: Tensor, v: Tensor, target: Tensor, log_decay: Tensor, step_size: Tensor) -> dict[str, Tensor]:
    """The inputs of attention by name, flattened over tokens."""
    return {
        "q": _rows(q),
        "k": _rows(k),
        "v": _rows(v),
        "target": _rows(target),
        "log_decay": _rows(_float32(log_decay)),
        "step_size": _step_size(step_size),
    }


def _rows(x: Tensor) -> Tensor:
    return x.contiguous().flatten(0, 1)


def _step_size(step_size: Tensor) -> Tensor:
    return _float32(step_size).contiguous() if step_size.ndim == 1 else _rows(_float32(step_size))


def _float32(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def _first_state(given: Tensor | None, sequences: Sequences, target: Tensor, w: Tensor) -> Tensor:
    if given is None:
        return w.new_zeros((sequences.count, *target.shape[2:], w.shape[3]), dtype=torch.float32)
    return given.clone() if given.is_contiguous() else given.contiguous()
