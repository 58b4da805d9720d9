"""Rendered kernels against the copies in tests/golden.

After a wanted change of a template, accept the new text and read it in the diff of the commit:

    TRELLIS_OPS_ACCEPT_GOLDEN=1 python -m pytest tests/codegen/test_golden.py
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from codegen.device import named
from codegen.input_maps import InputMaps
from codegen.layer import Layer
from codegen.render import render
from codegen.rule import Rule
from codegen.rules import rule_named
from codegen.schedules.schedule import Schedule
from codegen.schedules.triton import TritonSchedule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import GLUE_OPERATORS, INPUT_OPERATORS, Problem, Spec

FOLDER = Path(__file__).parent.parent / "golden"
ACCEPT = "TRELLIS_OPS_ACCEPT_GOLDEN"


@dataclass(frozen=True)
class Golden:
    """One copy, in tests/golden/<folder of templates>/<kernel>[_<label>].py.txt."""

    kernel: str
    spec: Spec
    schedule: Schedule
    device: str
    label: str = ""

    @property
    def path(self) -> Path:
        name = f"{self.kernel}_{self.label}" if self.label else self.kernel
        return FOLDER / str(self.schedule.templates_on(named(self.device))) / f"{name}.py.txt"


PLAIN = Spec(Rule(), Problem(batch=1, tokens=1, heads=1))
# Every size is padded, a chunk has two tiles of unequal length, all maps differ, and gamma is per token.
PADDED = Spec(
    Rule("l2_silu", link="softmax", out="ln_silu", phi_eps=1e-2, step_size="token"),
    Problem(batch=1, tokens=1, heads=1, dim_k=24, dim_v=40, slots=20, chunk=20, dtype="bfloat16"),
)
GATED_DELTA = Spec(
    rule_named("gated_deltanet"), Problem("memory_attention", batch=1, tokens=1, heads=1, chunk=1, dtype="bfloat16")
)
TRITON_RECURRENCE = TritonSchedule("recurrence", tile_rows=16, num_warps=4, num_stages=1, dot_precision="ieee")
TVM_RECURRENCE = TvmSchedule("recurrence", tile_tokens=8, vector_width=8, accumulators=4, threads=2)
TRITON = TritonSchedule("fused", tile_rows=64, num_warps=8, num_stages=1, dot_precision="tf32x3")
TRITON_TILED = TritonSchedule("fused", tile_rows=16, num_warps=4, num_stages=2, dot_precision="tf32")
TRITON_DESCRIBED = replace(TRITON_TILED, loads="descriptors", dot_precision="tf32x3")


TVM = TvmSchedule("fused", tile_tokens=32, vector_width=16, accumulators=16, threads=2)
TVM_TILED = TvmSchedule("fused", tile_tokens=16, vector_width=8, accumulators=8, threads=1)


POOL = replace(GATED_DELTA, problem=replace(GATED_DELTA.problem, operator="memory_pool"))
TRELLIS_POOL = replace(PADDED, problem=replace(PADDED.problem, operator="memory_pool"))


TVM_CHUNKS = TvmSchedule("chunks", tile_tokens=16, vector_width=16, accumulators=16, threads=2)
LINEAR = Spec(
    Rule("hebbian", passes=1, step_size="token"), replace(PLAIN.problem, operator="memory_attention", chunk=1)
)
SLOTS = Spec(
    Rule("hebbian", link="softmax", decay="slot"), replace(PADDED.problem, operator="memory_attention", chunk=1)
)
# A triangular system, a gate for each column, a map of the readout; every size is padded.
DELTA = Spec(
    Rule("identity", out="ln_silu", passes=1, decay="channel", decay_first=True, probe="own"),
    replace(PADDED.problem, operator="memory_attention", chunk=1),
)


TITANS = Spec(
    Rule("identity", passes=1, step_size="token", momentum=True),
    replace(PLAIN.problem, operator="memory_attention", chunk=16),
)
# Tiles of longer chunks, pairs that a window carries, a probe, a map of the readout; every size is padded.
WINDOW = Spec(
    replace(TITANS.rule, phi="ln_silu", out="ln_silu", window=4, probe="own", read="before"),
    replace(PADDED.problem, operator="memory_attention", chunk=20),
)
READER = Spec(
    Rule("layer_norm_gain", passes=1, decay="none", step_size="reader_writer"),
    replace(PLAIN.problem, operator="memory_attention", chunk=64),
)
STALE_SLOTS = Spec(
    Rule("layer_norm_gain", passes=1, decay="slot", decay_first=True),
    replace(PADDED.problem, operator="memory_attention", chunk=20),
)
TVM_STALE = replace(TVM_CHUNKS, variant="stale_chunks")
EXACT = replace(PLAIN, problem=replace(PLAIN.problem, chunk=1, dtype="bfloat16"))
ONE_PASS = Spec(
    Rule("huber", passes=1, decay_first=True, step_size="token"),
    replace(PADDED.problem, operator="memory_attention", chunk=1, slots=PADDED.problem.dim_v),
)


TVM_CUDA = TvmSchedule("split", tile_tokens=64, vector_width=4, accumulators=16, threads=256)
TVM_CUDA_TILED = TvmSchedule("split", tile_tokens=8, vector_width=4, accumulators=8, threads=64)
TENSOR_CORES = {"variant": "update", "dot_precision": "tf32x3"}
TENSOR_CORES_TILED = {"tile_tokens": 16, "accumulators": 8, "dot_precision": "bf16"}


def of(spec: Spec, operator: str) -> Spec:
    return replace(spec, problem=replace(spec.problem, operator=operator))


def triton(kernel: str, operator: str, variant: str, padded_operator: str | None = None) -> list[Golden]:
    """The kernel at both specs."""
    return [
        Golden(kernel, of(PLAIN, operator), replace(TRITON, variant=variant), "sm_90"),
        Golden(
            kernel, of(PADDED, padded_operator or operator), replace(TRITON_TILED, variant=variant), "sm_90", "padded"
        ),
    ]


def tvm(kernel: str, operator: str, variant: str, padded_operator: str | None = None) -> list[Golden]:
    """The kernel at both specs; a kernel without tiles has a tile of one vector."""
    changes = {"variant": variant} | (
        {"tile_tokens": 8, "vector_width": 8, "accumulators": 4} if variant == "recurrent" else {}
    )
    plain, padded = of(PLAIN, operator), of(PADDED, padded_operator or operator)
    return [
        Golden(kernel, plain, replace(TVM, **changes), "x86-64-v4"),
        Golden(kernel, padded, replace(TVM_TILED, **changes), "x86-64-v4", "padded"),
    ]


def tvm_cuda(kernel: str, operator: str, variant: str, padded_operator: str | None = None) -> list[Golden]:
    """The kernel at both specs; a kernel without tiles has a tile of one vector."""
    plain, padded = of(PLAIN, operator), of(PADDED, padded_operator or operator)
    changes = {"variant": variant} | ({"tile_tokens": 4, "accumulators": 4} if variant == "recurrent" else {})
    return [
        Golden(kernel, plain, replace(TVM_CUDA, **changes), "sm_90"),
        Golden(kernel, padded, replace(TVM_CUDA_TILED, **changes), "sm_90", "padded"),
    ]


def backward(spec: Spec, direction: str) -> Spec:
    return replace(spec, problem=replace(spec.problem, direction=direction))


BLOCK = TvmSchedule("block", tile_tokens=16, vector_width=16, accumulators=16, threads=2)
LAYER = Layer(width=768, hidden=2048)
PADDED_LAYER = Layer(width=52, hidden=75, taps=3, unit=False, weights="int8")


def layer(spec: Spec, operator: str, sizes: Layer) -> Spec:
    """The decode step of the layer; its kernel is made for some number of heads."""
    return replace(spec, problem=replace(spec.problem, operator=operator, heads=3, layer=sizes, dtype="float32"))


def between(spec: Spec, operator: str, sizes: Layer) -> Spec:
    """The same of a layer whose products are torch's, in bfloat16."""
    of_layer = layer(spec, operator, sizes)
    return replace(of_layer, problem=replace(of_layer.problem, dtype="bfloat16"))


