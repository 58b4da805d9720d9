"""TVM kernels find elements from number 2^31 on.

The tensors are that large, but only their last rows are ever touched, so that they take next to no memory.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from codegen.defaults import default
from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.inputs import make_inputs

TOKENS, SIZE = 20, 16
FAR = 2**31 // SIZE  # Rows of one head before those that a kernel touches.
FAR_STATES = 2**31 // SIZE**2
RULE = Rule("silu", phi_eps=1e-2)


def program_of(operator: str, chunk: int, **changes: object) -> CompiledOperator:
    variant = changes.pop("variant", None)
    spec = Spec(RULE, Problem(operator, dim_k=SIZE, dim_v=SIZE, slots=SIZE, chunk=chunk, **changes))
    schedule = default("tvm", spec, cpu())
    return build(spec, schedule if variant is None else dataclasses.replace(schedule, variant=variant), cpu())


def empty(*shape: int) -> Tensor:
    """Memory that nothing has touched."""
    try:
        return torch.empty(shape)
    except RuntimeError as error:
        pytest.skip(f"this machine has no address space for {shape}: {error}")


def far(x: Tensor, rows: int) -> Tensor:
    """A tensor whose last rows are x, behind `rows` others that are never touched."""
    whole = empty(rows + x.shape[0], *x.shape[1:])
    whole[rows:] = x
    return whole


def inputs() -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v, alpha, log_beta and gamma of one sequence and head, its rows flattened; its two states."""
    given = make_inputs(1, TOKENS, 1, SIZE, SIZE, SIZE)
    return [x if x.dim() == 1 else x.flatten(0, 1) for x in given.args], list(given.initial_state)


def far_inputs(rows: list[Tensor]) -> list[Tensor]:
    return [x if x.dim() == 1 else far(x, FAR) for x in rows]


def sequences(first: int, chunks: int, first_chunk: int = 0) -> Sequences:
    offsets = torch.tensor([first, first + TOKENS], dtype=torch.int32)
    return Sequences(offsets, torch.tensor([first_chunk, first_chunk + chunks], dtype=torch.int32), chunks, chunks)


@pytest.mark.parametrize(("variant", "chunk"), [("fused", 8), ("pair", 8), ("recurrent", 1)])
def test_tokens_of_attention(variant: str, chunk: int) -> None:
    program = program_of("trellis_attention", chunk, variant=variant, tokens=TOKENS)
    assert program.schedule.variant == variant
    (rows, states), chunks = inputs(), -(-TOKENS // chunk)
    moved = [s.clone() for s in states]
    y, far_y = torch.empty(TOKENS, 1, SIZE), empty(FAR + TOKENS, 1, SIZE)
    program.attention(*rows, *states, sequences(0, chunks), y)
    program.attention(*far_inputs(rows), *moved, sequences(FAR, chunks), far_y)
    assert torch.equal(far_y[FAR:], y)
    assert all(torch.equal(a, b) for a, b in zip(moved, states, strict=True))


def test_chunk_states_of_an_update_and_of_its_readout() -> None:
    update, readout = program_of("memory_update", 1), program_of("memory_readout", 1)
    (q, k, _, alpha, *gates), (state, _) = inputs()
    near, distant = sequences(0, TOKENS), sequences(FAR, TOKENS, FAR_STATES)
    chunk_states, codes = torch.empty(TOKENS, 1, SIZE, SIZE), torch.empty(TOKENS, 1, SIZE)
    update.update(k, alpha, *gates, state.clone(), near, chunk_states, codes)
    y = torch.empty(TOKENS, 1, SIZE)
    readout.readout(q, k, chunk_states, codes, *gates, near, y)

    far_states, far_codes = empty(FAR_STATES + TOKENS, 1, SIZE, SIZE), empty(FAR + TOKENS, 1, SIZE)
    far_k, far_alpha, *far_gates = far_inputs([k, alpha, *gates])
    update.update(far_k, far_alpha, *far_gates, state.clone(), distant, far_states, far_codes)
    assert torch.equal(far_states[FAR_STATES:], chunk_states)
    assert torch.equal(far_codes[FAR:], codes)
    far_y = empty(FAR + TOKENS, 1, SIZE)
    readout.readout(far(q, FAR), far_k, far_states, far_codes, *far_gates, distant, far_y)
    assert torch.equal(far_y[FAR:], y)


def test_tokens_and_kept_states_of_a_backward() -> None:
    program = program_of("trellis_attention", 16, direction="backward")
    rows, states = inputs()
    chunks = -(-TOKENS // program.segment_tokens)

    def run(rows: list[Tensor], where: Sequences, tokens: int, kept_rows: int) -> tuple[Tensor, ...]:
        moved = [s.clone() for s in states]
        kept = tuple(empty(kept_rows, 1, SIZE, SIZE) for _ in range(2))
        y, bars = empty(tokens, 1, SIZE), [empty(tokens, *x.shape[1:]) for x in (*rows[:5], rows[4])]
        program.attention_kept(*rows, *moved, where, kept, y)
        bar_states = (torch.ones_like(states[0]), torch.ones_like(states[1]))
        program.backward(tuple(rows), kept, y, bar_states, where, tuple(bars))
        return (*(x[-TOKENS:] for x in (y, *bars)), *(x[-chunks:] for x in kept), *bar_states)

    expected = run(rows, sequences(0, chunks), TOKENS, chunks)
    found = run(far_inputs(rows), sequences(FAR, chunks, FAR_STATES), FAR + TOKENS, FAR_STATES + chunks)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
