"""Outputs that are large enough to go past the caches, on this CPU: the same numbers, wherever in memory they start."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codegen.backends import backend
from codegen.device import NAMED, cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.support.inputs import Inputs, make_inputs
from tests.support.operators import sequences_of
from trellis_ops.tokens import Tokens

FEWEST_STREAMED = 8 * 2**20
DIM = 32
TOKENS = FEWEST_STREAMED // (4 * DIM)
NAMES = Tokens._fields


@pytest.fixture(scope="module")
def large() -> Inputs:
    return make_inputs(1, TOKENS, 1, DIM, DIM, DIM)


def operator_of(chunk: int, direction: str = "forward") -> CompiledOperator:
    spec = Spec(Rule(phi_eps=1e-2), Problem(chunk=chunk, dim_k=DIM, dim_v=DIM, slots=DIM, direction=direction))
    # With as many cores as heads or more, the default would be a variant that streams nothing.
    variant = "fused" if direction == "forward" else "backward"
    schedule = replace(default("tvm", spec, cpu()), variant=variant)
    kernels = ("trellis_fused",) if direction == "forward" else ("trellis_fused", "trellis_backward")
    for kernel in kernels:
        assert "streams.store_rows(" in render(kernel, spec, schedule, cpu()).text
    made = build(spec, schedule, cpu())
    # It imports TVM, which is here then.
    assert importlib.import_module("codegen.backends.tvm.emit.streams").FEWEST_STREAMED == FEWEST_STREAMED
    return made


def poisoned(shape: tuple[int, ...], misaligned: bool) -> Tensor:
    whole = torch.full((torch.Size(shape).numel() + 1,), float("nan"))
    tensor = whole[int(misaligned) :][: torch.Size(shape).numel()].view(shape)
    assert (tensor.data_ptr() % 64 != 0) == misaligned
    return tensor


def rows(inputs: Inputs, first: int = 0, last: int = TOKENS) -> dict[str, Tensor]:
    tokens = {name: getattr(inputs, name)[:, first:last].flatten(0, 1).contiguous() for name in NAMES[:5]}
    return tokens | {"step_size": inputs.step_size}


def run(
    compiled: CompiledOperator, tokens: dict[str, Tensor], states: Sequence[Tensor], sequences: Sequences, y: Tensor
) -> None:
    compiled.forward(tokens | {"S_k": states[0], "S_v": states[1], "y": y}, sequences)


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("chunk", [64, 1])
def test_a_large_y_is_that_of_calls_too_small_to_stream(large: Inputs, chunk: int, misaligned: bool) -> None:
    compiled, half = operator_of(chunk), TOKENS // 2
    states = tuple(s.clone() for s in large.initial_state)
    y = poisoned((TOKENS, 1, DIM), misaligned)
    run(compiled, rows(large), states, sequences_of([TOKENS], chunk), y)
    carried = tuple(s.clone() for s in large.initial_state)
    parts = [poisoned((half, 1, DIM), misaligned=False) for _ in range(2)]
    for first, part in zip((0, half), parts, strict=True):
        run(compiled, rows(large, first, first + half), carried, sequences_of([half], chunk), part)
    assert torch.equal(y, torch.cat(parts))
    assert all(torch.equal(one, other) for one, other in zip(states, carried, strict=True))


def test_large_gradients_and_kept_states_are_those_that_are_stored_plainly(large: Inputs) -> None:
    compiled = operator_of(32, "backward")
    streamed, plain = (step(compiled, large, misaligned) for misaligned in (False, True))
    assert streamed["kept_k"].nbytes >= FEWEST_STREAMED
    for name, tensor in streamed.items():
        assert not tensor.isnan().any(), name
        assert torch.equal(tensor, plain[name]), name


def step(compiled: CompiledOperator, inputs: Inputs, misaligned: bool) -> dict[str, Tensor]:
    """Forward that keeps states, and backward; all large outputs start at a vector, or all of them do not."""
    sequences, tokens = sequences_of([TOKENS], compiled.segment_tokens), rows(inputs)
    kept = tuple(poisoned((sequences.chunks, 1, DIM, DIM), misaligned) for _ in range(2))
    states, y = tuple(s.clone() for s in inputs.initial_state), poisoned((TOKENS, 1, DIM), misaligned)
    tensors = tokens | {
        "S_k": states[0],
        "S_v": states[1],
        "chunk_states_k": kept[0],
        "chunk_states_v": kept[1],
        "y": y,
    }
    compiled.forward(tensors, sequences)
    shapes = {name: tokens[name].shape if name != "step_size" else (TOKENS, 1) for name in tokens}
    incoming = {f"d{name}": poisoned(tuple(shape), misaligned) for name, shape in shapes.items()}
    of_states = {f"dS_{w}": torch.zeros_like(s) for w, s in zip("kv", states, strict=True)}
    compiled.backward(tensors | incoming | of_states | {"dy": y.clone()}, sequences)
    return {"y": y, "kept_k": kept[0], "kept_v": kept[1], **incoming}


@pytest.mark.parametrize(
    ("name", "changes", "kernel", "streams"),
    [
        ("x86-64-v4", {}, "trellis_fused", True),
        ("x86-64-v3", {}, "trellis_fused", True),
        ("x86-64-v4", {"direction": "backward"}, "trellis_backward", True),
        ("x86-64-v4", {"direction": "backward", "dtype": "bfloat16"}, "trellis_fused", True),
        ("x86-64-v4", {"dtype": "bfloat16"}, "trellis_fused", False),
        ("x86-64-v4", {"dim_v": 24}, "trellis_fused", False),
        ("x86-64-v3", {"dim_v": 24}, "trellis_fused", False),
    ],
)
def test_the_machine_code_stores_past_the_caches(
    name: str, changes: dict[str, object], kernel: str, streams: bool
) -> None:
    device, spec = NAMED[name], Spec(Rule(), replace(Problem(), **changes))
    schedule = default("tvm", spec, device)
    text = backend("tvm").inspect(render(kernel, spec, schedule, device), spec, schedule, device)["asm"]
    assert ("vmovntps" in text) == streams
    assert bool(re.search(r"\b(mfence|lock)\b", text)) == streams


def test_another_architecture_has_such_stores_too() -> None:
    device, spec = NAMED["aarch64"], Spec(Rule(), Problem())
    schedule = default("tvm", spec, device)
    text = backend("tvm").inspect(render("trellis_fused", spec, schedule, device), spec, schedule, device)["asm"]
    assert "stnp" in text
    assert "dmb" in text
