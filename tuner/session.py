"""What all measurements of one run share."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

from optuna.storages import RDBStorage

from codegen.backends import backend as compiler
from codegen.device import Device
from codegen.schedule import BACKENDS
from tuner.budget import Budget
from tuner.errors import NoBackendError
from tuning_db import Store


@dataclass(frozen=True)
class Session:
    """One run on one machine.

    Attributes:
        device: the machine.
        backend: the compiler whose kernels are measured.
        storage: of the studies.
        store: where winners go.
        budget: for each spec.
        with_compile: whether `torch.compile` is measured too.
        source: the command that runs, for the records.
        final_seconds: how long the finals of one spec last, compilation aside.
    """

    device: Device
    backend: str
    storage: RDBStorage
    store: Store
    budget: Budget
    with_compile: bool = False
    source: str = "python -m tuner tune"
    final_seconds: float = 3.0


def backend_for(device: Device, wanted: str | None = None) -> str:
    """The backend whose kernels can run on `device` in this process.

    Raises:
        NoBackendError: there is none, or `wanted` is not it; the message says why.
    """
    reasons = []
    for name in BACKENDS if wanted is None else (wanted,):
        if device.kind == "cpu" and name == "triton":
            reasons.append("triton: its interpreter runs on a CPU, but is no kernel to be timed")
            continue
        reason = compiler(name).why_unavailable(device)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise NoBackendError(device=device.key(), reasons="; ".join(reasons))


def toolchain(backend: str) -> dict[str, str]:
    """Versions of everything that had a part in a measurement."""
    packages = {name: version(name) for name in ("torch", "optuna")}
    return {"python": platform.python_version(), **packages, **compiler(backend).toolchain()}
