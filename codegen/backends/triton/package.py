"""The package triton: imported where it is first needed, and whether it compiles or interprets."""

from __future__ import annotations

from typing import Any

from codegen.errors import BackendUnavailableError
from codegen.interruption.whole_imports import whole_imports

NAME = "triton"
"""Of the package, and of the backend."""


def interprets() -> bool:
    """Whether this process runs kernels in the interpreter."""
    # Asks what triton.jit made of Triton's own functions: decided at import, whatever the environment says now.
    triton = imported()
    return not isinstance(triton.language.sigmoid, triton.JITFunction)


def imported() -> Any:
    """The module triton.

    Raises:
        BackendUnavailableError: it cannot be imported.
    """
    try:
        with whole_imports():
            import triton
    except Exception as error:
        reason = f"the package triton (it comes with trellis-ops on Linux x86-64) cannot be imported: {error}"
        raise BackendUnavailableError(backend=NAME, reason=reason) from error
    return triton
