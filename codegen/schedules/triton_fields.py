"""The fields of Triton's schedules, and what they make of its kernels' arguments and buffers.

This file decides kernels and is part of their digest; defaults and legality, which do not, are in `triton.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from codegen.schedules.schedule import Schedule, Value
from codegen.spec import Spec


@dataclass(frozen=True)
class TritonFields(Schedule):
    """Settings of the Triton templates.

    Attributes:
        tile_rows: tokens processed at a time (rows of a dot operand), at least 16.
        num_warps: warps per program.
        num_stages: software-pipelining depth of the token loop.
        dot_precision: how float32 operands enter a dot: "ieee"; as one TF32 or BF16 number, "tf32" or "bf16"; or as
            the sum of several, in three products, "tf32x3" or "bf16x3".
        checkpoint_spacing: chunk-start states are stored for the backward of every chunk with a number that it divides;
            of any rule, those of every so many tokens.
        ptxas: the assembler for NVIDIA: "standard", which Triton takes itself or TRITON_PTXAS_PATH names, or
            "blackwell", the newer one that Triton brings for later GPUs.
        loads: how a forward reads tiles of its inputs: by "pointers", one for each number, masked; or by "descriptors",
            from which the tensor memory accelerator (TMA) of sm_90 copies whole tiles, zero past the sequence's end.
    """

    backend: ClassVar[str] = "triton"
    choices: ClassVar[dict[str, tuple[Value, ...]]] = {
        "tile_rows": (16, 32, 64),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (1, 2, 3),
        "dot_precision": ("ieee", "tf32x3", "tf32", "bf16x3", "bf16"),
        "checkpoint_spacing": (1, 2, 4, 8, 16, 32, 64),
        "ptxas": ("standard", "blackwell"),
        "loads": ("pointers", "descriptors"),
    }
    own_variants: ClassVar[tuple[str, ...]] = (
        *("fused", "split", "recurrent", "update", "readout"),
        *("backward", "backward_split", "backward_chunks"),
        *("recurrence", "chunks", "split_one_pass", "recurrence_backward"),
    )
    templates: ClassVar[tuple[str, ...]] = ("triton",)
    writers: ClassVar[tuple[str, ...]] = ("triton", "triton_centring", "triton_statements")
    emitters: ClassVar[tuple[Path, ...]] = (Path(__file__),)
    checks_arguments: ClassVar[bool] = False
    skips_unwanted: ClassVar[bool] = False
    joins_updates: ClassVar[bool] = True
    tile_rows: int
    num_warps: int
    num_stages: int
    dot_precision: str
    checkpoint_spacing: int = 1
    ptxas: str = "standard"
    loads: str = "pointers"

    def of_kernel(self, kernel: str) -> Self:
        """The same for every kernel."""
        return self

    @property
    def row_unit(self) -> int:
        """Nothing is padded in memory: what a tile has more is masked."""
        return 1

    @property
    def segment(self) -> int:
        """The spacing."""
        return self.checkpoint_spacing

    def segment_tiles(self, spec: Spec, tokens: int | None = None) -> int:
        """As many as the chunks of a segment have; a shorter sequence has room for as many."""
        return self.checkpoint_spacing * -(-spec.problem.chunk // self.tile_rows)

    def keeps_tile_states(self, spec: Spec) -> bool:
        """Where a segment is one tile, its state is the kept one."""
        return self.segment_tiles(spec) > 1

    @property
    def dots_in_bfloat16(self) -> bool:
        """By the precision."""
        return self.dot_precision == "bf16"

    @property
    def keeps_bfloat16(self) -> bool:
        """By the precision, between the two kernels of `split`."""
        return self.variant == "split" and self.dots_in_bfloat16

    def workers(self, programs: int) -> int:
        """All of them run at once."""
        return programs
