"""TVM: TVMScript sources compiled through LLVM for CPUs, and to CUDA for devices that need not be here."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from codegen.backends import Resources
from codegen.backends.source_module import module_of
from codegen.device import Device, cpu
from codegen.errors import BackendUnavailableError, CompileError
from codegen.render import Source
from codegen.schedule import Schedule
from codegen.spec import Spec

if TYPE_CHECKING:
    import torch

name = "tvm"

_FOREIGN_TARGETS: dict[str, dict[str, Any]] = {"aarch64": {"mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}}
_PTXAS_REPORT = re.compile(r"(\d+) bytes stack frame.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?", re.DOTALL)


@dataclass(frozen=True)
class TvmKernel:
    """A compiled kernel; calling it copies nothing and releases the GIL."""

    source: Source
    function: Any

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run `programs` independent programs on the threads of the schedule."""
        self.function(programs, *arguments)


def why_unavailable(device: Device) -> str | None:
    """Why kernels for `device` cannot run in this process, in one sentence; None if they can."""
    if importlib.util.find_spec("tvm") is None:
        return "the package apache-tvm is not installed (it comes with trellis-ops on Linux x86-64)"
    if device.kind != "cpu":
        return f"TVM kernels run on CPU tensors in this version, not on {device.key()}"
    if device != cpu():
        return f"this machine is {cpu().key()}, not {device.key()}"
    return None


def compile(source: Source, spec: Spec, schedule: Schedule, device: Device) -> TvmKernel:
    """Compile for the CPU of this machine.

    Raises:
        BackendUnavailableError: `device` is not this machine's CPU, or TVM is missing.
        CompileError: TVM refused the source.
    """
    reason = why_unavailable(device)
    if reason is not None:
        raise BackendUnavailableError(backend=name, reason=reason)
    return TvmKernel(source, _executable(source, device)[source.kernel])


def inspect(source: Source, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    """The texts of each stage: "tir"; then "llir" and "asm" for a CPU; or "cuda" and, where nvcc is installed, "ptx".

    Raises:
        CompileError: TVM, or nvcc, refused the source.
    """
    executable = _executable(source, device)
    stages = {"tir": str(module_of(source, name).Module.script())}
    if device.kind == "cpu":
        return stages | {"llir": executable.mod.inspect_source("ll"), "asm": executable.mod.inspect_source("asm")}
    stages["cuda"] = str(executable.mod.imports[0].inspect_source())
    if shutil.which("nvcc"):
        stages["ptx"] = _nvcc(source, stages["cuda"], device, "--ptx")[0]
    return stages


def resources(source: Source, spec: Spec, schedule: Schedule, device: Device) -> Resources:
    """What the compiler says the kernel needs: bytes of code on a CPU; registers, spills and shared memory for CUDA.

    Raises:
        BackendUnavailableError: CUDA without nvcc.
        CompileError: TVM, or nvcc, refused the source.
    """
    executable = _executable(source, device)
    if device.kind == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.o"
            executable.mod.write_to_file(str(path), "o")
            return Resources(code_bytes=path.stat().st_size)
    if not shutil.which("nvcc"):
        raise BackendUnavailableError(backend=name, reason="nvcc, which reports registers, is not on the PATH")
    _, report = _nvcc(source, str(executable.mod.imports[0].inspect_source()), device, "--cubin", "-Xptxas", "-v")
    found = _PTXAS_REPORT.search(report)
    if found is None:
        raise CompileError(backend=name, path=source.path, reason=f"nvcc reported no registers: {report}")
    spill_bytes, registers, shared_bytes = (int(number or 0) for number in found.groups())
    return Resources(registers=registers, spill_bytes=spill_bytes, shared_bytes=shared_bytes)


def toolchain() -> dict[str, str]:
    """Versions of TVM and of the LLVM inside it: provenance of what this backend compiled."""
    tvm = _tvm()
    return {"apache-tvm": str(tvm.__version__), "llvm": str(tvm.target.codegen.llvm_version_major())}


def _executable(source: Source, device: Device) -> Any:
    tvm = _tvm()
    module = module_of(source, name)
    try:
        return tvm.compile(module.Module, target=_target(device))
    except Exception as error:
        raise CompileError(backend=name, path=source.path, reason=f"{type(error).__name__}: {error}") from error


def _target(device: Device) -> Any:
    tvm = _tvm()
    if device.kind == "cuda":
        return tvm.target.Target({"kind": "cuda", "arch": device.arch}, host={"kind": "llvm"})
    if device.arch in _FOREIGN_TARGETS:
        return tvm.target.Target({"kind": "llvm", **_FOREIGN_TARGETS[device.arch]})
    mcpu = tvm.target.codegen.llvm_get_system_cpu() if device == cpu() else device.arch
    # For many processors LLVM halves 512-bit vectors on its own account; how wide they are is for the schedule to say.
    mattr = ["-prefer-256-bit"] if device.vector_bits == 512 else []
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "mattr": mattr})


def _nvcc(source: Source, text: str, device: Device, *flags: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "kernel.cu", Path(folder) / "kernel.out"
        given.write_text(text)
        command = ["nvcc", *flags, f"-arch={device.arch}", "-O3", "-o", str(made), str(given)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise CompileError(backend=name, path=source.path, reason=finished.stderr.strip())
        return made.read_text(errors="replace"), finished.stderr


def _tvm() -> Any:
    # The thread pool reads these when it starts. Pinning would bind the caller, and torch threads made later, to the
    # first cores; spinning would burn the cores that torch needs between two calls.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(cpu().cores))
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")
    import tvm

    _find_parsers_quickly()
    return tvm


@functools.cache
def _find_parsers_quickly() -> None:
    # An inlined function finds its parser by inspect.getouterframes, which looks up the source lines of every frame of
    # the stack: two thirds of the time that a kernel takes to parse. The frames alone say as much.
    from tvm.script.parser.core.parser import ScriptMacro

    def find_parser(macro: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            parser = frame.f_globals.get(macro.parser_object_name)
            if parser is not None:
                return parser
            frame = frame.f_back
        raise RuntimeError(f"{macro.parser_object_name} not available")

    ScriptMacro._find_parser_def = find_parser
