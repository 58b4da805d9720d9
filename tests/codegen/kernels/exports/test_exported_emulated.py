"""Exported operators run by the real launcher, with an emulated CUDA driver and an emulated GPU, against the oracle."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codegen.backends.tvm_cuda import nvcc
from codegen.backends.tvm_cuda.driver import CudaDriver
from codegen.device import NAMED, cpu
from codegen.errors import (
    BackendUnavailableError,
    CudaDriverError,
    DtypeError,
    KernelArgumentError,
    KernelDeviceError,
    LayoutError,
    ShapeError,
)
from codegen.kernels.exports.export import export
from codegen.kernels.exports.exported import load, read_manifest
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Spec
from tests.emulators.emulated_cuda import COMPILER
from tests.emulators.emulated_driver import STREAM, driver, emulated_export, emulated_operator
from tests.support.cases.kernels import Case, check_attention, check_readout, check_step, check_update
from tests.support.relative_error import TOLERANCE

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

HOPPER = NAMED["sm_90"]
ROOT = Path(__file__).resolve().parents[4]
UPDATE = Case("memory_update", lengths=(47, 47), dim_v=20)
STEP = Case("trellis_step", chunk=1, lengths=(1, 1, 1), heads=5)

Build = Callable[[Spec], CompiledOperator]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Exports an operator, and loads it again; the driver remembers what was launched since."""
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    numbers = itertools.count()

    def exported(spec: Spec) -> CompiledOperator:
        folder = tmp_path / str(next(numbers))
        export(spec, default("tvm", spec, HOPPER), HOPPER, folder)
        return emulated_operator(folder, folder.with_suffix(".emulated"))

    driver().forget()
    return exported


def test_attention_in_chunks_on_an_emulated_gpu(build):
    check_attention(build, Case(dtype="bfloat16"), of_states=TOLERANCE[torch.bfloat16])
    assert [each.name for each in driver().launches()] == ["memory_update_kernel"] * 2 + ["memory_readout_kernel"]


def test_attention_of_packed_sequences_on_an_emulated_gpu(build):
    check_attention(build, Case(lengths=(41, 0, 1, 20, 5), packed=True))


@pytest.mark.parametrize("step_size", ["head", "token"])
def test_exact_attention_on_an_emulated_gpu(build, step_size):
    check_attention(build, Case(chunk=1, lengths=(9, 9), rule=Rule(phi_eps=1e-2, step_size=step_size)))


def test_update_on_an_emulated_gpu(build):
    check_update(build, UPDATE)


@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
def test_readout_on_an_emulated_gpu(build, operator):
    check_readout(build, Case(operator, lengths=(47, 47), dim_v=20, dtype="bfloat16"))


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step_on_an_emulated_gpu(build, operator):
    check_step(build, dataclasses.replace(STEP, operator=operator))


def test_one_program_serves_every_batch_and_number_of_heads_on_an_emulated_gpu(build):
    compiled = build(STEP.spec)
    for lengths, heads in (((1,), 1), ((1, 1), 7), ((1,) * 9, 3)):
        check_step(lambda _: compiled, dataclasses.replace(STEP, lengths=lengths, heads=heads))
        last = driver().launches()[-1]
        assert last.grid == (len(lengths) * heads, 1, 1)
        assert last.values[-2:] == (heads, len(lengths) * heads)


def arguments_of_step(**changes: object) -> list[object]:
    """What the kernel of `STEP` is called with: four sequences of one token, three heads."""
    n, h, d_k, d_v, m = 4, 3, STEP.dim_k, STEP.dim_v, STEP.slots
    shapes = {"q": (n, h, d_k), "k": (n, h, d_k), "v": (n, h, d_v), "target": (n, h, m), "log_decay": (n, h)}
    shapes |= {"step_size": (h,), "S_k": (n, h, m, d_k), "S_v": (n, h, m, d_v)}
    made: dict[str, object] = {name: torch.zeros(shape) for name, shape in shapes.items()}
    made |= {"cu_seqlens": torch.arange(n + 1, dtype=torch.int32), "y": torch.zeros(n, h, d_v)}
    return list((made | changes).values())


