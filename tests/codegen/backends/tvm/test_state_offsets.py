"""TVM kernels find the states of a sequence, and their gradients, from element number 2^31 on.

All sequences but the last have no token. Kernels that copy the state of each all the same copy it within a window of
memory that those states share.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from tests.codegen.backends.tvm.test_offsets import FAR_STATES, SIZE, TOKENS, inputs, operator_of
from tests.support.far_memory import far_in_place


def sequences(empty: int, tokens: int, chunk: int) -> Sequences:
    """So many sequences without tokens, then one with all of them."""
    chunks = -(-tokens // chunk)
    offsets, chunk_offsets = (torch.zeros(empty + 2, dtype=torch.int32) for _ in range(2))
    offsets[-1], chunk_offsets[-1] = tokens, chunks
    return Sequences(offsets, chunk_offsets, chunks, chunks)


def check(
    compiled: CompiledOperator, moved: dict[str, Tensor], given: dict[str, Tensor], made: dict[str, Tensor]
) -> None:
    """What is made, and the states that are moved, are those of a call without the sequences before."""
    tokens = len(given["log_decay"])
    expected = {name: x.clone() for name, x in (moved | made).items()}
    compiled.forward(given | expected, sequences(0, tokens, compiled.chunk_tokens))
    found = made | {name: far_in_place(x, FAR_STATES) for name, x in moved.items()}
    compiled.forward(given | found, sequences(FAR_STATES, tokens, compiled.chunk_tokens))
    for name, x in found.items():
        assert torch.equal(x[-len(expected[name]) :], expected[name]), name


@pytest.mark.parametrize(("variant", "chunk"), [("fused", 8), ("pair", 8), ("recurrent", 1)])
def test_attention(variant: str, chunk: int) -> None:
    rows, states = inputs()
    check(
        operator_of("trellis_attention", chunk, variant=variant, tokens=TOKENS),
        states,
        rows,
        {"y": torch.empty(TOKENS, 1, SIZE)},
    )


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator: str) -> None:
    rows, states = inputs()
    token = {name: x if x.dim() == 1 else x[:1] for name, x in rows.items()}
    gradient_states = {f"G_{name[-1]}": 2 * state.flip(-1) for name, state in states.items()}
    moved = states | (gradient_states if operator == "trellis_step_chunked" else {})
    check(operator_of(operator, 1), moved, token, {"y": torch.empty(1, 1, SIZE)})


def test_update() -> None:
    rows, states = inputs()
    given = {"w": rows["k"], **{name: rows[name] for name in ("target", "log_decay", "step_size")}}
    made = {"chunk_states": torch.empty(3, 1, SIZE, SIZE), "codes": torch.empty(TOKENS, 1, SIZE)}
    check(operator_of("memory_update", 8), {"S": states["S_k"]}, given, made)


def test_backward() -> None:
    compiled = operator_of("trellis_attention", 16, direction="backward")
    rows, states = inputs()
    kept = -(-TOKENS // compiled.segment_tokens)

    def run(empty: int) -> dict[str, Tensor]:
        made = {"y": torch.empty(TOKENS, 1, SIZE)}
        made |= {f"chunk_states_{w}": torch.empty(kept, 1, SIZE, SIZE) for w in "kv"}
        moved = {name: far_in_place(state, empty) for name, state in states.items()}
        compiled.forward(rows | moved | made, sequences(empty, TOKENS, compiled.segment_tokens))
        gradients = {f"d{name}": torch.empty(TOKENS, *x.shape[1:]) for name, x in rows.items() if x.dim() > 1}
        gradients["dstep_size"] = torch.empty(TOKENS, 1)
        of_states = {f"d{name}": far_in_place(state.flip(-1), empty) for name, state in states.items()}
        given = rows | moved | made | {"dy": torch.ones(TOKENS, 1, SIZE)}
        compiled.backward(given | gradients | of_states, sequences(empty, TOKENS, compiled.segment_tokens))
        return made | gradients | {name: x[-1] for name, x in (moved | of_states).items()}

    expected = run(0)
    for name, x in run(FAR_STATES).items():
        assert torch.equal(x, expected[name]), name
