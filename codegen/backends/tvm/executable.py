"""What TVM makes of a source: a host function, and for CUDA its kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from codegen.backends.source_module import module_of
from codegen.backends.tvm import runtime as tvm_runtime
from codegen.device import Device, cpu
from codegen.errors import BackendUnavailableError, CompileError
from codegen.interruption.uninterrupted import uninterrupted
from codegen.render import Source

NAME = "tvm"

_FOREIGN_TARGETS: dict[str, dict[str, Any]] = {"aarch64": {"mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}}
# Buffers are as small as they can be, and LLVM finds the rest: a third of TVM's time, and kernels as fast without.
_USELESS_PASSES = ["s_tir.CompactBufferAllocation", "s_tir.HoistIfThenElse", "tirx.CommonSubexprElim"]


def executable(source: Source, device: Device, instruments: Sequence[Any] = ()) -> Any:
    """What TVM makes of `source`, for a device that need not be here: TVM's host function, and for CUDA its kernel.

    Args:
        instruments: look on while TVM's passes run, see `tvm.instrument.pass_instrument`.

    Raises:
        CompileError: TVM refused the source.
    """
    tvm = compiler()
    # TVM's parser has an `except:` that would swallow Ctrl-C.
    with uninterrupted():
        module = module_of(source, NAME)
    on_cuda = device.kind == "cuda"
    # CUDA kernels place every barrier and buffer themselves; the few passes of "tirx" leave both where they are.
    options = {"tir_pipeline": "tirx"} if on_cuda else {}
    useless = [] if on_cuda else _USELESS_PASSES
    try:
        # Ctrl-C in a pass that is Python would come out of TVM as a RuntimeError that says nothing.
        with uninterrupted(), tvm.transform.PassContext(disabled_pass=useless, instruments=[*instruments]):
            return tvm.compile(module.Module, target=_target(device), **options)
    except Exception as error:
        raise CompileError(backend=NAME, path=source.path, reason=f"{type(error).__name__}: {error}") from error


def _target(device: Device) -> Any:
    tvm = compiler()
    if device.kind == "cuda":
        return tvm.target.Target({"kind": "cuda", "arch": device.arch}, host={"kind": "llvm"})
    if device.arch in _FOREIGN_TARGETS:
        return tvm.target.Target({"kind": "llvm", **_FOREIGN_TARGETS[device.arch]})
    mcpu = tvm.target.codegen.llvm_get_system_cpu() if device == cpu() else device.arch
    # For many processors LLVM halves 512-bit vectors on its own account; how wide they are is for the schedule to say.
    mattr = ["-prefer-256-bit"] if device.vector_bits == 512 else []
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "mattr": mattr})


def compiler() -> Any:
    """The package tvm, made faster.

    Raises:
        BackendUnavailableError: it cannot be imported.
    """
    found, fault = compiler_or_fault()
    if found is None:
        raise BackendUnavailableError(backend=NAME, reason=fault)
    return found


@functools.cache
def compiler_or_fault() -> tuple[Any, str]:
    """The package tvm, or what keeps it from being imported: half an import later it would be something else."""
    try:
        found = tvm_runtime.compiler()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".replace("\n", " ")
        return None, f"the package tvm, which compiles, cannot be imported ({said}); install apache-tvm again"
    return found, ""
