"""What all measurements of one run share."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

from optuna.storages import RDBStorage

from codegen.backends import backend as compiler
from codegen.device import Device
from tuner.budget import Budget
from tuner.pool import Workers
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
        workers: the processes that compile, check and time.
        with_compile: whether `torch.compile` is measured too.
        source: the command that runs, for the records.
        final_seconds: how long the finals of one spec last, compilation aside.
    """

    device: Device
    backend: str
    storage: RDBStorage
    store: Store
    budget: Budget
    workers: Workers
    with_compile: bool = False
    source: str = "python -m tuner tune"
    final_seconds: float = 3.0


def toolchain(backend: str) -> dict[str, str]:
    """Versions of everything that had a part in a measurement."""
    packages = {name: version(name) for name in ("torch", "optuna")}
    return {"python": platform.python_version(), **packages, **compiler(backend).toolchain()}
