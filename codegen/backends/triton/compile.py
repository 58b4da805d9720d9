"""Triton: sources compiled for NVIDIA and AMD GPUs, here or not, or interpreted on CPU tensors (TRITON_INTERPRET=1).

Triton decides when it is imported whether it compiles or interprets, so one process does one of the two.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from codegen.backends import Resources
from codegen.backends.source_module import module_of
from codegen.backends.triton import descriptors as triton_descriptors
from codegen.device import Device, cuda_device
from codegen.errors import BackendUnavailableError, CompileError
from codegen.interruption.whole_imports import whole_imports
from codegen.kernels.declared import kernel_arguments
from codegen.kernels.signatures import dtype_of
from codegen.render import Source, render
from codegen.schedules.schedule import Schedule
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec

name = "triton"

_PTXAS_VARIABLE = "TRITON_PTXAS_PATH"
_POINTER_TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32", "int64": "*i64"}
_ALIGNMENT = 16
# For AMD what is compiled without tensors takes each of them for one of at most so many bytes, and offsets for 32 bits.
_SHORT_BYTES = 2**31 - 1 if torch.version.hip else None
_STAGES = {"cuda": ("ttir", "ttgir", "llir", "ptx"), "hip": ("ttir", "ttgir", "llir", "amdgcn")}


@dataclass(frozen=True)
class InterpretedKernel:
    """A kernel that Triton's interpreter runs, one program after the other; see `CompiledKernel`."""

    source: Source
    function: Any
    described: tuple[int, ...]
    told_heads: bool

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run `programs` programs."""
        if self.described:
            arguments = triton_descriptors.aligned(arguments, self.described)
        self.function[(programs,)](*arguments, *_heads(arguments, self.told_heads))


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel on a GPU.

    Attributes:
        source: what it was compiled from.
        function: what recompiles for another GPU, another type or another alignment, at some 30 us a call more.
        compiled: `function` for the tensor types `types`, aligned to 16 bytes, on GPU number `gpu`.
        num_warps: warps per program.
        described: places of the arguments that it reads through tensor descriptors.
        told_heads: whether the number of heads is its last argument; it is a constant of the kernels of layers.
    """

    source: Source
    function: Any
    compiled: Any
    types: tuple[torch.dtype | None, ...]
    gpu: int
    num_warps: int
    described: tuple[int, ...]
    told_heads: bool

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Launch `programs` programs on the current stream of the tensors' GPU."""
        if self.described:
            triton_descriptors.provide_memory()
            arguments = triton_descriptors.aligned(arguments, self.described)
        if self._fits(arguments):
            self.compiled[(programs, 1, 1)](*arguments, *_heads(arguments, self.told_heads))
            return
        first = arguments[0]
        assert isinstance(first, torch.Tensor)
        with torch.cuda.device(first.device):
            heads = _heads(arguments, self.told_heads)
            self.function[(programs,)](*arguments, *heads, num_warps=self.num_warps)

    def _fits(self, arguments: tuple[torch.Tensor | int, ...]) -> bool:
        if torch.cuda.current_device() != self.gpu:
            return False
        for argument, dtype in zip(arguments, self.types, strict=True):
            if isinstance(argument, torch.Tensor) and (
                argument.dtype is not dtype or argument.get_device() != self.gpu or argument.data_ptr() % _ALIGNMENT
            ):
                return False
        return _SHORT_BYTES is None or are_short(arguments, _SHORT_BYTES)


def are_short(arguments: tuple[torch.Tensor | int, ...], most: int) -> bool:
    """Whether no tensor lies in more than `most` bytes."""
    return all(not isinstance(x, torch.Tensor) or x.untyped_storage().nbytes() <= most for x in arguments)


def why_unavailable(device: Device) -> str | None:
    """Why kernels for `device` cannot run in this process, in one sentence; None if they can."""
    try:
        interprets = _interprets()
    except BackendUnavailableError as error:
        return str(error.reason)
    if interprets:
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
        _triton()
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
    if _interprets():
        return InterpretedKernel(source, function, described, told_heads)
    types = [
        getattr(torch, dtype_of(argument, spec, schedule)) if argument.is_tensor else None for argument in arguments
    ]
    num_warps = _num_warps(schedule)
    try:
        with _assembled_by(schedule):
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


def toolchain() -> dict[str, str]:
    """Versions of Triton and of the assemblers that a schedule may choose; TRITON_PTXAS_PATH names another standard."""
    triton = _triton()
    tools = triton.knobs.nvidia
    origin = _PTXAS_VARIABLE if os.environ.get(_PTXAS_VARIABLE) == tools.ptxas.path else "bundled"
    standard, blackwell = _version(tools.ptxas), _version(tools.ptxas_blackwell)
    return {"triton": str(triton.__version__), "ptxas": f"{standard} ({origin})", "ptxas-blackwell": blackwell}


def _version(tool: Any) -> str:
    banner = subprocess.run([tool.path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)+)", banner)
    return version.group(1) if version else str(tool.version)


@contextlib.contextmanager
def _assembled_by(schedule: Schedule) -> Iterator[None]:
    """Within it Triton takes the assembler of `schedule`."""
    if not isinstance(schedule, TritonSchedule) or schedule.ptxas == "standard":
        yield
        return
    before, chosen = os.environ.get(_PTXAS_VARIABLE), _triton().knobs.nvidia.ptxas_blackwell.path
    try:
        os.environ[_PTXAS_VARIABLE] = chosen
        _forget_ptxas()
        yield
    finally:
        os.environ.pop(_PTXAS_VARIABLE, None)
        if before is not None:
            os.environ[_PTXAS_VARIABLE] = before
        _forget_ptxas()


def _forget_ptxas() -> None:
    # Its version, which Triton looks up once, is a part of the name under which a kernel is kept on the disk.
    from triton.backends.nvidia import compiler

    compiler.get_ptxas_version.cache_clear()


def _compiled(source: Source, spec: Spec, schedule: Schedule, device: Device) -> Any:
    if device.kind == "cpu":
        raise BackendUnavailableError(backend=name, reason="Triton compiles for GPUs only; name one, such as sm_90")
    triton = _triton()
    if _interprets():
        reason = "this process interprets Triton kernels; unset TRITON_INTERPRET to compile them"
        raise BackendUnavailableError(backend=name, reason=reason)
    function = getattr(module_of(source, name), source.kernel)
    types = _signature(source.kernel, spec, schedule)
    aligned = {(i,): [["tt.divisibility", _ALIGNMENT]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    try:
        with _assembled_by(schedule):
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


def _heads(arguments: tuple[torch.Tensor | int, ...], told: bool) -> tuple[int, ...]:
    """The number of heads, for a kernel that is told it."""
    # The first argument of such a kernel is a tensor [B*T, H, .].
    first = arguments[0]
    assert isinstance(first, torch.Tensor)
    return (first.shape[1],) if told else ()


def _cuobjdump(compiled: Any, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [_triton().knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text)
    return int(match.group(1)) if match else None


def _interprets() -> bool:
    # Asks what triton.jit made of Triton's own functions: decided at import, whatever the environment says now.
    triton = _triton()
    return not isinstance(triton.language.sigmoid, triton.JITFunction)


def _triton() -> Any:
    try:
        with whole_imports():
            import triton
    except Exception as error:
        reason = f"the package triton (it comes with trellis-ops on Linux x86-64) cannot be imported: {error}"
        raise BackendUnavailableError(backend=name, reason=reason) from error
    return triton


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
