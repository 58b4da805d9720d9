"""Triton's kernels find elements from number 2^32 on: of tokens, states, gradients, and all that lies between kernels.

Only the last programs run, and only the last rows of a tensor have memory of their own. An offset that is formed in 32
bits comes out 0 there, unless the interpreter finds that it overflows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.pool.arguments import CAPACITY
from codegen.kernels.sequences import Sequences
from codegen.rule import Rule
from codegen.schedules.registry import default, variants_of
from codegen.spec import Problem, Spec
from tests.support.far_calls import Tensors, behind, tensors_of, that_differ
from tests.support.far_memory import untouched

TOKENS, SIZE, CHUNK = 40, 16, 32
FAR = 2**32 // SIZE
"""Tokens before those of the last sequence."""

FAR_STATES = 2**32 // SIZE**2
"""Kept states before those of the last sequence."""

# Products of both memories with a link between them: no buffer is left out.
RULE = Rule("silu", "silu", "silu", phi_eps=1e-2, step_size="token")


def operator_of(operator: str, direction: str = "forward", **settings: object) -> CompiledOperator:
    sizes = {"dim_k": SIZE, "dim_v": SIZE, "slots": SIZE}
    chunk = 1 if "step" in operator or settings.get("variant") == "recurrent" else CHUNK
    spec = Spec(RULE, Problem(operator, chunk=chunk, direction=direction, **sizes))
    return build(spec, dataclasses.replace(default("triton", spec, cpu()), **settings), cpu())


def others_of(compiled: CompiledOperator) -> int:
    """Sequences before the last; in a step each has a token."""
    return FAR if "step" in compiled.spec.problem.operator else FAR_STATES


def sequences_of(compiled: CompiledOperator, tokens: int, distant: bool) -> Sequences:
    """One sequence; with others before it where it is a distant one."""
    first, first_chunk, others = (FAR, FAR_STATES, others_of(compiled)) if distant else (0, 0, 0)
    chunks = -(-tokens // compiled.chunk_tokens)
    offsets, chunk_offsets = (untouched(others + 2, dtype=torch.int32) for _ in range(2))
    offsets[-2], offsets[-1] = first, first + tokens
    chunk_offsets[-2], chunk_offsets[-1] = first_chunk, first_chunk + chunks
    return Sequences(offsets, chunk_offsets, first_chunk + chunks, chunks)


def at_the_end(kernel: Callable[..., None], count: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A kernel of whose programs only the last run, as many as there are for one sequence."""
    from triton.runtime.interpreter import interpreter_builder as interpreter

    def launch(programs: int, *arguments: Tensor | int) -> None:
        with monkeypatch.context() as patch:
            first = programs - count
            patch.setattr(
                interpreter, "set_grid_idx", lambda x, y, z: setattr(interpreter, "grid_idx", (first + x, y, z))
            )
            kernel(count, *arguments)

    return launch


def run(compiled: CompiledOperator, tensors: Tensors, sequences: Sequences) -> None:
    compiled.forward(tensors, sequences)
    if compiled.spec.problem.direction != "forward":
        compiled.backward(tensors, sequences)


def check(compiled: CompiledOperator, monkeypatch: pytest.MonkeyPatch, tokens: int = TOKENS, position: int = 0) -> None:
    """Every tensor is the same where the sequence is a distant one."""
    tokens = 1 if "step" in compiled.spec.problem.operator else tokens
    tensors, counts = tensors_of(compiled, tokens, position), []

    def counted(kernel: Callable[..., None]) -> Callable[..., None]:
        return lambda programs, *arguments: (counts.append(programs), kernel(programs, *arguments))

    before = {"tokens": FAR, "chunks": FAR_STATES, "sequences": others_of(compiled), "workers": others_of(compiled)}
    distant = behind(compiled, tensors, before | {CAPACITY: FAR_STATES})
    near = {name: x.clone() for name, x in tensors.items()}
    noted = dataclasses.replace(compiled, kernels=tuple(map(counted, compiled.kernels)))
    run(noted, near, sequences_of(compiled, tokens, distant=False))
    ends = (at_the_end(kernel, count, monkeypatch) for kernel, count in zip(compiled.kernels, counts, strict=True))
    last = dataclasses.replace(compiled, kernels=tuple(ends))
    run(last, distant, sequences_of(compiled, tokens, distant=True))
    assert any(not torch.equal(x, tensors[name]) for name, x in near.items())
    assert not that_differ(distant, near)


@pytest.mark.parametrize("loads", ["pointers", "descriptors"])
@pytest.mark.parametrize("variant", ["fused", "split"])
def test_attention(variant, loads, monkeypatch):
    check(operator_of("trellis_attention", variant=variant, loads=loads, tile_rows=16), monkeypatch)


def test_attention_token_by_token(monkeypatch):
    check(operator_of("trellis_attention", variant="recurrent"), monkeypatch)


@pytest.mark.parametrize("operator", ["memory_update", "memory_readout", "memory_readout_transposed"])
def test_parts(operator, monkeypatch):
    check(operator_of(operator), monkeypatch)


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator, monkeypatch):
    check(operator_of(operator), monkeypatch)


@pytest.mark.parametrize("variant", variants_of("trellis_attention", "triton", "backward"))
def test_backward(variant, monkeypatch):
    """Of chunks of one tile and, but for those that take whole chunks, of two."""
    for tile in (16, 32) if variant != "backward_chunks" else (32,):
        check(operator_of("trellis_attention", "backward", variant=variant, tile_rows=tile), monkeypatch)
