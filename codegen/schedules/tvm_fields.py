"""The fields of TVM's schedules, and what they make of its kernels, their arguments and buffers.

This file decides kernels and is part of their digest; defaults and legality, which do not, are in `tvm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from codegen.schedules.schedule import Schedule, Value
from codegen.spec import Spec

VECTORS_PER_ROW = 4
"""Vectors of an output row that the kernels for CPUs accumulate at once."""

FEWEST_ACCUMULATORS = 4
"""What the variants `WITHOUT_TILE` have to name."""

WITHOUT_TILE = ("recurrent", "recurrence", "recurrence_backward")
"""Variants that walk token by token."""


@dataclass(frozen=True)
class TvmFields(Schedule):
    """Settings of the TVM templates.

    Attributes:
        tile_tokens: tokens processed at a time; on a CPU they are the vector lanes of the chunk's products.
        vector_width: float32 lanes per vector instruction; for CUDA, numbers that a thread reads at once.
        accumulators: vector registers that a product sums in at once, the others are for its operands; for CUDA,
            numbers that a thread sums at once.
        threads: tasks that the programs are dealt to, of which 1 stays on the calling thread; for CUDA, of a block.
        checkpoint_spacing: a backward keeps the states at the start of every so many chunks, or tokens of any rule, and
            computes those between again. A tile of it may span as many chunks.
        dot_precision: of the products of a kernel for CUDA: "ieee", by multiply-adds; or by tensor cores, as
            TritonFields has it, "tf32x3", "tf32" or "bf16". On a CPU "ieee".
    """

    backend: ClassVar[str] = "tvm"
    choices: ClassVar[dict[str, tuple[Value, ...]]] = {
        "tile_tokens": (4, 8, 16, 32, 64),
        "vector_width": (4, 8, 16),
        "accumulators": (4, 8, 12, 16, 24),
        "threads": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        "checkpoint_spacing": (1, 2, 4, 8, 16, 32, 64),
        "dot_precision": ("ieee", "tf32x3", "tf32", "bf16"),
    }
    own_variants: ClassVar[tuple[str, ...]] = (
        *("fused", "pair", "split", "recurrent", "update", "readout", "backward"),
        *("recurrence", "chunks", "split_one_pass", "stale_chunks", "recurrence_backward", "chunks_backward"),
    )
    templates: ClassVar[tuple[str, ...]] = ("tvm", "tvm_cuda")
    writers: ClassVar[tuple[str, ...]] = tuple(
        path.stem
        for part in ("maps", "recurrence")
        for path in sorted((Path(__file__).parents[1] / part / "emit").glob("tvm*.py"))
    )
    emitters: ClassVar[tuple[Path, ...]] = (
        *(Path(__file__), Path(__file__).with_name("cuda_block.py")),
        *(
            path
            for folder in ("tvm", "tvm_cuda")
            for path in sorted((Path(__file__).parents[1] / "backends" / folder / "emit").rglob("*.py"))
        ),
    )
    checks_arguments: ClassVar[bool] = True
    skips_unwanted: ClassVar[bool] = True
    joins_updates: ClassVar[bool] = False
    tile_tokens: int
    vector_width: int
    accumulators: int
    threads: int
    checkpoint_spacing: int = 1
    dot_precision: str = "ieee"

    def of_kernel(self, kernel: str) -> Self:
        """The forward of a backward wastes what lies above the diagonal of a long tile, the backward does not."""
        if self.variant == "backward" and kernel == "trellis_fused":
            return replace(self, tile_tokens=min(self.tile_tokens, 2 * self.vector_width))
        return self

    @property
    def row_unit(self) -> int:
        """A whole vector."""
        return self.vector_width

    @property
    def segment(self) -> int:
        """The spacing."""
        return self.checkpoint_spacing

    def segment_tiles(self, spec: Spec, tokens: int | None = None) -> int:
        """By the chunks that a tile spans, as far as the sequence reaches."""
        chunk, tile, whole = spec.problem.chunk, self.tile_tokens, self.segment_tokens(spec)
        unit = max(chunk, min(tile // chunk, self.checkpoint_spacing) * chunk)
        segment = whole if tokens is None else min(whole, tokens)
        return -(-segment // unit) * -(-min(unit, segment) // tile)

    def keeps_tile_states(self, spec: Spec) -> bool:
        """Also where a segment is one tile."""
        return True

    @property
    def dots_in_bfloat16(self) -> bool:
        """Nothing between kernels is rounded."""
        return False

    @property
    def keeps_bfloat16(self) -> bool:
        """Nothing between kernels is rounded."""
        return False

    def workers(self, programs: int) -> int:
        """A thread keeps its scratch memory from one program to the next."""
        return self.threads
