"""What serves a call in the end: the compiled operator of a resolution, or of its default where a winner fails."""

from __future__ import annotations

import warnings
from dataclasses import replace

from codegen.errors import BackendUnavailableError, ImplementationError, TrellisError
from codegen.kernels.build import build_legal
from codegen.kernels.operator import CompiledOperator
from codegen.spec import Spec
from trellis_ops.dispatch.resolve import Resolution, say_eager, store

# What winners did when they were to be compiled, by spec, schedule and device.
_FAILED: dict[tuple[str, str, str], str] = {}


def operator_of(resolution: Resolution, spec: Spec) -> CompiledOperator | None:
    """The compiled operator of a resolution; None where eager is the answer, or the only thing left.

    Raises:
        ImplementationError: the compiler that was forced cannot be loaded.
        TrellisError: a default or forced kernel that does not compile.
    """
    if resolution.schedule is None:
        return None
    try:
        return build_legal(spec, resolution.schedule, resolution.device)
    except BackendUnavailableError as error:
        # Found out only now: kernels that are kept on the disk need no compiler.
        if resolution.is_forced:
            raise ImplementationError(name=resolution.implementation, reason=str(error.reason)) from error
        say_eager(str(error.reason))
        return None
    except TrellisError as error:
        if resolution.match is None or resolution.default is None:
            raise
        _FAILED[_attempt(resolution, spec)] = str(error)
        warnings.warn(
            f"the winner in {resolution.match.path} does not compile, the default is used: {error}", stacklevel=2
        )
        return build_legal(spec, resolution.default, resolution.device)


def as_served(resolution: Resolution, spec: Spec) -> Resolution:
    """`resolution`, or what `operator_of` took in its place when its winner did not compile in this process."""
    if resolution.match is None or resolution.schedule is None:
        return resolution
    error = _FAILED.get(_attempt(resolution, spec))
    if error is None:
        return resolution
    note = f"the {resolution.origin} in {resolution.match.path} is not used: it does not compile here: {error}"
    said = (*resolution.said, note)
    return replace(resolution, schedule=resolution.default, origin="default schedule", match=None, said=said)


def forget() -> None:
    """Read the tuning database anew, and try again what did not compile."""
    store.cache_clear()
    _FAILED.clear()


def _attempt(resolution: Resolution, spec: Spec) -> tuple[str, str, str]:
    assert resolution.schedule is not None
    return spec.key(), resolution.schedule.key(), resolution.device.key()
