"""TVM's kernels for CUDA, in the process that calls them: lowered by TVM, assembled by nvcc, kept on disk."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from codegen.backends.tvm.launch import lowered
from codegen.backends.tvm_cuda import nvcc
from codegen.backends.tvm_cuda.kernel import CompiledCuda
from codegen.backends.tvm_cuda.launch import LaunchPlan
from codegen.cache.kernels import Entry, entry
from codegen.device import Device, cuda_device
from codegen.render import Source


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a kernel on disk."""

    plan: LaunchPlan
    image: bytes


def why_unavailable(device: Device) -> str | None:
    """Why kernels for a card cannot run in this process, in one sentence; None if they can."""
    import torch

    if not torch.cuda.is_available():
        return f"torch sees no GPU here, so nothing runs on {device.key()}"
    here = [cuda_device(index).key() for index in range(torch.cuda.device_count())]
    if device.key() not in here:
        return f"the cards of this machine are {', '.join(here)}, not {device.key()}"
    return None if nvcc.is_here() else "nvcc is not on the PATH: install the CUDA toolkit, which it comes with"


def kernel(template: str, identity: tuple[str, ...], render: Callable[[], Source], device: Device) -> CompiledCuda:
    """A kernel as an earlier process has kept it, or compiled and kept now.

    Args:
        template: its name.
        identity: all that decides its code, but nvcc.
        render: its source, asked for if it is not kept.
        device: the card it is for.

    Raises:
        TemplateError, CompileError: it does not render, or TVM or nvcc refused the source.
    """
    place = entry(template, (*identity, *nvcc.toolchain().values()))
    if place is None:
        return compiled(render(), device)
    found = _found(place)
    if found is not None:
        return found
    with place.locked():
        # The process that had the lock before has compiled it, as like as not.
        found = _found(place)
        if found is None:
            found = compiled(render(), device)
            content = msgspec.msgpack.encode(_Kept(found.plan, found.image))
            place.store(lambda path: path.write_bytes(content))
        return found


def compiled(source: Source, device: Device) -> CompiledCuda:
    """A rendered kernel, compiled for a card that need not be here.

    Raises:
        BackendUnavailableError: nvcc is not on the PATH.
        CompileError: TVM or nvcc refused the source.
    """
    made = lowered(source, device)
    return CompiledCuda(made.plan, nvcc.cubin_of(made.cuda, source.path, device.arch))


def _found(place: Entry) -> CompiledCuda | None:
    content = place.content()
    if content is None:
        return None
    try:
        kept = msgspec.msgpack.decode(content, type=_Kept)
    except msgspec.MsgspecError:
        return None  # Another version's: it is made again.
    return CompiledCuda(kept.plan, kept.image)
