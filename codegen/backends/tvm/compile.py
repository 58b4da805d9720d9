"""TVM: TVMScript sources compiled through LLVM for CPUs, and to CUDA, for cards that need not be here."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codegen.backends import Resources
from codegen.backends.source_module import module_of
from codegen.backends.tvm import runtime as tvm_runtime
from codegen.backends.tvm import thread_owners
from codegen.backends.tvm.executable import NAME, compiler, compiler_or_fault, executable
from codegen.backends.tvm_cuda import nvcc
from codegen.cache.kernels import Entry, entry
from codegen.device import Device, cpu, cpu_identity
from codegen.errors import BackendUnavailableError, CompileError
from codegen.file_digest import digest_of_file, python_files
from codegen.interruption.uninterrupted import uninterrupted
from codegen.render import Source, render, template_digest
from codegen.schedules.cuda_block import block_of
from codegen.schedules.schedule import Schedule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Spec

if TYPE_CHECKING:
    import torch

    from codegen.backends.tvm_cuda.kernel import CompiledCuda

name = NAME

_PTXAS_REPORT = re.compile(r"(\d+) bytes stack frame.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?", re.DOTALL)


@dataclass(frozen=True)
class TvmKernel:
    """A compiled kernel; calling it copies nothing and releases the GIL.

    Attributes:
        name: of its template.
        function: TVM's function.
        threads: those of the schedule.
        library: the file that it was loaded from; None if it was compiled in memory.
    """

    name: str
    function: Any
    threads: int
    library: Path | None = None

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run `programs` independent programs on the threads of the schedule."""
        if self.threads > 1 and not tvm_runtime.limit_workers(self.threads):
            if thread_owners.lend(functools.partial(self, programs, *arguments)):
                return
            tvm_runtime.own_pool()
            tvm_runtime.limit_workers(self.threads)
        self.function(programs, *arguments)

    @staticmethod
    def held(tensor: torch.Tensor) -> Any:
        """TVM's own tensor, which shares the memory: otherwise each call makes one of each argument."""
        return tvm_runtime.load().from_dlpack(tensor.detach())


def why_unavailable(device: Device) -> str | None:
    """Why kernels for `device` cannot run in this process, in one sentence; None if they can."""
    if not _is_installed():
        return "the package apache-tvm is not installed (it comes with trellis-ops on Linux x86-64)"
    if device.kind == "cuda":
        from codegen.backends.tvm_cuda import compile as cuda

        return cuda.why_unavailable(device)
    if device.kind != "cpu":
        return f"TVM has templates for CPUs and CUDA, not for {device.key()}"
    if device != cpu():
        return f"this machine is {cpu().key()}, not {device.key()}"
    return tvm_runtime.why_broken()


def why_broken() -> str | None:
    """What keeps the installed TVM from running kernels, in one sentence; None if nothing does, or it is not installed.

    One that runs kernels may still be unable to compile any: kernels that were kept are found all the same.
    """
    return tvm_runtime.why_broken() if _is_installed() else None


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("tvm") is not None


def kernel(template: str, spec: Spec, schedule: Schedule, device: Device) -> TvmKernel | CompiledCuda:
    """The kernel for this machine's CPU or card, as an earlier process compiled it, or rendered, compiled and kept now.

    Raises:
        BackendUnavailableError: `device` is not of this machine, or TVM is missing.
        TemplateError: the template does not render.
        CompileError: TVM refused the source.
        SizeError: TRELLIS_OPS_CACHE_MEGABYTES is no size.
    """
    _require_available(device)
    if device.kind == "cuda":
        from codegen.backends.tvm_cuda import compile as cuda

        identity = _identity(template, spec, schedule, device)
        return cuda.kernel(template, identity, lambda: render(template, spec, schedule, device), device)
    place = entry(template, _identity(template, spec, schedule, device))
    if place is None:
        return compile(render(template, spec, schedule, device), spec, schedule, device)
    found = _loaded(place, template, schedule)
    if found is not None:
        return found
    with place.locked():
        # The process that had the lock before has compiled it, as like as not.
        return _loaded(place, template, schedule) or _compiled(
            place, render(template, spec, schedule, device), schedule
        )


def compile(source: Source, spec: Spec, schedule: Schedule, device: Device) -> TvmKernel | CompiledCuda:
    """Compile for the CPU or a card of this machine, in memory.

    Raises:
        BackendUnavailableError: `device` is not of this machine, or TVM is missing.
        CompileError: TVM refused the source.
    """
    _require_available(device)
    if device.kind == "cuda":
        from codegen.backends.tvm_cuda import compile as cuda

        return cuda.compiled(source, device)
    return TvmKernel(source.kernel, executable(source, device)[source.kernel], schedule.cpu_threads)


