"""TVM kernels find tokens and kept states from element number 2^31 on.

The tensors are that large, but only their last rows have memory of their own.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.support.far_memory import far, untouched
from tests.support.inputs import make_inputs
from trellis_ops.tokens import Tokens

TOKENS, SIZE = 20, 16
FAR = 2**31 // SIZE  # Rows of one head before those that a kernel touches.
FAR_STATES = 2**31 // SIZE**2
RULE = Rule("silu", phi_eps=1e-2)


def operator_of(operator: str, chunk: int, **changes: object) -> CompiledOperator:
    variant = changes.pop("variant", None)
    spec = Spec(RULE, Problem(operator, dim_k=SIZE, dim_v=SIZE, slots=SIZE, chunk=chunk, **changes))
    schedule = default("tvm", spec, cpu())
    return build(spec, schedule if variant is None else dataclasses.replace(schedule, variant=variant), cpu())


NAMES = Tokens._fields


def inputs() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """q, k, v, target, log_decay and step_size of one sequence and head, its rows flattened; its two states."""
    given = make_inputs(1, TOKENS, 1, SIZE, SIZE, SIZE)
    rows = {name: x if x.dim() == 1 else x.flatten(0, 1) for name, x in zip(NAMES, given.args, strict=True)}
    return rows, dict(zip(("S_k", "S_v"), given.initial_state, strict=True))


def far_inputs(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x if x.dim() == 1 else far(x, FAR) for name, x in rows.items()}


def copies(states: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: state.clone() for name, state in states.items()}


def sequences(first: int, chunks: int, first_chunk: int = 0) -> Sequences:
    offsets = torch.tensor([first, first + TOKENS], dtype=torch.int32)
    return Sequences(offsets, torch.tensor([first_chunk, first_chunk + chunks], dtype=torch.int32), chunks, chunks)


@pytest.mark.parametrize(("variant", "chunk"), [("fused", 8), ("pair", 8), ("recurrent", 1)])
def test_tokens_of_attention(variant: str, chunk: int) -> None:
    compiled = operator_of("trellis_attention", chunk, variant=variant, tokens=TOKENS)
    assert compiled.schedule.variant == variant
    (rows, states), chunks = inputs(), -(-TOKENS // chunk)
    moved = copies(states)
    y, far_y = torch.empty(TOKENS, 1, SIZE), untouched(FAR + TOKENS, 1, SIZE)
    compiled.forward(rows | states | {"y": y}, sequences(0, chunks))
    compiled.forward(far_inputs(rows) | moved | {"y": far_y}, sequences(FAR, chunks))
    assert torch.equal(far_y[FAR:], y)
    assert all(torch.equal(moved[name], state) for name, state in states.items())


@pytest.mark.parametrize(("operator", "read"), [("memory_readout", "q"), ("memory_readout_transposed", "target")])
def test_chunk_states_of_an_update_and_of_its_readout(operator: str, read: str) -> None:
    update, readout = operator_of("memory_update", 1), operator_of(operator, 1)
    rows, states = inputs()
    of_update = {"w": rows["k"], **{name: rows[name] for name in ("target", "log_decay", "step_size")}}
    of_readout = {"read": rows[read], "w": rows["k"], **{name: rows[name] for name in ("log_decay", "step_size")}}
    near, distant = sequences(0, TOKENS), sequences(FAR, TOKENS, FAR_STATES)
    chunk_states, codes = torch.empty(TOKENS, 1, SIZE, SIZE), torch.empty(TOKENS, 1, SIZE)
    kept = {"chunk_states": chunk_states, "codes": codes}
    update.forward(of_update | kept | {"S": states["S_k"].clone()}, near)
    y = torch.empty(TOKENS, 1, SIZE)
    readout.forward(of_readout | kept | {"y": y}, near)

    far_states, far_codes = untouched(FAR_STATES + TOKENS, 1, SIZE, SIZE), untouched(FAR + TOKENS, 1, SIZE)
    far_kept = {"chunk_states": far_states, "codes": far_codes}
    update.forward(far_inputs(of_update) | far_kept | {"S": states["S_k"].clone()}, distant)
    assert torch.equal(far_states[FAR_STATES:], chunk_states)
    assert torch.equal(far_codes[FAR:], codes)
    far_y = untouched(FAR + TOKENS, 1, SIZE)
    readout.forward(far_inputs(of_readout) | far_kept | {"y": far_y}, distant)
    assert torch.equal(far_y[FAR:], y)


def test_tokens_and_kept_states_of_a_backward() -> None:
    compiled = operator_of("trellis_attention", 16, direction="backward")
    rows, states = inputs()
    chunks = -(-TOKENS // compiled.segment_tokens)

    def run(rows: dict[str, Tensor], where: Sequences, tokens: int, kept_rows: int) -> tuple[Tensor, ...]:
        kept = {f"chunk_states_{w}": untouched(kept_rows, 1, SIZE, SIZE) for w in "kv"}
        incoming = {
            f"d{name}": untouched(tokens, *(rows[name] if name != "step_size" else rows["log_decay"]).shape[1:])
            for name in rows
        }
        tensors = rows | copies(states) | kept | {"y": untouched(tokens, 1, SIZE)}
        compiled.forward(tensors, where)
        dstates = {f"d{name}": torch.ones_like(state) for name, state in states.items()}
        compiled.backward(tensors | incoming | dstates | {"dy": tensors["y"]}, where)
        of_tokens = (x[-TOKENS:] for x in (tensors["y"], *incoming.values()))
        return (*of_tokens, *(x[-chunks:] for x in kept.values()), *dstates.values())

    expected = run(rows, sequences(0, chunks), TOKENS, chunks)
    found = run(far_inputs(rows), sequences(FAR, chunks, FAR_STATES), FAR + TOKENS, FAR_STATES + chunks)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
