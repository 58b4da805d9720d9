"""Kernels of TVM for CUDA, run on this CPU: their generated source, compiled as C++ with `emulated_cuda.h`.

Arithmetic and order of the sums are those of the generated source; what nvcc makes of it is not run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codegen.backends.tvm.executable import executable
from codegen.device import NAMED, Device
from codegen.kernels.build import parts
from codegen.kernels.operator import CompiledOperator
from codegen.render import Source, render
from codegen.schedules.legality import require_legal
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Spec

HEADER = Path(__file__).parent / "emulated_cuda.h"
COMPILER = "g++"
COMPILE = (COMPILER, "-std=c++17", "-O1", "-w", "-fPIC")
HOPPER = NAMED["sm_90"]

_SIGNATURE = re.compile(r"__launch_bounds__\((\d+)[^)]*\) (\w+)\(([^)]*)\) \{")
_BETWEEN_LITERALS = re.compile(r'"\s*\n\s*"')
_ASSEMBLY = re.compile(r'asm(?: volatile)?\(\s*"([\w.]+) ([^"]*);"\s*:\s*(.*?)\s*:\s*(.*?)\);', re.DOTALL)
_CONSTRAINT = re.compile(r'"[=+]?[rf]"')
_ARGUMENT = re.compile(r"def (\w+)\((.*?)\):", re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """One of the CUDA kernel's: of a tensor's address if it is a pointer, else a number."""

    name: str
    is_pointer: bool


@dataclass(frozen=True)
class EmulatedKernel:
    """A kernel as any backend gives it, whose blocks and threads run in turn.

    Attributes:
        library: compiled from the generated source.
        names: of the arguments that it is called with.
        parameters: of the CUDA kernel, in its order.
    """

    library: ctypes.CDLL
    names: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run it in both orders of the threads, which must give the same."""
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        before = [x.clone() for x in tensors]
        self._run(programs, arguments, backwards=True)
        other = [x.clone() for x in tensors]
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)
        self._run(programs, arguments, backwards=False)
        for tensor, values in zip(tensors, other, strict=True):
            assert torch.equal(tensor.nan_to_num(), values.nan_to_num()), "the order of the threads changes the result"

    def _run(self, programs: int, arguments: Sequence[torch.Tensor | int], backwards: bool) -> None:
        given = dict(zip(self.names, (programs, *arguments), strict=True))
        heads = next(x.shape[1] for x in given.values() if isinstance(x, torch.Tensor) and x.dim() == 3)
        passed: list[Any] = []
        for parameter in self.parameters:
            value = given.get(parameter.name, heads)
            assert isinstance(value, torch.Tensor) == parameter.is_pointer, parameter.name
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous()
                passed.append(ctypes.c_void_p(value.data_ptr()))
            else:
                assert parameter.name in given or parameter.name == "heads", parameter.name
                passed.append(ctypes.c_int(value))
        self.library.run(ctypes.c_int(programs), ctypes.c_int(backwards), *passed)


def emulated(spec: Spec, schedule: TvmSchedule, device: Device = HOPPER) -> CompiledOperator:
    """The compiled operator that would run on `device`, with kernels that run here."""
    require_legal(spec, schedule, device)
    kernels = tuple(_kernel(render(kernel, part, schedule, device), device) for kernel, part in parts(spec, schedule))
    return CompiledOperator(spec, schedule, device, kernels)


def _kernel(source: Source, device: Device) -> EmulatedKernel:
    return _compiled(str(executable(source, device).mod.imports[0].inspect_source()), source.text)


@functools.cache
def _compiled(cuda: str, script: str) -> EmulatedKernel:
    threads, name, declared = signature(cuda)
    parameters = tuple(_parameter(each) for each in declared.split(","))
    call = f"{name}({', '.join(f'a{i}' for i in range(len(parameters)))})"
    types = ", ".join(f"{each.rpartition(' ')[0]} a{i}" for i, each in enumerate(declared.split(",")))
    text = (
        f"{as_cpp(cuda)}\n"
        f'extern "C" void run(int blocks, int backwards, {types}) {{\n'
        f"  launch(blocks, {threads}, backwards, [=] {{ {call}; }});\n}}\n"
    )
    return EmulatedKernel(ctypes.CDLL(str(library(text))), _arguments(script, name.removesuffix("_kernel")), parameters)


def signature(cuda: str) -> tuple[str, str, str]:
    """Threads of a block, name, and declared parameters of the kernel in a CUDA source."""
    found = _SIGNATURE.search(cuda)
    assert found is not None
    threads, name, declared = found.groups()
    return threads, name, declared


def as_cpp(cuda: str) -> str:
    """A CUDA source as C++, but for what starts its kernel, and for what TVM puts first, which ends in an #endif."""
    start = cuda.rindex("#endif", 0, cuda.index('extern "C" __global__')) + len("#endif")
    text = _ASSEMBLY.sub(_as_call, _BETWEEN_LITERALS.sub("", cuda[start:]))
    text = text.replace("extern __shared__", "extern").replace("__shared__", "")
    return f'#include "{_folder().name}/{HEADER.name}"\n{text}'


def _as_call(statement: re.Match[str]) -> str:
    instruction, written, outputs, inputs = statement.groups()
    numbers = [int(number) for number in re.findall(r"%(\d)", written)]
    operands = _CONSTRAINT.sub("", f"{outputs}, {inputs}")
    # Sums come as the first operand and the last: the others are given once, in order.
    assert numbers == [*range(max(numbers) + 1), *range(4 if "mma" in instruction else 0)], written
    return f"{instruction.replace('.', '_')}({operands});"


def _parameter(declared: str) -> Parameter:
    name = declared.split()[-1]
    return Parameter(name.removesuffix("_ptr"), "*" in declared)


def _arguments(script: str, name: str) -> tuple[str, ...]:
    listed = next(found for found in _ARGUMENT.finditer(script) if found.group(1) == name).group(2)
    return tuple(each.split(":")[0].strip().removesuffix("_") for each in listed.split(",") if each.strip())


def library(text: str) -> Path:
    """The library that `text` is compiled to."""
    path = Path(_folder().name) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path  # Perhaps loaded.
    path.with_suffix(".cc").write_text(text)
    _compile("-shared", "-o", str(path), str(path.with_suffix(".cc")))
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Of the libraries, and of the header in compiled form, whose compilation would be most of each library's."""
    folder = tempfile.TemporaryDirectory(prefix="trellis-ops-emulated-")
    header = shutil.copy(HEADER, folder.name)
    _compile("-x", "c++-header", "-o", f"{header}.gch", header)
    return folder


def _compile(*arguments: str) -> None:
    finished = subprocess.run([*COMPILE, *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[:4000]
