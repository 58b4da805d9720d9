"""The machine, the versions and the settings that a comparison was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from codegen.device import Device, cpu, cuda_device

_PACKAGES = ("torch", "triton", "apache-tvm", "apache-tvm-ffi", "pytest-benchmark")
_THREAD_VARIABLES = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TVM_NUM_THREADS", "TVM_BIND_THREADS")


def here() -> Device:
    """What is compared on: the first GPU that torch has, else the CPU."""
    return cuda_device(torch.cuda.current_device()) if torch.cuda.is_available() else cpu()


def versions() -> dict[str, str]:
    """Package name to version, "-" where it is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def threads() -> dict[str, str]:
    """How many threads torch uses, and what says how they and TVM's wait; TVM's are set when it is imported."""
    variables = {name: os.environ.get(name, "unset") for name in _THREAD_VARIABLES}
    return {"torch threads": str(torch.get_num_threads()), **variables}


def load() -> str:
    """Processes that wanted a core over the last 1, 5 and 15 minutes, this one included."""
    if not hasattr(os, "getloadavg"):
        return "not known on this system"
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
