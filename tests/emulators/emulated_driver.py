"""Exported operators run on this CPU: the real launcher, a CUDA driver that is emulated, kernels that are emulated."""

from __future__ import annotations

import ctypes
import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from codegen.backends.tvm_cuda.driver import CudaDriver
from codegen.backends.tvm_cuda.kernel import Place
from codegen.device import cpu
from codegen.kernels.exports.exported import load, read_manifest
from codegen.kernels.operator import CompiledOperator
from tests.emulators.emulated_cuda import as_cpp, library, signature

SOURCE = Path(__file__).parent / "emulated_driver.cc"
STREAM = 0x5EA


@dataclass(frozen=True)
class Recorded:
    """One launch as the driver saw it."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    stream: int
    values: tuple[int, ...]


class EmulatedDriver:
    """The driver, and what it can be asked afterwards."""

    def __init__(self) -> None:
        path = library(SOURCE.read_text())
        self.driver = CudaDriver(str(path))
        self._library = ctypes.CDLL(str(path))
        self._library.launched.restype = ctypes.c_char_p

    def place(self) -> Place:
        return Place(self.driver, torch.device("cpu"), lambda: STREAM)

    def forget(self) -> None:
        self._library.forget()

    def fail_at(self, call: str, code: int) -> None:
        self._library.fail_at(call.encode(), code)

    def launches(self) -> list[Recorded]:
        return [self._recorded(number) for number in range(self._library.launches())]

    def _recorded(self, number: int) -> Recorded:
        numbers = (ctypes.c_longlong * 64)()
        count = self._library.numbers_of(number, numbers)
        name = self._library.launched(number).decode()
        return Recorded(
            name, tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], numbers[7], tuple(numbers[8 : 8 + count])
        )


@functools.cache
def driver() -> EmulatedDriver:
    return EmulatedDriver()


def emulated_export(folder: Path, into: Path) -> Path:
    """A copy of the export in `folder` whose machine code is for the emulated driver."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    for part in read_manifest(folder).parts:
        (into / f"{part.file}.cubin").write_bytes(emulated_image((folder / f"{part.file}.cu").read_text()))
    return into


def emulated_image(cuda: str) -> bytes:
    """Machine code of some CUDA source for the emulated driver."""
    return str(library(_with_entry(cuda))).encode() + b"\0"


def emulated_operator(folder: Path, into: Path) -> CompiledOperator:
    """The compiled operator of an export, which runs here."""
    return load(emulated_export(folder, into), cpu(), driver().place())


def _with_entry(cuda: str) -> str:
    """The kernel as C++, started as the driver starts one: each parameter is where a pointer points to."""
    _, name, declared = signature(cuda)
    types = [each.rpartition(" ")[0].replace("__restrict__", "").strip() for each in declared.split(",")]
    given = ", ".join(f"*static_cast<{kind} *>(p[{place}])" for place, kind in enumerate(types))
    sizes = ", ".join(f"sizeof({kind})" for kind in types)
    return (
        f"{as_cpp(cuda)}\n"
        f'extern "C" const char kernel_name[] = "{name}";\n'
        f'extern "C" const int parameter_count = {len(types)};\n'
        f'extern "C" const int parameter_bytes[] = {{{sizes}}};\n'
        f'extern "C" void run(int blocks, int threads, void **p) {{\n'
        f"  launch(blocks, threads, false, [=] {{ {name}({given}); }});\n}}\n"
    )
