"""Triton: sources compiled for NVIDIA and AMD GPUs, here or not, or interpreted on CPU tensors (TRITON_INTERPRET=1).

Triton decides when it is imported whether it compiles or interprets, so one process does one of the two.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from typing import Any

import torch

from codegen.backends import Resources
from codegen.backends.source_module import module_of
from codegen.backends.triton import descriptors as triton_descriptors
from codegen.backends.triton.assembler import assembled_by
from codegen.backends.triton.assembler import toolchain as toolchain
from codegen.backends.triton.launched import ALIGNMENT, CompiledKernel, InterpretedKernel
from codegen.backends.triton.package import NAME, imported, interprets
from codegen.device import Device, cuda_device
from codegen.errors import BackendUnavailableError, CompileError
from codegen.kernels.declared import kernel_arguments
from codegen.kernels.signatures import dtype_of
from codegen.render import Source, render
from codegen.schedules.schedule import Schedule
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec

name = NAME

_POINTER_TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32", "int64": "*i64"}
_STAGES = {"cuda": ("ttir", "ttgir", "llir", "ptx"), "hip": ("ttir", "ttgir", "llir", "amdgcn")}


def why_unavailable(device: Device) -> str | None:
    """Why kernels for `device` cannot run in this process, in one sentence; None if they can."""
    try:
        is_interpreter = interprets()
    except BackendUnavailableError as error:
        return str(error.reason)
    if is_interpreter:
        return None
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET was set after triton was imported; set it before Python starts"
    if device.kind == "cpu":
        return "Triton compiles for GPUs only; set TRITON_INTERPRET=1 before Python starts to interpret its kernels"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU in this machine"
    here = [cuda_device(index).arch for index in range(torch.cuda.device_count())]
    if device.arch not in here:
        return f"the GPUs in this machine are {', '.join(here)}, not {device.arch}"
    return None


def why_broken() -> str | None:
    """What is wrong with an installed Triton that cannot be imported; None if it can, or is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        imported()
    except BackendUnavailableError as error:
        return str(error.reason)
    return None


def kernel(template: str, spec: Spec, schedule: Schedule, device: Device) -> InterpretedKernel | CompiledKernel:
    """The kernel of that template, rendered and compiled; Triton keeps what it compiled, and finds it again.

    Raises:
        BackendUnavailableError: the GPU, or Triton, is missing.
        TemplateError: the template does not render.
        CompileError: Triton refused the source, or the kernel needs more than the GPU has.
    """
    return compile(render(template, spec, schedule, device), spec, schedule, device)


def compile(source: Source, spec: Spec, schedule: Schedule, device: Device) -> InterpretedKernel | CompiledKernel:
    """Compile for the current GPU, or make ready to interpret.

    Raises:
        BackendUnavailableError: the GPU, or Triton, is missing.
        CompileError: Triton refused the source, or the kernel needs more than the GPU has.
    """
    reason = why_unavailable(device)
    if reason is not None:
        raise BackendUnavailableError(backend=name, reason=reason)
    function = getattr(module_of(source, name), source.kernel)
    arguments = kernel_arguments(source.kernel, spec, schedule)
    described = triton_descriptors.described(source, arguments)
    told_heads = _is_told_heads(spec)
    if interprets():
        return InterpretedKernel(source, function, described, told_heads)
    types = [
        getattr(torch, dtype_of(argument, spec, schedule)) if argument.is_tensor else None for argument in arguments
    ]
    num_warps = _num_warps(schedule)
    try:
        with assembled_by(schedule):
            given = (dtype or 1 for dtype in (*types, *([None] if told_heads else [])))
            compiled = function.warmup(*given, grid=(1,), num_warps=num_warps)
        # Loading it now shows here, not in the first call, that it needs more shared memory than there is.
        compiled._init_handles()
    except Exception as error:
        raise CompileError(backend=name, path=source.path, reason=_reason(error)) from error
    gpu = torch.cuda.current_device()
    return CompiledKernel(source, function, compiled, tuple(types), gpu, num_warps, described, told_heads)


