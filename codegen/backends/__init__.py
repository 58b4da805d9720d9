"""The compilers behind one small protocol, each imported only when it is asked for."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from codegen.device import Device
from codegen.interruption.whole_imports import whole_imports
from codegen.render import Source
from codegen.schedules.registry import kind_of
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Resources:
    """What the compiler says a kernel needs; None where the target has no such number.

    Attributes:
        registers: per thread.
        spill_bytes: of stack per thread.
        shared_bytes: per block, static and dynamic.
        code_bytes: of machine code.
        mma: instructions for matrix products of one warp.
        wgmma: instructions for matrix products of a warp group, which Hopper has.
    """

    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    code_bytes: int | None = None
    mma: int | None = None
    wgmma: int | None = None


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run `programs` independent programs; outputs are arguments, written in place."""


def held(kernel: Kernel, tensor: torch.Tensor) -> Any:
    """`tensor` as `kernel` takes it with the least work in each of many calls, sharing and keeping its memory.

    That of a kernel with a method `held`, and the tensor itself for any other.
    """
    own = getattr(kernel, "held", None)
    return tensor if own is None else own(tensor)


class Backend(Protocol):
    """A compiler that turns a Source into a Kernel."""

    name: str

    def why_unavailable(self, device: Device) -> str | None:
        """Why kernels for `device` cannot run in this process, in one sentence; None if they can."""

    def why_broken(self) -> str | None:
        """What is wrong with an installed package that cannot be loaded; None if it can, or is not installed."""

    def kernel(self, template: str, spec: Spec, schedule: Schedule, device: Device) -> Kernel:
        """The kernel of that template, ready to be called: rendered and compiled, or kept from an earlier process."""

    def compile(self, source: Source, spec: Spec, schedule: Schedule, device: Device) -> Kernel:
        """Compile for a device that is here, ready to be called."""

    def inspect(self, source: Source, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
        """Compile for a device that need not be here; the texts of each stage by name ("asm", "ptx", ...)."""

    def resources(self, source: Source, spec: Spec, schedule: Schedule, device: Device) -> Resources:
        """Compile for a device that need not be here; what the compiler says the kernel needs."""

    def why_no_resources(self, device: Device) -> str | None:
        """What `resources` lacks here to compile for `device`, in one sentence; None if nothing."""

    def toolchain(self) -> dict[str, str]:
        """Package name to version: provenance of what this backend compiled."""


def backend(name: str) -> Backend:
    """The backend called `name`; its compiler is imported no earlier than its first use.

    Raises:
        UnknownBackendError: no such backend.
    """
    return _imported(kind_of(name).compiler)


@functools.cache
def _imported(module: str) -> Backend:
    with whole_imports():
        return cast(Backend, importlib.import_module(module))