def test_the_launch_that_an_emulated_driver_sees(build):
    (kernel,) = build(STEP.spec).kernels
    q, k, v, target, log_decay, step_size, S_k, S_v, cu_seqlens, y = given = arguments_of_step()
    kernel(12, *given)
    (seen,) = driver().launches()
    tensors = (S_k, S_v, cu_seqlens, k, log_decay, q, step_size, target, v, y)
    assert seen.values == (*(each.data_ptr() for each in tensors), 3, 12)
    assert (seen.grid, seen.block, seen.stream) == ((12, 1, 1), (128, 1, 1), STREAM)
    assert seen.shared_bytes == kernel.plan.shared_bytes > 0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"q": torch.zeros(4, 3, 99)}, ShapeError, r"q has shape \(4, 3, 99\); expected \(4, 3, 20\)"),
        ({"k": torch.zeros(4, 2, 20)}, ShapeError, r"expected \(4, 3, 20\)"),
        ({"S_v": torch.zeros(4, 3, 18)}, ShapeError, "4 dimensions"),
        ({"step_size": torch.zeros(4, 3)}, ShapeError, "1 dimensions"),
        ({"v": torch.zeros(4, 3, 12, dtype=torch.bfloat16)}, DtypeError, "dtype bfloat16; expected float32"),
        ({"cu_seqlens": torch.zeros(5, dtype=torch.int64)}, DtypeError, "expected int32"),
        ({"y": torch.zeros(4, 3, 12, device="meta")}, KernelDeviceError, "y is on meta.*loaded on cpu"),
        ({"target": torch.zeros(4, 18, 3).mT}, LayoutError, "target has strides"),
        ({"target": 3}, KernelArgumentError, "target=3; expected a tensor"),
        ({"more": torch.zeros(1)}, KernelArgumentError, "12 arguments; expected programs, q, k"),
    ],
)
def test_what_a_kernel_cannot_take_is_refused_before_an_emulated_launch(build, changes, error, words):
    (kernel,) = build(STEP.spec).kernels
    with pytest.raises(error, match=words):
        kernel(12, *arguments_of_step(**changes))
    assert driver().launches() == []


def test_a_tensor_too_large_for_32_bits_is_refused(build):
    (kernel,) = build(UPDATE.spec).kernels
    argument = kernel.plan.arguments[1]
    assert argument.name == "w"
    huge = torch.zeros(1, dtype=torch.float32).expand(2**27, 1, 20)
    with pytest.raises(ShapeError, match="split the call"):
        kernel(1, huge, *[0] * (len(kernel.plan.arguments) - 2))


@pytest.mark.parametrize("programs", [torch.zeros(1), -1, 2**31])
def test_a_number_of_programs_that_is_none_is_refused(build, programs):
    (kernel,) = build(STEP.spec).kernels
    with pytest.raises(KernelArgumentError, match="programs"):
        kernel(programs, *arguments_of_step())


def test_nothing_to_do_is_no_launch(build):
    (kernel,) = build(STEP.spec).kernels
    kernel(0, *arguments_of_step())
    assert driver().launches() == []


@pytest.mark.parametrize("call", ["cuInit", "cuDevicePrimaryCtxRetain", "cuModuleLoadData"])
def test_what_an_emulated_driver_refuses_at_loading_is_an_error(build, tmp_path, call):
    build(STEP.spec)
    driver().fail_at(call, 209)
    with pytest.raises(CudaDriverError, match=rf"refused {call} for memory_step_kernel: CUDA_ERROR_EMULATED \(209\)"):
        load(tmp_path / "0.emulated", cpu(), driver().place())


def test_what_an_emulated_driver_refuses_at_a_launch_is_an_error_and_the_next_may_go_well(build):
    (kernel,) = build(STEP.spec).kernels
    driver().fail_at("cuLaunchKernel", 700)
    with pytest.raises(CudaDriverError, match=r"cuLaunchKernel for memory_step_kernel.*\(700\)"):
        kernel(12, *arguments_of_step())
    driver().forget()
    kernel(12, *arguments_of_step())
    assert len(driver().launches()) == 1


def test_more_shared_memory_than_a_block_may_have_is_refused_by_an_emulated_driver(build, tmp_path):
    build(STEP.spec)
    (part,) = read_manifest(tmp_path / "0").parts
    image = (tmp_path / "0.emulated" / f"{part.file}.cubin").read_bytes()
    with pytest.raises(CudaDriverError, match="cuFuncSetAttribute"):
        driver().driver.function(image, part.plan.function, 300_000, 0)
    with pytest.raises(CudaDriverError, match="cuModuleGetFunction for other"):
        driver().driver.function(image, "other", 0, 0)


def test_without_a_driver_it_says_so(tmp_path):
    with pytest.raises(BackendUnavailableError, match="comes with NVIDIA's driver"):
        CudaDriver(str(tmp_path / "libcuda.so.1"))


def test_no_compiler_is_imported_to_run_an_export_on_an_emulated_gpu(build, tmp_path):
    build(STEP.spec)
    emulated_export(tmp_path / "0", tmp_path / "copy")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(['tvm', 'tvm_ffi', 'jinja2', 'triton', 'optuna']))\n"
    )
    text = f"""
from pathlib import Path
from tests.codegen.kernels.exports.test_exported_emulated import STEP, check_step, cpu, driver, load
compiled = load(Path({str(tmp_path / "copy")!r}), cpu(), driver().place())
check_step(lambda _: compiled, STEP)
"""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