def inspect(source: Source, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    """The texts of each stage: "ttir", "ttgir", "llir", "ptx" or for AMD "amdgcn", and "asm" (SASS, or again "amdgcn").

    Raises:
        BackendUnavailableError: `device` is a CPU, Triton is missing, or this process interprets.
        CompileError: Triton refused the source.
    """
    compiled = _compiled(source, spec, schedule, device)
    stages = {stage: str(compiled.asm[stage]) for stage in _STAGES[device.kind]}
    return stages | {"asm": _cuobjdump(compiled, "-sass") if device.kind == "cuda" else stages["amdgcn"]}


def resources(source: Source, spec: Spec, schedule: Schedule, device: Device) -> Resources:
    """What the compiler says the kernel needs; raises as `inspect` does."""
    compiled = _compiled(source, spec, schedule, device)
    shared = int(compiled.metadata.shared)
    if device.kind == "hip":
        text = compiled.asm["amdgcn"]
        registers, spilled = (
            _number(r"\.vgpr_count:\s*(\d+)", text),
            _number(r"\.private_segment_fixed_size:\s*(\d+)", text),
        )
        length = _number(r"; codeLenInByte = (\d+)", text)
        return Resources(registers, spilled, shared, length, mma=text.count("\tv_mfma_"))
    usage = _cuobjdump(compiled, "-res-usage")
    registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    addresses = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/", _cuobjdump(compiled, "-sass"), re.MULTILINE)
    length, ptx = int(addresses[-1], 16) + 16 if addresses else None, compiled.asm["ptx"]
    return Resources(registers, stack, shared, length, ptx.count("\tmma.sync."), ptx.count("\twgmma.mma_async."))


def why_no_resources(device: Device) -> str | None:
    """Nothing is missing: Triton brings all that it needs."""
    return None


def _compiled(source: Source, spec: Spec, schedule: Schedule, device: Device) -> Any:
    if device.kind == "cpu":
        raise BackendUnavailableError(backend=name, reason="Triton compiles for GPUs only; name one, such as sm_90")
    triton = imported()
    if interprets():
        reason = "this process interprets Triton kernels; unset TRITON_INTERPRET to compile them"
        raise BackendUnavailableError(backend=name, reason=reason)
    function = getattr(module_of(source, name), source.kernel)
    types = _signature(source.kernel, spec, schedule)
    aligned = {(i,): [["tt.divisibility", ALIGNMENT]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    try:
        with assembled_by(schedule):
            return triton.compile(
                triton.compiler.ASTSource(function, types, attrs=aligned),
                target=_target(triton, device),
                options={"num_warps": _num_warps(schedule)},
            )
    except Exception as error:
        raise CompileError(backend=name, path=source.path, reason=_reason(error)) from error


def _target(triton: Any, device: Device) -> Any:
    kind = triton.backends.compiler.GPUTarget
    if device.kind == "cuda":
        return kind("cuda", int(device.arch.removeprefix("sm_")), 32)
    return kind("hip", device.arch, 64 if device.arch.startswith("gfx9") else 32)


def _signature(kernel: str, spec: Spec, schedule: Schedule) -> dict[str, str]:
    """Triton's type of each parameter, in order."""
    types = {}
    for argument in kernel_arguments(kernel, spec, schedule):
        if argument.is_tensor:
            types[f"{argument.name}_ptr"] = _POINTER_TYPES[dtype_of(argument, spec, schedule)]
        else:
            types[argument.name] = "i32"
    return types | ({"H": "i32"} if _is_told_heads(spec) else {})


def _is_told_heads(spec: Spec) -> bool:
    return spec.problem.layer is None


def _num_warps(schedule: Schedule) -> int:
    assert isinstance(schedule, TritonSchedule), f"{schedule.key()} is no schedule of the backend {name}"
    return schedule.num_warps


def _cuobjdump(compiled: Any, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [imported().knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text)
    return int(match.group(1)) if match else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
