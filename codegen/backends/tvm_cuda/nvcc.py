"""nvcc, NVIDIA's compiler, as a command: CUDA source to what its flags ask for.

Nothing here allows fast math: a kernel keeps the exponentials and divisions that its errors were measured with.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from codegen.errors import BackendUnavailableError, CompileError

NAME = "nvcc"


def is_here() -> bool:
    """Whether it is on the PATH."""
    return shutil.which(NAME) is not None


def toolchain() -> dict[str, str]:
    """Its version by name; empty where it is not."""
    if not is_here():
        return {}
    said = subprocess.run([NAME, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bV(\d+(?:\.\d+)*)", said)
    return {NAME: found.group(1) if found else "unknown"}


def run(text: str, path: Path, arch: str, *flags: str, language: str = "cu") -> tuple[bytes, str]:
    """What nvcc makes of `text` for `arch` with these flags, and what it reports.

    Args:
        path: where the source of `text` is found, for the message of an error.
        language: what `text` is, "cu" or "ptx".

    Raises:
        BackendUnavailableError: nvcc is not on the PATH.
        CompileError: nvcc refused the source.
    """
    if not is_here():
        raise BackendUnavailableError(backend=NAME, reason="it is not on the PATH; it comes with the CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / f"kernel.{language}", Path(folder) / "kernel.out"
        given.write_text(text)
        command = [NAME, *flags, f"-arch={arch}", "-O3", "-o", str(made), str(given)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise CompileError(backend=NAME, path=path, reason=finished.stderr.strip())
        return made.read_bytes(), finished.stderr


def cubin_of(text: str, path: Path, arch: str) -> bytes:
    """The machine code of `text` for `arch`.

    Raises:
        BackendUnavailableError: nvcc is not on the PATH.
        CompileError: nvcc refused the source.
    """
    return run(text, path, arch, "--cubin")[0]
