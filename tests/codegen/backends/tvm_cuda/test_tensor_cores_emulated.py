"""TVM's CUDA kernels by tensor cores against the oracle in float64; `mma` is emulated on this CPU, rounding too."""

from __future__ import annotations

import shutil

import pytest
import torch

from codegen.rule import Rule
from codegen.schedules.registry import default
from tests.codegen.backends.tvm_cuda.test_emulated import SILU, With
from tests.emulators.emulated_cuda import COMPILER, HOPPER
from tests.support.cases.kernels import Case, check_attention, check_readout, check_update
from tests.support.relative_error import TOLERANCE

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

ALLOWED = {"tf32x3": 1e-5, "tf32": TOLERANCE[torch.float16], "bf16": TOLERANCE[torch.bfloat16]}
"""Of states, whose products a precision rounds."""

PRECISIONS = [
    ("tf32x3", "float32"),
    ("tf32x3", "float16"),
    ("tf32", "float16"),
    ("tf32", "bfloat16"),
    ("bf16", "bfloat16"),
]


@pytest.mark.parametrize(
    ("operator", "precision", "dtype"),
    [
        ("memory_readout", "tf32x3", "float32"),
        ("memory_readout", "tf32", "float16"),
        ("memory_readout", "bf16", "bfloat16"),
        ("memory_readout_transposed", "tf32x3", "float32"),
        ("memory_readout_transposed", "tf32", "bfloat16"),
        ("memory_readout_transposed", "bf16", "bfloat16"),
    ],
)
def test_readout_in_every_precision(operator, precision, dtype):
    how = With(tile_tokens=16, accumulators=8, dot_precision=precision)
    check_readout(how, Case(operator, lengths=(47, 47), dim_v=20, dtype=dtype))


@pytest.mark.parametrize(("precision", "dtype"), PRECISIONS)
def test_update_in_every_precision(precision, dtype):
    how = With(tile_tokens=16, accumulators=8, dot_precision=precision)
    check_update(how, Case("memory_update", lengths=(47, 47), dim_v=20, rule=SILU, dtype=dtype), ALLOWED[precision])


@pytest.mark.parametrize("name", ["ln_silu", "softmax"])
def test_split_with_maps_in_all_places(name):
    rule = Rule(name, link=name, out=name, phi_eps=1e-2, step_size="token")
    check_attention(With(tile_tokens=32, dot_precision="tf32x3"), Case(rule=rule))


@pytest.mark.parametrize(("dim_k", "dim_v", "slots"), [(33, 5, 17), (64, 64, 64), (80, 96, 48)])
def test_sizes(dim_k, dim_v, slots):
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    check_attention(With(dot_precision="tf32x3"), Case(chunk=20, lengths=(23,), rule=SILU, **sizes))


@pytest.mark.parametrize("chunk", [16, 32])
def test_the_default_of_bfloat16_inputs(chunk):
    case = Case(chunk=chunk, dtype="bfloat16")
    schedule = default("tvm", case.spec, HOPPER)
    assert (schedule.tile_tokens, schedule.dot_precision) == (chunk, "bf16")
    check_attention(With(dot_precision="bf16"), case, of_states=ALLOWED["bf16"])


@pytest.mark.parametrize(("chunk", "tile"), [(9, 16), (33, 32), (70, 64)])
def test_every_chunk_and_tile(chunk, tile):
    how = With(tile_tokens=tile, accumulators=min(16, tile // 2), dot_precision="tf32x3")
    check_attention(how, Case(chunk=chunk, lengths=(67,)))


@pytest.mark.parametrize(("threads", "accumulators"), [(64, 16), (512, 4)])
def test_every_share_of_the_work(threads, accumulators):
    how = With(tile_tokens=32, threads=threads, accumulators=accumulators, dot_precision="tf32x3")
    check_attention(how, Case())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("tf32", "float16")])
def test_half_precision_packed_sequences_that_forget_everything(precision, dtype):
    case = Case(lengths=(41, 0, 1, 20, 5), packed=True, dtype=dtype)
    inputs = case.inputs()
    inputs.log_decay[:, ::3] = float("-inf")
    inputs.log_decay[:, 1::3] = -40.0
    check_attention(With(dot_precision=precision), case, inputs, ALLOWED[precision])
