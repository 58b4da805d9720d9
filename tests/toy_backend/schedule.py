"""The toy's schedules; `register(ToySchedule)` is all that makes the backend known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from codegen.device import Device
from codegen.schedules.schedule import Schedule, Value
from codegen.spec import Spec


@dataclass(frozen=True)
class ToySchedule(Schedule):
    """Settings of the toy.

    Attributes:
        heads_at_once: heads that one call of eager PyTorch computes.
    """

    backend: ClassVar[str] = "toy"
    compiler: ClassVar[str] = "tests.toy_backend.compile"
    choices: ClassVar[dict[str, tuple[Value, ...]]] = {"heads_at_once": (1, 2, 4)}
    own_variants: ClassVar[tuple[str, ...]] = ("fused", "recurrent")
    first_for: ClassVar[tuple[str, ...]] = ()
    shown_for: ClassVar[str] = "here"
    templates: ClassVar[tuple[str, ...]] = ()
    writers: ClassVar[tuple[str, ...]] = ("pytorch",)
    emitters: ClassVar[tuple[Path, ...]] = (Path(__file__), Path(__file__).with_name("compile.py"))
    checks_arguments: ClassVar[bool] = False
    skips_unwanted: ClassVar[bool] = False
    joins_updates: ClassVar[bool] = False
    heads_at_once: int

    @classmethod
    def default(cls, spec: Spec, device: Device) -> Self:
        """One head after another."""
        return cls("recurrent" if spec.problem.chunk == 1 else "fused", 1)

    def why_illegal(self, spec: Spec, device: Device) -> str | None:
        """By the device, the operator and the heads."""
        if device.kind != "cpu":
            return f"the toy runs on CPUs only, not on {device.arch}"
        if spec.problem.operator == "trellis_step_chunked":
            return "the toy has no state of its own to take a write gradient at"
        if self.heads_at_once > spec.problem.heads:
            return f"heads_at_once {self.heads_at_once} exceeds the {spec.problem.heads} heads"
        return None

    def brief(self) -> str:
        """The heads."""
        return f"{self.backend}, {self.heads_at_once} heads"

    def of_kernel(self, kernel: str) -> Self:
        """The same."""
        return self

    @property
    def tile(self) -> int:
        """No tiles: eager PyTorch has chunks."""
        return 1

    @property
    def row_unit(self) -> int:
        """Nothing is padded."""
        return 1

    @property
    def segment(self) -> int:
        """No backward."""
        return 1

    def segment_tiles(self, spec: Spec, tokens: int | None = None) -> int:
        """No backward."""
        return 1

    def keeps_tile_states(self, spec: Spec) -> bool:
        """No backward."""
        return False

    @property
    def dots_in_bfloat16(self) -> bool:
        """Everything is float32."""
        return False

    @property
    def keeps_bfloat16(self) -> bool:
        """Everything is float32."""
        return False

    def workers(self, programs: int) -> int:
        """No scratch memory."""
        return 0
