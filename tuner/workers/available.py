"""What can be tuned on this machine: its device, and the backend whose kernels run there.

Asking may start a GPU's driver, so the tuner has a worker do it.
"""

from __future__ import annotations

import torch

from codegen.backends import backend as compiler
from codegen.device import Device, cpu, cuda_device, named
from codegen.schedules.registry import backends, kind_of
from tuner.errors import MissingGpuError, NoBackendError


def may_have_gpu() -> bool:
    """Whether this build of torch could run on a GPU at all; starts no driver."""
    return torch.version.cuda is not None or torch.version.hip is not None


def device_here(name: str | None) -> Device:
    """The device that a command is about: the one named, or the GPU if there is one, or else the CPU.

    Raises:
        UnknownDeviceError: no device has that name.
        MissingGpuError: "cuda" was asked for, and torch sees none.
    """
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return cpu()
    if name == "cuda" and not torch.cuda.is_available():
        built = "its driver finds no card" if may_have_gpu() else "this build of torch has no support for any"
        raise MissingGpuError(name=name, reason=built)
    return cuda_device(0) if name in (None, "cuda") else named(name)


def backend_for(device: Device, wanted: str | None = None) -> str:
    """The backend whose kernels can run on `device` in this process.

    Raises:
        NoBackendError: there is none, or `wanted` is not it; the message says why.
    """
    reasons = []
    for name in backends() if wanted is None else (wanted,):
        reason = kind_of(name).why_untimed(device) or compiler(name).why_unavailable(device)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise NoBackendError(device=device.key(), reasons="; ".join(reasons))
