"""Compiled programs run on test inputs, with outputs full of NaN beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.program import Program, Sequences
from tests.inputs import Inputs

States = tuple[Tensor, Tensor]


def sequences_of(lengths: Sequence[int], chunk: int) -> Sequences:
    """Offsets of sequences of these lengths, and of their chunks."""
    chunks = [-(-length // chunk) for length in lengths]
    return Sequences(_offsets(lengths), _offsets(chunks), sum(chunks), max(chunks))


def run_attention(program: Program, inputs: Inputs, lengths: Sequence[int]) -> tuple[Tensor, States]:
    """y, shaped as v, and the final states; `lengths` are those of the sequences in the flattened tokens."""
    states = _copies(inputs.initial_state)
    y = _poisoned(inputs.v.shape, inputs.v.dtype)
    sequences = sequences_of(lengths, program.spec.problem.chunk)
    program.attention(*_rows(*inputs.args), *states, sequences, y.flatten(0, 1))
    return y, states


def run_update(program: Program, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk-start states `[B, chunks, H, M, D]`, codes `[B, T, H, M]` and the final state, with k written."""
    (state, _), (batch, tokens) = _copies(inputs.initial_state), inputs.k.shape[:2]
    sequences = sequences_of([tokens] * batch, program.spec.problem.chunk)
    chunk_states = _poisoned((batch, sequences.most_chunks, *state.shape[1:]), torch.float32)
    codes = _poisoned(inputs.alpha.shape, torch.float32)
    rows = _rows(inputs.k, inputs.alpha, inputs.log_beta, inputs.gamma)
    program.update(*rows, state, sequences, chunk_states.flatten(0, 1), codes.flatten(0, 1))
    return chunk_states, codes, state


def run_readout(program: Program, read: Tensor, inputs: Inputs, chunk_states: Tensor, codes: Tensor) -> Tensor:
    """The readout of the memory that k was written to; chunk_states and codes as `run_update` returns them."""
    batch, tokens = inputs.k.shape[:2]
    transposed = program.spec.problem.operator == "memory_readout_transposed"
    y = _poisoned((inputs.k if transposed else inputs.alpha).shape, read.dtype)
    rows = _rows(read, inputs.k, chunk_states, codes, inputs.log_beta, inputs.gamma)
    program.readout(*rows, sequences_of([tokens] * batch, program.spec.problem.chunk), y.flatten(0, 1))
    return y


def run_step(program: Program, inputs: Inputs, gradient_state: States | None) -> tuple[Tensor, States]:
    """y `[B, H, D_v]` of the first token of each of B sequences, and the states after it."""
    states = _copies(inputs.initial_state)
    q, k, v, alpha, log_beta, gamma = (x.contiguous() for x in inputs.token(0))
    y = _poisoned(v.shape, v.dtype)
    offsets = _offsets([1] * q.shape[0])
    program.step(q, k, v, alpha, log_beta, gamma, *states, gradient_state or (), offsets, y)
    return y, states


def _rows(*tensors: Tensor) -> list[Tensor]:
    return [x if x.dim() == 1 else x.flatten(0, 1).contiguous() for x in tensors]


def _poisoned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), float("nan"), dtype=dtype)


def _copies(states: States | None) -> States:
    assert states is not None, "the kernels update states in place; give them some"
    return states[0].float().clone(), states[1].float().clone()


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32)