def inspect(source: Source, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    """The texts of each stage: "tir"; then "llir" and "asm" for a CPU; or "cuda" and, where nvcc is installed, "ptx".

    Raises:
        CompileError: TVM, or nvcc, refused the source.
    """
    made = executable(source, device)
    stages = {"tir": str(module_of(source, name).Module.script())}
    if device.kind == "cpu":
        return stages | {"llir": made.mod.inspect_source("ll"), "asm": made.mod.inspect_source("asm")}
    stages["cuda"] = str(made.mod.imports[0].inspect_source())
    if nvcc.is_here():
        stages["ptx"] = nvcc.run(stages["cuda"], source.path, device.arch, "--ptx")[0].decode()
    return stages


def resources(source: Source, spec: Spec, schedule: Schedule, device: Device) -> Resources:
    """What the compiler says the kernel needs: bytes of code on a CPU; registers, spills and shared memory for CUDA.

    Raises:
        BackendUnavailableError: CUDA without nvcc.
        CompileError: TVM, or nvcc, refused the source.
    """
    made = executable(source, device)
    if device.kind == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.o"
            made.mod.write_to_file(str(path), "o")
            return Resources(code_bytes=path.stat().st_size)
    text = str(made.mod.imports[0].inspect_source())
    ptx = nvcc.run(text, source.path, device.arch, "--ptx")[0].decode()
    _, report = nvcc.run(ptx, source.path, device.arch, "--cubin", "-Xptxas", "-v", language="ptx")
    found = _PTXAS_REPORT.search(report)
    if found is None:
        raise CompileError(backend=name, path=source.path, reason=f"nvcc reported no registers: {report}")
    spill_bytes, registers, static_bytes = (int(number or 0) for number in found.groups())
    assert isinstance(schedule, TvmSchedule)
    block = block_of(source.kernel, spec.problem, schedule)
    shared_bytes = static_bytes + block.shared_bytes
    return Resources(registers, spill_bytes, shared_bytes, mma=ptx.count("mma.sync."))


def why_no_resources(device: Device) -> str | None:
    """For CUDA, registers are what nvcc says."""
    return "nvcc is not on the PATH" if device.kind == "cuda" and not nvcc.is_here() else None


@functools.cache
def toolchain() -> dict[str, str]:
    """The version of TVM, which LLVM comes with: provenance of what this backend compiled. TVM is not imported."""
    try:
        return {"apache-tvm": importlib.metadata.version("apache-tvm")}
    except importlib.metadata.PackageNotFoundError:
        # Built from source and put on the path.
        return {"apache-tvm": str(getattr(compiler_or_fault()[0], "__version__", "unknown"))}


def _require_available(device: Device) -> None:
    reason = why_unavailable(device)
    if reason is not None:
        raise BackendUnavailableError(backend=name, reason=reason)


def _identity(template: str, spec: Spec, schedule: Schedule, device: Device) -> tuple[str, ...]:
    """All that decides the code of a kernel, known without rendering it.

    The records are taken with every field, so that none can be forgotten here; the CPU is what LLVM would look at when
    it is asked for code for this machine; and any change to the Python code of this package counts.
    """
    records = (repr(spec), repr(schedule), repr(device))
    versions = (*toolchain().values(), str(tvm_runtime.load().__version__))
    machine = (platform.system(), platform.machine(), cpu_identity())
    return (*records, template_digest(type(schedule), (template,), device), _code_digest(), *versions, *machine)


@functools.cache
def _code_digest() -> str:
    package = str(Path(__file__).resolve().parents[2])
    content = (file.removeprefix(package).encode() + b"\0" + digest_of_file(file) for file in python_files(package))
    return hashlib.sha256(b"".join(content)).hexdigest()


def _loaded(place: Entry, template: str, schedule: Schedule) -> TvmKernel | None:
    path = place.find()
    if path is None:
        return None
    try:
        # Ctrl-C within it would come out of TVM as a RuntimeError.
        with uninterrupted():
            function = tvm_runtime.load().load_module(path)[template]
    except (RuntimeError, AttributeError, OSError):
        return None  # Another system's libraries, say, in a folder that both share: it is made again.
    return TvmKernel(template, function, schedule.cpu_threads, path)


def _compiled(place: Entry, source: Source, schedule: Schedule) -> TvmKernel:
    made = executable(source, cpu())

    def export(path: Path) -> None:
        if compiler().support.cc.get_cc() is None:
            raise FileNotFoundError("there is no C compiler on the PATH to link them")
        # What is interrupted in the removal of TVM's temporary files, or in a call from TVM to Python, is lost.
        with uninterrupted():
            made.export_library(str(path))

    kept = place.store(export)
    found = None if kept is None else _loaded(place, source.kernel, schedule)
    return found or TvmKernel(source.kernel, made[source.kernel], schedule.cpu_threads)
