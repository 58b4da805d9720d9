"""Compiled operators run on test inputs, with outputs full of NaN beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from tests.support.inputs import Inputs
from trellis_ops.tokens import Tokens

States = tuple[Tensor, Tensor]


def sequences_of(lengths: Sequence[int], chunk: int) -> Sequences:
    """Offsets of sequences of these lengths, and of their chunks."""
    chunks = [-(-length // chunk) for length in lengths]
    return Sequences(_offsets(lengths), _offsets(chunks), sum(chunks), max(chunks))


def run_attention(operator: CompiledOperator, inputs: Inputs, lengths: Sequence[int]) -> tuple[Tensor, States]:
    """y, shaped as v, and the final states; `lengths` are those of the sequences in the flattened tokens."""
    states = _copies(inputs.initial_state)
    y = _poisoned(inputs.v.shape, inputs.v.dtype)
    sequences = sequences_of(lengths, operator.spec.problem.chunk)
    operator.forward(_named(inputs, states) | {"y": y.flatten(0, 1)}, sequences)
    return y, states


def run_update(operator: CompiledOperator, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk-start states `[B, chunks, H, M, D]`, codes `[B, T, H, M]` and the final state, with k written."""
    (state, _), (batch, tokens) = _copies(inputs.initial_state), inputs.k.shape[:2]
    sequences = sequences_of([tokens] * batch, operator.spec.problem.chunk)
    chunk_states = _poisoned((batch, sequences.most_chunks, *state.shape[1:]), torch.float32)
    codes = _poisoned(inputs.target.shape, torch.float32)
    tensors = _rows(w=inputs.k, target=inputs.target, log_decay=inputs.log_decay, step_size=inputs.step_size)
    tensors |= {"S": state, "chunk_states": chunk_states.flatten(0, 1), "codes": codes.flatten(0, 1)}
    operator.forward(tensors, sequences)
    return chunk_states, codes, state


def run_readout(
    operator: CompiledOperator, read: Tensor, inputs: Inputs, chunk_states: Tensor, codes: Tensor
) -> Tensor:
    """The readout of the memory that k was written to; chunk_states and codes as `run_update` returns them."""
    batch, tokens = inputs.k.shape[:2]
    transposed = operator.spec.problem.operator == "memory_readout_transposed"
    y = _poisoned((inputs.k if transposed else inputs.target).shape, read.dtype)
    tensors = _rows(read=read, w=inputs.k, chunk_states=chunk_states, codes=codes)
    tensors |= _rows(log_decay=inputs.log_decay, step_size=inputs.step_size) | {"y": y.flatten(0, 1)}
    operator.forward(tensors, sequences_of([tokens] * batch, operator.spec.problem.chunk))
    return y


def run_step(operator: CompiledOperator, inputs: Inputs, gradient_state: States | None) -> tuple[Tensor, States]:
    """y `[B, H, D_v]` of the first token of each of B sequences, and the states after it."""
    states = _copies(inputs.initial_state)
    names = Tokens._fields
    tensors = {name: x.contiguous() for name, x in zip(names, inputs.token(0), strict=True)}
    y = _poisoned(tensors["v"].shape, tensors["v"].dtype)
    tensors |= dict(zip(("S_k", "S_v"), states, strict=True)) | {"y": y}
    if gradient_state is not None:
        tensors |= dict(zip(("G_k", "G_v"), gradient_state, strict=True))
    operator.forward(tensors, sequences_of([1] * len(y), 1))
    return y, states


def _named(inputs: Inputs, states: States) -> dict[str, Tensor]:
    names = Tokens._fields
    return _rows(**dict(zip(names, inputs.args, strict=True))) | dict(zip(("S_k", "S_v"), states, strict=True))


def _rows(**tensors: Tensor) -> dict[str, Tensor]:
    return {name: x if x.dim() == 1 else x.flatten(0, 1).contiguous() for name, x in tensors.items()}


def _poisoned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), float("nan"), dtype=dtype)


def _copies(states: States | None) -> States:
    assert states is not None, "the kernels update states in place; give them some"
    s_k, s_v = states
    return s_k.float().clone(), s_v.float().clone()


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32)
