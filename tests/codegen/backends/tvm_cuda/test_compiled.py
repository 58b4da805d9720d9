"""What TVM and nvcc make of the CUDA kernels, and which schedules are legal for them."""

from __future__ import annotations

import dataclasses
import itertools
import shutil

import pytest

from codegen.backends import backend
from codegen.device import NAMED, Device
from codegen.errors import BackendUnavailableError
from codegen.kernels.build import parts
from codegen.render import Source, render
from codegen.rule import Rule
from codegen.schedules.cuda_block import block_of, most_shared_bytes
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.schedules.schedule import Schedule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import OPERATORS, Problem, Spec

HOPPER = NAMED["sm_90"]
Made = tuple[Source, Spec, Schedule, Device]


def made(operator: str, arch: str = "sm_90", **sizes: int | str) -> list[Made]:
    """The default's kernels of an operator, with what each was made from."""
    spec, device = Spec(Rule(), Problem(operator, **sizes)), NAMED[arch]
    schedule = default("tvm", spec, device)
    return [(render(kernel, part, schedule, device), part, schedule, device) for kernel, part in parts(spec, schedule)]


@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_become_cuda(operator):
    for source, *rest in made(operator, dtype="bfloat16"):
        text = backend("tvm").inspect(source, *rest)["cuda"]
        assert f"{source.kernel}_kernel(" in text
        assert "nv_bfloat16" in text
        assert "__syncthreads()" in text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_defaults_fit_a_multiprocessor_and_do_not_spill(operator, dtype):
    for source, spec, schedule, device in dict.fromkeys(made(operator, dtype=dtype)):
        needs = backend("tvm").resources(source, spec, schedule, device)
        assert needs.spill_bytes == 0
        assert needs.registers * schedule.threads <= 65_536
        assert 0 < needs.shared_bytes <= device.shared_bytes


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("dtype", "precision", "arch"),
    [
        ("float32", "tf32x3", "sm_90"),
        ("float16", "tf32", "sm_80"),
        ("bfloat16", "bf16", "sm_90"),
        ("bfloat16", "bf16", "sm_80"),
    ],
)
def test_products_take_tensor_cores(dtype, precision, arch):
    update, readout = made("trellis_attention", arch, dtype=dtype)[::2]
    for source, spec, schedule, device in (update, readout):
        assert schedule.dot_precision == precision
        needs = backend("tvm").resources(source, spec, schedule, device)
        assert needs.mma > 0
        assert needs.spill_bytes == 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_compiles_for_sm_90():
    (update,) = made("memory_update")
    assert ".target sm_90" in backend("tvm").inspect(*update)["ptx"]


def test_a_cuda_kernel_cannot_be_run_here():
    (update,) = made("memory_update")
    with pytest.raises(BackendUnavailableError, match="torch sees no GPU here"):
        backend("tvm").compile(*update)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_default_is_legal_where_any_schedule_is(operator, arch):
    device = NAMED[arch]
    for dim, slots, chunk in itertools.product((1, 64, 200, 256), (1, 64, 160, 256), (1, 3, 64, 1000)):
        spec = Spec(Rule(), Problem(operator, dim_k=dim, dim_v=dim, slots=slots, chunk=chunk))
        first = default("tvm", spec, device)
        others = (
            dataclasses.replace(first, tile_tokens=tile, threads=threads)
            for tile in TvmSchedule.choices["tile_tokens"]
            for threads in TvmSchedule.choices["threads"]
        )
        if why_illegal(spec, first, device) is not None:
            assert all(why_illegal(spec, each, device) is not None for each in others), spec.key()


@pytest.mark.parametrize(
    ("operator", "changes", "reason"),
    [
        ("trellis_attention", {"variant": "fused"}, "templates of split"),
        ("memory_update", {"vector_width": 8}, "vector_width must be 4"),
        ("memory_update", {"accumulators": 12}, "accumulators must be one of"),
        ("memory_update", {"threads": 32}, "at least 64"),
        ("memory_update", {"tile_tokens": 64}, "exceeds the chunk"),
        ("trellis_step", {"tile_tokens": 8}, "has no tile"),
        ("trellis_step", {"dot_precision": "bf16"}, "has no dots"),
        ("memory_update", {"tile_tokens": 16, "accumulators": 16}, "must be a multiple"),
        ("memory_update", {"tile_tokens": 8}, "tensor cores take 16 rows"),
        ("memory_update", {"dot_precision": "bf16"}, "too few for float32"),
    ],
)
def test_illegal_schedules_say_why(operator, changes, reason):
    spec = Spec(Rule(), Problem(operator, chunk=20))
    illegal = why_illegal(spec, dataclasses.replace(default("tvm", spec, HOPPER), **changes), HOPPER)
    assert illegal is not None
    assert reason in illegal


def test_an_older_gpu_gets_multiply_adds():
    turing = dataclasses.replace(NAMED["sm_80"], name="nvidia-t4", arch="sm_75", shared_bytes=65_536)
    spec = Spec(Rule(), Problem(dtype="float16"))
    schedule = default("tvm", spec, turing)
    assert schedule.dot_precision == "ieee"
    assert why_illegal(spec, schedule, turing) is None
    by_tensor_cores = dataclasses.replace(schedule, tile_tokens=32, dot_precision="tf32")
    assert "sm_75 has no tf32 dots" in str(why_illegal(spec, by_tensor_cores, turing))
    by_triton = default("triton", spec, turing)
    assert why_illegal(spec, by_triton, turing) is None


def test_what_does_not_fit_shared_memory_says_why():
    spec = Spec(Rule(), Problem("memory_update", dim_k=256, dim_v=256, slots=256))
    illegal = why_illegal(spec, default("tvm", spec, HOPPER), HOPPER)
    assert illegal is not None
    assert "bytes of shared memory" in illegal


def test_there_is_no_backward():
    spec = Spec(Rule(), Problem("trellis_attention", direction="backward"))
    illegal = why_illegal(spec, default("tvm", spec, HOPPER), HOPPER)
    assert illegal is not None
    assert "not of 'backward'" in illegal


@pytest.mark.parametrize("kernel", ["memory_update", "memory_readout", "memory_step"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (20, 12, 18), (64, 64, 64), (256, 128, 200)])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_buffers_lie_side_by_side_and_aligned(kernel, sizes, precision):
    dim_k, dim_v, slots = sizes
    problem = Problem(dim_k=dim_k, dim_v=dim_v, slots=slots)
    schedule = TvmSchedule("split", 16, 4, 8, 128, dot_precision=precision)
    block = block_of(kernel, problem, schedule)
    ends = [each.offset + -(-_count(each.shape) // 4) * 4 for each in block.buffers]
    assert [each.offset for each in block.buffers] == [0, *ends[:-1]]
    assert block.floats == ends[-1]
    assert 4 * block.floats == block.shared_bytes
    assert most_shared_bytes(problem, schedule) >= block.shared_bytes or kernel == "memory_step"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
