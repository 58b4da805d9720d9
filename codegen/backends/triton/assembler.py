"""The assemblers that Triton brings, which a schedule chooses from, and the versions of all that compiles."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from codegen.backends.triton.package import imported
from codegen.schedules.schedule import Schedule
from codegen.schedules.triton import TritonSchedule

_PTXAS_VARIABLE = "TRITON_PTXAS_PATH"


def toolchain() -> dict[str, str]:
    """Versions of Triton and of the assemblers that a schedule may choose; TRITON_PTXAS_PATH names another standard."""
    triton = imported()
    tools = triton.knobs.nvidia
    origin = _PTXAS_VARIABLE if os.environ.get(_PTXAS_VARIABLE) == tools.ptxas.path else "bundled"
    standard, blackwell = _version(tools.ptxas), _version(tools.ptxas_blackwell)
    return {"triton": str(triton.__version__), "ptxas": f"{standard} ({origin})", "ptxas-blackwell": blackwell}


def _version(tool: Any) -> str:
    banner = subprocess.run([tool.path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)+)", banner)
    return version.group(1) if version else str(tool.version)


@contextlib.contextmanager
def assembled_by(schedule: Schedule) -> Iterator[None]:
    """Within it Triton takes the assembler of `schedule`."""
    if not isinstance(schedule, TritonSchedule) or schedule.ptxas == "standard":
        yield
        return
    before, chosen = os.environ.get(_PTXAS_VARIABLE), imported().knobs.nvidia.ptxas_blackwell.path
    try:
        os.environ[_PTXAS_VARIABLE] = chosen
        _forget_ptxas()
        yield
    finally:
        os.environ.pop(_PTXAS_VARIABLE, None)
        if before is not None:
            os.environ[_PTXAS_VARIABLE] = before
        _forget_ptxas()


def _forget_ptxas() -> None:
    # Its version, which Triton looks up once, is a part of the name under which a kernel is kept on the disk.
    from triton.backends.nvidia import compiler

    compiler.get_ptxas_version.cache_clear()