BETWEEN = TritonSchedule("norm", tile_rows=16, num_warps=4, num_stages=1, dot_precision="ieee")
MIXER = replace(BETWEEN, variant="mixer", num_warps=8, num_stages=2)
PADDED_STREAM = replace(PADDED_LAYER, weights="float32")


GLUE = TvmSchedule("swiglu_gate", tile_tokens=16, vector_width=16, accumulators=4, threads=2)


def glue(operator: str, spec: Spec, maps: InputMaps) -> Spec:
    """What stands between the products of a block."""
    inputs = maps if operator in INPUT_OPERATORS else None
    return Spec(Rule(), replace(spec.problem, operator=operator, slots=1, chunk=1, inputs=inputs))


GOLDEN = [
    *(
        Golden(each, glue(each, PLAIN, InputMaps()), replace(GLUE, variant=each), "x86-64-v4")
        for each in GLUE_OPERATORS
    ),
    *(
        Golden(
            *(each, glue(each, PADDED, InputMaps(3, False, False))),
            *(replace(GLUE, variant=each, tile_tokens=8, vector_width=8, threads=1), "x86-64-v3", "padded"),
        )
        for each in INPUT_OPERATORS
    ),
    Golden("block_step", layer(PLAIN, "block_step", LAYER), BLOCK, "x86-64-v4"),
    Golden(
        *("block_step", layer(replace(PADDED, problem=replace(PADDED.problem, chunk=1)), "block_step", PADDED_LAYER)),
        *(replace(BLOCK, tile_tokens=8, vector_width=8, accumulators=4, threads=1), "x86-64-v3", "padded"),
    ),
    Golden("block_step", layer(PLAIN, "block_step", replace(LAYER, pooled=True)), BLOCK, "x86-64-v4", "pooled"),
    Golden("logits_step", layer(PLAIN, "logits_step", LAYER), replace(BLOCK, variant="logits"), "x86-64-v4"),
    Golden("norm_step", layer(PLAIN, "norm_step", LAYER), BETWEEN, "sm_90"),
    Golden("mixer_step", between(PLAIN, "mixer_step", LAYER), MIXER, "sm_90"),
    Golden(
        "mixer_step",
        between(replace(PADDED, problem=replace(PADDED.problem, chunk=1)), "mixer_step", PADDED_STREAM),
        *(replace(MIXER, num_stages=1), "sm_90", "padded"),
    ),
    Golden("swiglu_step", layer(PLAIN, "swiglu_step", LAYER), replace(BETWEEN, variant="swiglu"), "sm_90"),
    Golden("stale_chunks", TITANS, TVM_STALE, "x86-64-v4"),
    Golden("stale_chunks", WINDOW, replace(TVM_STALE, tile_tokens=8, vector_width=8), "x86-64-v4", "padded"),
    Golden("stale_chunks", READER, TVM_STALE, "x86-64-v4", "reader_writer"),
    Golden("stale_chunks", STALE_SLOTS, replace(TVM_STALE, tile_tokens=8, vector_width=8), "x86-64-v4", "slots"),
    Golden("memory_chunks", LINEAR, TVM_CHUNKS, "x86-64-v4"),
    Golden("memory_chunks", DELTA, replace(TVM_CHUNKS, tile_tokens=8, vector_width=8), "x86-64-v4", "padded"),
    Golden(
        *("memory_chunks_backward", backward(replace(LINEAR, rule=replace(LINEAR.rule, erase=True)), "backward")),
        *(replace(TVM_CHUNKS, variant="chunks_backward", checkpoint_spacing=64), "x86-64-v4", "erasing"),
    ),
    Golden("memory_chunks", SLOTS, replace(TVM_CHUNKS, tile_tokens=8, vector_width=8), "x86-64-v4", "two_passes"),
    Golden(
        *("memory_chunks_backward", backward(replace(DELTA, rule=replace(DELTA.rule, out="identity")), "backward")),
        *(replace(TVM_CHUNKS, variant="chunks_backward", checkpoint_spacing=64), "x86-64-v4"),
    ),
    Golden(
        "trellis_backward", backward(PLAIN, "backward"), replace(TVM, variant="backward", tile_tokens=64), "x86-64-v4"
    ),
    Golden(
        *("trellis_backward", backward(PADDED, "backward_first_order"), replace(TVM_TILED, variant="backward")),
        *("x86-64-v4", "padded"),
    ),
    Golden(
        "trellis_backward",
        backward(replace(PLAIN, problem=replace(PLAIN.problem, chunk=1)), "backward"),
        replace(TVM, variant="backward", tile_tokens=16, checkpoint_spacing=64),
        *("x86-64-v4", "spanning"),
    ),
    Golden("trellis_backward", backward(PLAIN, "backward"), replace(TRITON, variant="backward"), "sm_90"),
    Golden(
        *("trellis_backward", backward(PADDED, "backward_first_order")),
        *(replace(TRITON_TILED, variant="backward", checkpoint_spacing=2), "sm_90", "padded"),
    ),
    *(
        Golden(kernel, backward(PLAIN, "backward"), replace(TRITON, variant="backward_split"), "sm_90")
        for kernel in ("keys_readout", "values_backward", "keys_backward")
    ),
    *(
        Golden(kernel, backward(PLAIN, "backward"), replace(TRITON, variant="backward_chunks"), "sm_90")
        for kernel in ("values_reading", "keys_reading", "states_backward", "values_writing", "keys_writing")
    ),
    *(
        Golden(
            *(kernel, backward(PADDED, "backward_first_order")),
            *(replace(TRITON_TILED, variant="backward_chunks", tile_rows=32), "sm_90", "padded"),
        )
        for kernel in ("values_reading", "keys_reading", "states_backward", "values_writing", "keys_writing")
    ),
    Golden("memory_chunks", GATED_DELTA, replace(TRITON, variant="chunks", tile_rows=16), "sm_90"),
    Golden("memory_chunks", DELTA, replace(TRITON_TILED, variant="chunks", tile_rows=32), "sm_90", "padded"),
    Golden("memory_chunks", SLOTS, replace(TRITON_TILED, variant="chunks"), "sm_90", "two_passes"),
    Golden("stale_chunks", TITANS, replace(TRITON, variant="stale_chunks", tile_rows=16), "sm_90"),
    Golden("stale_chunks", WINDOW, replace(TRITON_TILED, variant="stale_chunks", num_stages=1), "sm_90", "padded"),
    Golden("stale_chunks", READER, replace(TRITON, variant="stale_chunks", tile_rows=16), "sm_90", "reader_writer"),
    Golden(
        *("stale_chunks", replace(STALE_SLOTS, rule=replace(STALE_SLOTS.rule, decay_first=False))),
        *(replace(TRITON_TILED, variant="stale_chunks"), "sm_90", "slots"),
    ),
    Golden(
        *("memory_chunks_backward", backward(GATED_DELTA, "backward")),
        *(replace(TRITON, variant="chunks_backward", tile_rows=16, checkpoint_spacing=16), "sm_90"),
    ),
    Golden(
        *("memory_chunks_backward", backward(LINEAR, "backward")),
        *(replace(TRITON, variant="chunks_backward", tile_rows=16, checkpoint_spacing=16), "sm_90", "linear"),
    ),
    Golden("recurrence", GATED_DELTA, TRITON_RECURRENCE, "sm_90"),
    Golden(
        *("recurrence_backward", backward(GATED_DELTA, "backward")),
        *(replace(TRITON_RECURRENCE, variant="recurrence_backward", num_warps=8, checkpoint_spacing=16), "sm_90"),
    ),
    Golden("recurrence", GATED_DELTA, TVM_RECURRENCE, "x86-64-v3"),
    Golden("memory_pool", POOL, replace(TRITON_RECURRENCE, variant="pool"), "sm_90"),
    Golden("memory_pool", TRELLIS_POOL, replace(TRITON_RECURRENCE, variant="pool", num_warps=8), "sm_90", "padded"),
    Golden("memory_pool", POOL, replace(TVM_RECURRENCE, variant="pool"), "x86-64-v3"),
    Golden("memory_pool", TRELLIS_POOL, replace(TVM_RECURRENCE, variant="pool"), "x86-64-v3", "padded"),
    Golden(
        *("recurrence_backward", backward(GATED_DELTA, "backward")),
        *(replace(TVM_RECURRENCE, variant="recurrence_backward", checkpoint_spacing=16), "x86-64-v3"),
    ),
    *tvm("trellis_fused", "trellis_attention", "fused"),
    *tvm("trellis_pair", "trellis_attention", "pair"),
    *tvm("memory_update", "memory_update", "update"),
    *tvm("memory_readout", "trellis_attention", "split"),
    *tvm("memory_step", "trellis_step", "recurrent", "trellis_step_chunked"),
    *tvm_cuda("memory_update", "memory_update", "update"),
    *tvm_cuda("memory_readout", "trellis_attention", "split"),
    *tvm_cuda("memory_step", "trellis_step", "recurrent", "trellis_step_chunked"),
    Golden("memory_update", of(PLAIN, "memory_update"), replace(TVM_CUDA, **TENSOR_CORES), "sm_90", "tensor_cores"),
    Golden("memory_readout", PADDED, replace(TVM_CUDA, **TENSOR_CORES_TILED), "sm_90", "tensor_cores"),
    *triton("trellis_fused", "trellis_attention", "fused"),
    *triton("trellis_update", "trellis_attention", "split"),
    *triton("memory_update", "memory_update", "update"),
    Golden("exact_update", EXACT, replace(TRITON_TILED, variant="substitution", dot_precision="bf16"), "sm_90"),
    Golden(
        *("exact_update", ONE_PASS, replace(TRITON_TILED, variant="substitution_one_pass", tile_rows=32)),
        *("sm_90", "one_pass"),
    ),
    *triton("memory_readout", "trellis_attention", "split"),
    *triton("memory_step", "trellis_step", "recurrent", "trellis_step_chunked"),
    Golden("trellis_fused", PLAIN, TRITON_DESCRIBED, "sm_90", "described"),
    Golden("memory_readout", PLAIN, replace(TRITON_DESCRIBED, variant="split"), "sm_90", "described"),
]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: str(golden.path.relative_to(FOLDER)))
def test_rendered_text(golden):
    text = render(golden.kernel, golden.spec, golden.schedule, named(golden.device)).text
    if os.environ.get(ACCEPT) == "1":
        golden.path.parent.mkdir(parents=True, exist_ok=True)
        golden.path.write_text(text)
    assert golden.path.exists(), f"no golden copy yet; accept this one with {ACCEPT}=1"
    assert text == golden.path.read_text(), f"the text has changed; if that is wanted, accept it with {ACCEPT}=1"


def test_no_copy_is_left_over():
    assert {path for path in FOLDER.rglob("*.py.txt")} == {golden.path for golden in GOLDEN}


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: str(golden.path.relative_to(FOLDER)))
def test_generated_code_fits_the_page(golden):
    text = render(golden.kernel, golden.spec, golden.schedule, named(golden.device)).text
    code = [line for line in text.splitlines() if not line.startswith("#")]
    assert max(map(len, code)) <= 120
    assert not any(line != line.rstrip() for line in code)
    assert text.endswith("\n") and not text.endswith("\n\n")


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: str(golden.path.relative_to(FOLDER)))
def test_generated_code_defines_only_what_it_uses(golden):
    module = ast.parse(render(golden.kernel, golden.spec, golden.schedule, named(golden.device)).text)
    functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    names = [node for node in ast.walk(module) if isinstance(node, ast.Name)]
    constants = {
        name.id
        for node in module.body
        if isinstance(node, ast.Assign)
        for name in ast.walk(node.targets[0])
        if isinstance(name, ast.Name)
    }
    imports = [node for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    used = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    # A TVM kernel is a method of its module, a Triton kernel a function that the launcher uses.
    assert (functions | constants | imported) - used <= {golden.kernel}
