"""What the kernel on a pool writes for CPUs beside its loops."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.kernels.pool.arguments import FIRST
from codegen.recurrence.emit.tvm_forward import Forward
from codegen.spec import Spec


@dataclass(frozen=True)
class Pooled(Forward):
    """What templates/tvm/memory_pool.py.j2 writes: a walk whose chunk states lie in pools, as states do."""

    @property
    def starts_chunks(self) -> bool:
        """Never in scratch memory."""
        return False

    @property
    def statements(self) -> list[str]:
        """Those of the walk, of chunk starts and of fresh rows."""
        return [*super().statements, *self.chunk_starts("at"), *self.from_first, *self.from_zero]

    @property
    def state_stores(self) -> list[str]:
        """Statements that store rows, those of chunk starts among them, and turn rings."""
        rows = [name for name, axes in self.chunk_states.items() if len(axes) == 1]
        return [*super().state_stores, *(f"rows.store({name}, x.{name}, sequence, h)" for name in rows)]

    @property
    def from_first(self) -> list[str]:
        """Statements that start a fresh row from the given states."""
        return [
            f"rows.load(x.{name}, {FIRST}{name}, h)"
            if len(axes) == 1
            else f"matrices.copy(WIDTH, at.{name}, Matrix({FIRST}{name}, (h,)))"
            for name, axes in self.states.items()
        ]

    @property
    def from_zero(self) -> list[str]:
        """Statements that start it from zero."""
        return [
            f"rows.clear(x.{name})" if len(axes) == 1 else f"matrices.clear(WIDTH, at.{name})"
            for name, axes in self.states.items()
        ]


def kernel(spec: Spec) -> Pooled:
    """What the template is given as `token`."""
    return Pooled(spec)
