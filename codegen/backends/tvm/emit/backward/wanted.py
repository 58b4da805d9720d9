"""Which gradients a call wants: bits of its argument `wanted`, in the order of codegen.kernels.launches.GRADIENTS."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Expr

Q, K, V, TARGET, LOG_DECAY, STEP_SIZE, STATES = (1 << bit for bit in range(7))


def if_wanted(wanted: Expr, name: int, emit: Callable[[], None]) -> None:
    """Emits what only the gradient of one input needs."""
    with T.If(T.bitwise_and(wanted, name) != 0), T.Then():
        emit()
