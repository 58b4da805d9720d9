"""What a call reaches: the bytes that it allocates are those foretold, and what cannot be counted is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from codegen.device import NAMED, cpu
from codegen.errors import ShapeError, SizeError
from codegen.kernels.buffers import forward_bytes, reverse_bytes
from codegen.kernels.declared import kernels_of
from codegen.kernels.operator import CompiledOperator
from codegen.limits.countable import require_countable
from codegen.limits.extent import MOST, Extent
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.support.inputs import make_inputs
from trellis_ops.dispatch import launch
from trellis_ops.tokens import Tokens

BATCH, TOKENS, HEADS, DIM_K, DIM_V, SLOTS, CHUNK = 2, 37, 3, 20, 12, 18, 20
RULE = Rule("silu", step_size="token")


class Allocations(TorchDispatchMode):
    """Adds up the storages that appear."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            if made.untyped_storage().data_ptr() not in known:
                self.bytes += made.untyped_storage().nbytes()
        return made


def operator_of(backend: str, device, operator: str, dtype: str, rule: Rule = RULE, **changes) -> CompiledOperator:
    """A compiled operator whose kernels do nothing: what is allocated around them is all that is looked at."""
    sizes = {"dim_k": DIM_K, "dim_v": DIM_V, "slots": SLOTS, "chunk": CHUNK}
    if not operator.startswith("trellis"):
        sizes["dim_v"] = DIM_K
    problem = Problem(operator, BATCH, TOKENS, HEADS, **sizes | changes.pop("problem", {}), dtype=dtype)
    spec = Spec(rule, problem)
    schedule = replace(default(backend, spec, device), **changes)
    count = len(kernels_of(schedule.variant, backend)) + (schedule.variant == "split" and backend == "tvm")
    return CompiledOperator(spec, schedule, device, (lambda *_: None,) * count)


def extent_of(compiled: CompiledOperator, kept: int) -> Extent:
    chunks = -(-TOKENS // kept)
    return Extent(BATCH * TOKENS, HEADS, BATCH, BATCH * chunks, chunks)


def inputs_of(dtype: str):
    x = make_inputs(BATCH, TOKENS, HEADS, DIM_K, DIM_V, SLOTS, step_size="token")
    low = x.to(getattr(torch, dtype))
    return replace(low, log_decay=x.log_decay, step_size=x.step_size)


TVM, TRITON = ("tvm", cpu()), ("triton", NAMED["sm_90"])


@pytest.mark.parametrize(
    ("where", "dtype", "changes"),
    [
        (TVM, "float32", {"variant": "fused"}),
        (TVM, "bfloat16", {"variant": "pair"}),
        (TVM, "float32", {"variant": "split"}),
        (TVM, "float16", {"variant": "recurrent", "problem": {"chunk": 1}}),
        (TRITON, "float32", {"variant": "split"}),
        (TRITON, "bfloat16", {"variant": "split", "dot_precision": "bf16"}),
        (TRITON, "bfloat16", {"variant": "fused", "dot_precision": "bf16"}),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_forward_allocates_what_was_foretold(where, dtype, changes, given):
    compiled = operator_of(*where, "trellis_attention", dtype, **changes)
    x, chunk = inputs_of(dtype), compiled.spec.problem.chunk
    sequences = launch.even_sequences(BATCH, TOKENS, chunk, x.q.device)
    states = x.initial_state if given else (None, None)
    with Allocations() as allocations:
        launch.attention(compiled, *x.args, *states, sequences)
    assert allocations.bytes == sum(
        forward_bytes(compiled.spec, compiled.schedule, extent_of(compiled, chunk)).values()
    )


@pytest.mark.parametrize("operator", ["memory_update", "memory_readout", "memory_readout_transposed"])
def test_the_parts_allocate_what_was_foretold(operator):
    compiled = operator_of(*TVM, operator, "bfloat16")
    x, sequences = inputs_of("bfloat16"), launch.even_sequences(BATCH, TOKENS, CHUNK, torch.device("cpu"))
    gates = (x.log_decay, x.step_size)
    states, codes = torch.zeros(BATCH, 2, HEADS, SLOTS, DIM_K), torch.zeros(BATCH, TOKENS, HEADS, SLOTS)
    transpose = operator.endswith("transposed")
    with Allocations() as allocations:
        if operator == "memory_update":
            launch.update(compiled, x.k, x.target, *gates, None, sequences)
        else:
            launch.readout(compiled, x.target if transpose else x.q, x.k, states, codes, *gates, transpose, sequences)
    assert allocations.bytes == sum(
        forward_bytes(compiled.spec, compiled.schedule, extent_of(compiled, CHUNK)).values()
    )


@pytest.mark.parametrize("link", ["identity", "silu"])
@pytest.mark.parametrize(
    ("where", "dtype", "changes"),
    [
        (TVM, "float32", {"variant": "backward"}),
        (TVM, "bfloat16", {"variant": "backward", "tile_tokens": 16}),
        (TRITON, "float32", {"variant": "backward", "tile_rows": 16}),
        (TRITON, "bfloat16", {"variant": "backward", "tile_rows": 32, "checkpoint_spacing": 1}),
        (TRITON, "float32", {"variant": "backward_split", "tile_rows": 16}),
        (TRITON, "bfloat16", {"variant": "backward_split", "dot_precision": "bf16", "checkpoint_spacing": 2}),
        (TRITON, "float32", {"variant": "backward_chunks", "tile_rows": 32, "checkpoint_spacing": 1}),
        (TRITON, "bfloat16", {"variant": "backward_chunks", "tile_rows": 32, "dot_precision": "bf16"}),
    ],
)
def test_a_backward_allocates_what_was_foretold(where, dtype, changes, link):
    rule = replace(RULE, link=link)
    compiled = operator_of(*where, "trellis_attention", dtype, rule, problem={"direction": "backward"}, **changes)
    x, kept = inputs_of(dtype), compiled.segment_tokens
    extent, sequences = extent_of(compiled, kept), launch.even_sequences(BATCH, TOKENS, kept, x.q.device)
    with Allocations() as allocations:
        y, s_k, s_v, kept_k, kept_v = launch.attention_kept(compiled, *x.args, *x.initial_state, sequences)
    assert allocations.bytes == sum(forward_bytes(compiled.spec, compiled.schedule, extent).values())
    with Allocations() as allocations:
        given = dict(zip(Tokens._fields, x.args, strict=True)) | {"S_k": s_k, "S_v": s_v}
        kept, cotangents = {"chunk_states_k": kept_k, "chunk_states_v": kept_v}, {"y": y, "S_k": s_k, "S_v": s_v}
        launch.attention_backward(compiled, given, kept, cotangents, sequences, tuple(given))
    assert allocations.bytes == sum(reverse_bytes(compiled.spec, compiled.schedule, extent).values())


def countable(backend: str, device, extent: Extent, **changes) -> None:
    compiled = operator_of(backend, device, "trellis_attention", "float32", **changes)
    require_countable(compiled.spec, compiled.schedule, extent)


ONE = Extent(tokens=64, heads=1, sequences=1, chunks=1, most_chunks=1)


@pytest.mark.parametrize("where", [TVM, TRITON])
def test_tokens_that_32_bits_cannot_count_are_refused(where):
    countable(*where, replace(ONE, tokens=MOST - 64))
    with pytest.raises(ShapeError, match=r"q, .* has shape \(2147483584, 1, 20\); expected at most 2147483583 tokens"):
        countable(*where, replace(ONE, tokens=MOST - 63))
    with pytest.raises(ShapeError, match="where C is 1073741824"):
        countable(*where, replace(ONE, tokens=2**30), problem={"chunk": 2**30})


@pytest.mark.parametrize(
    ("where", "changes", "extent", "words"),
    [
        (TVM, {"threads": 64, "variant": "fused"}, {"sequences": 2**20, "heads": 32}, "programs x threads"),
        (TVM, {"threads": 2, "variant": "split"}, {"heads": 2**10, "most_chunks": 2**20}, "programs x threads"),
        (TVM, {"threads": 1, "variant": "pair"}, {"sequences": 2**20, "heads": 2**10}, "programs x threads"),
        (
            TVM,
            {"threads": 1, "variant": "pair", "tile_tokens": 4, "problem": {"chunk": 4}},
            {"most_chunks": 2**27},
            "steps of a sequence x segments",
        ),
        (TVM, {"threads": 1, "variant": "fused"}, {"chunks": 2**31}, "states to keep"),
        (TRITON, {"variant": "split"}, {"heads": 2**10, "most_chunks": 2**21}, "programs of a kernel"),
        (TRITON, {"variant": "fused"}, {"sequences": 2**20, "heads": 2**11}, "programs of a kernel"),
        (
            TRITON,
            {"variant": "backward_chunks", "tile_rows": 32, "problem": {"direction": "backward"}},
            {"heads": 2**22},
            "H x width",
        ),
    ],
)
def test_counts_beyond_32_bits_are_refused(where, changes, extent, words):
    with pytest.raises(SizeError, match=f"{words}.*expected at most 2147483647"):
        countable(*where, replace(ONE, **extent), **changes)
