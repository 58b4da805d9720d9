"""TVM's schedules: for CPUs, whose vectors and threads they name, and for NVIDIA GPUs, see `tvm_cuda.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from codegen.device import Device
from codegen.limits.extent import MOST_SEGMENTS, Extent
from codegen.recurrence.forms import why_no_chunk_form, why_no_stale_form
from codegen.schedules import tvm_cuda, tvm_glue, tvm_layer
from codegen.schedules.cuda_block import block_of
from codegen.schedules.schedule import (
    BACKWARD_VARIANTS,
    CHUNK_FORMS,
    FEWEST_TOKENS_PER_STATE,
    POOL,
    STALE,
    VARIANTS,
    kernel_chunk,
    why_no_whole_tiles,
)
from codegen.schedules.tvm_fields import FEWEST_ACCUMULATORS, VECTORS_PER_ROW, WITHOUT_TILE, TvmFields
from codegen.schedules.tvm_layer import OF_LAYERS
from codegen.spec import GLUE_OPERATORS, Spec, next_power_of_two

_SPANNING = ("fused", "pair", "backward", *CHUNK_FORMS)
"""Variants whose tiles may span several chunks, on a CPU."""

_WALKS = ("recurrence", "recurrence_backward")
_WITHOUT_TILE = (*WITHOUT_TILE, POOL, *GLUE_OPERATORS)

_MOST_TASKS = 64
"""On a CPU a kernel deals its programs to no more."""

_DEFAULT_TILE = 16
_DEFAULT_ACCUMULATORS = 16
_FEWEST_IN_TILES = 2 * _DEFAULT_TILE
# Where chunks are shorter than FEWEST_TOKENS_PER_STATE, tiles span chunks, which costs less the more of them.
_TOKENS_PER_STATE = 64
# Of a state that the first-level cache holds beside all else.
_NEAR_NUMBERS = 8192
# Of any rule: the states of a segment's tokens are held at once, and should stay in the second-level cache.
_TOKENS_OF_SEGMENT = 32


@dataclass(frozen=True)
class TvmSchedule(TvmFields):
    """A schedule of the TVM templates; `TvmFields` says what its fields are."""

    compiler: ClassVar[str] = "codegen.backends.tvm.compile"
    first_for: ClassVar[tuple[str, ...]] = ("cpu",)
    shown_for: ClassVar[str] = "here"
    own_variants: ClassVar[tuple[str, ...]] = (*TvmFields.own_variants, POOL, *OF_LAYERS, *GLUE_OPERATORS)

    @classmethod
    def default(cls, spec: Spec, device: Device) -> Self:
        """Whole vectors, all cores, and as many accumulators as are sure not to spill."""
        if device.kind == "cuda":
            return tvm_cuda.default(cls, spec, device)
        if spec.problem.layer is not None:
            return tvm_layer.default(cls, spec, device)
        if spec.problem.operator in GLUE_OPERATORS:
            return tvm_glue.default(cls, spec, device)
        width = min(16, max(4, device.vector_bits // 32))
        variant = _default_variant(spec, device)
        if variant == "chunks" and why_no_whole_tiles(spec.rule, spec.problem.chunk, width):
            variant = "recurrence"
        most = min(device.cores, _MOST_TASKS)
        threads = max(n for n in cls.choices["threads"] if isinstance(n, int) and n <= most)
        if variant in _WITHOUT_TILE:
            spacing = _TOKENS_OF_SEGMENT if variant == "recurrence_backward" else 1
            return cls(variant, width, width, FEWEST_ACCUMULATORS, threads, spacing)
        if variant in CHUNK_FORMS:
            spacing = 1 if variant == "chunks" else _TOKENS_PER_STATE
            return cls(
                variant, width, width, min(_DEFAULT_ACCUMULATORS, _most_without_spills(device)), threads, spacing
            )
        tile = max(width, _DEFAULT_TILE)
        if variant == "backward":
            return cls._default_backward(spec.problem.chunk, width, _most_without_spills(device), threads)
        if variant not in _SPANNING:
            tile = max(width, min(tile, next_power_of_two(kernel_chunk(variant, spec))))
        if variant == STALE and spec.rule.decay in ("slot", "channel"):
            tile = width
        return cls(variant, tile, width, min(_DEFAULT_ACCUMULATORS, _most_without_spills(device)), threads)

    @classmethod
    def _default_backward(cls, chunk: int, width: int, accumulators: int, threads: int) -> Self:
        if chunk < FEWEST_TOKENS_PER_STATE:
            spacing = next_power_of_two(_TOKENS_PER_STATE // chunk + 1) // 2
            return cls("backward", max(width, _DEFAULT_TILE), width, accumulators, threads, spacing)
        # A longer tile has fewer products but wastes more of them above the diagonal, which the backward leaves out.
        tile = max(width, min(4 * width, next_power_of_two(chunk)))
        return cls("backward", tile, width, accumulators, threads)

    def why_illegal(self, spec: Spec, device: Device) -> str | None:
        """On a CPU by its vectors, its cores, and what a tile may span."""
        if device.kind == "hip":
            return "the TVM templates are written for CPUs and CUDA, not HIP"
        if device.kind == "cuda":
            return tvm_cuda.why_illegal(self, spec, device)
        if self.dot_precision != "ieee":
            return f"no CPU kernel has {self.dot_precision} dots: dot_precision must be 'ieee'"
        if self.vector_width * 32 > device.vector_bits:
            return f"vector_width {self.vector_width} exceeds the {device.vector_bits}-bit vectors of {device.arch}"
        of_layer = self.variant in OF_LAYERS
        reason = tvm_layer.why_illegal(self) if of_layer else self._why_illegal_tile(self.chunk_of(spec))
        if reason is not None:
            return reason
        if self.variant == "chunks_backward" and self.checkpoint_spacing % self.tile_tokens:
            return f"checkpoint_spacing {self.checkpoint_spacing} is no multiple of tile_tokens {self.tile_tokens}"
        if (
            self.variant in (*CHUNK_FORMS, STALE)
            and spec.rule.decay in ("slot", "channel")
            and self.tile_tokens > self.vector_width
        ):
            return f"a tile of gates of each slot or column is one vector: tile_tokens must be {self.vector_width}"
        if self.accumulators > _most_accumulators(device):
            return f"{self.accumulators} accumulators do not fit the vector registers of {device.arch}"
        if self.threads > device.cores:
            return f"threads {self.threads} exceeds the {device.cores} cores"
        if self.threads > _MOST_TASKS:
            return f"threads {self.threads} is for blocks of CUDA; on a CPU there are at most {_MOST_TASKS}"
        return None

    def _why_illegal_tile(self, chunk: int) -> str | None:
        if self.variant in _WITHOUT_TILE and (
            self.tile_tokens != self.vector_width or self.accumulators != FEWEST_ACCUMULATORS
        ):
            return (
                f"variant {self.variant!r} has no tile: tile_tokens must be the vector width, and accumulators"
                f" {FEWEST_ACCUMULATORS}"
            )
        if self.tile_tokens % self.vector_width:
            return f"tile_tokens {self.tile_tokens} is no multiple of vector_width {self.vector_width}"
        if self.variant not in (*_SPANNING, *_WITHOUT_TILE) and self.tile_tokens > max(
            self.vector_width, next_power_of_two(chunk)
        ):
            return f"tile_tokens {self.tile_tokens} exceeds the chunk of {chunk} tokens"
        spanned = self.tile_tokens // chunk
        if self.variant == "backward" and spanned > self.checkpoint_spacing:
            return (
                f"tile_tokens {self.tile_tokens} spans {spanned} chunks of {chunk} tokens,"
                f" more than checkpoint_spacing {self.checkpoint_spacing}"
            )
        return None

    def brief(self) -> str:
        """Tile, threads, sums and precision."""
        sums = f"{self.accumulators} sums"
        return f"{self.backend}, {self.tile_tokens} tokens, {self.threads} threads, {sums}, {self.dot_precision}"

    @classmethod
    def templates_on(cls, device: Device) -> str:
        """Kernels for NVIDIA GPUs have a folder of their own."""
        return "tvm_cuda" if device.kind == "cuda" else "tvm"

    def template_variables(self, kernel: str, spec: Spec, device: Device) -> dict[str, object]:
        """For CUDA what a block is made of."""
        if device.kind == "cuda":
            return {"block": block_of(kernel, spec.problem, self)}
        if spec.problem.layer is not None:
            return tvm_layer.template_variables(self, spec, device)
        if spec.problem.direction != "forward":
            return {"segment": self.segment_tokens(spec)}
        return {"chunk": self.chunk_of(spec)}

    @property
    def tile(self) -> int:
        """The tokens."""
        return self.tile_tokens

    def within_threads(self, threads: int, device: Device) -> Self:
        """Fewer tasks."""
        return replace(self, threads=min(self.threads, threads)) if device.kind == "cpu" else self

    @property
    def cpu_threads(self) -> int:
        """One for each task."""
        return self.threads

    def block_threads(self, device: Device) -> int:
        """As the schedule says."""
        return self.threads

    def counts(self, spec: Spec, extent: Extent) -> dict[str, int]:
        """Programs are dealt to tasks by a product of both numbers; `pair` has two for each, and steps of segments."""
        programs, chunk = self.programs(extent), spec.problem.chunk
        counts = {"programs x threads of a kernel": programs * self.threads, "states to keep": extent.chunks}
        if self.variant == "pair":
            counts["programs x threads of a kernel"] *= 2
            span = max(chunk, self.tile_tokens // chunk * chunk)
            steps = -(-extent.most_chunks * chunk // span)
            counts["steps of a sequence x segments"] = steps * (MOST_SEGMENTS + 1)
        return counts


def _default_variant(spec: Spec, device: Device) -> str:
    problem = spec.problem
    reverse = problem.direction != "forward"
    if problem.operator == "memory_attention" and problem.tokens > _FEWEST_IN_TILES:
        whole = problem.chunk >= _DEFAULT_TILE  # A tile that chunks leave half empty is no faster than a walk.
        if whole and not reverse and not why_no_stale_form(spec.rule, problem.chunk):
            if not why_no_chunk_form(spec.rule, problem.chunk):
                return "chunks"
            # Gates of each row or column cost tiles as much as a walk saves by them while its state is near.
            near = spec.rule.decay in ("slot", "channel") and problem.dim_k * problem.dim_v <= _NEAR_NUMBERS
            return "recurrence" if near else STALE
        variants = CHUNK_FORMS if not why_no_chunk_form(spec.rule, problem.chunk, problem.direction) else _WALKS
        return variants[reverse]
    if reverse and problem.operator in BACKWARD_VARIANTS:
        return BACKWARD_VARIANTS[problem.operator][0]
    if problem.operator != "trellis_attention":
        return VARIANTS[problem.operator][0]
    if problem.batch * problem.heads < device.cores:
        return "pair"
    # A tile of tokens has to be filled before it is faster than one token after another.
    return "recurrent" if problem.chunk == 1 and problem.tokens <= _FEWEST_IN_TILES else "fused"


def _vector_registers(device: Device) -> int:
    return 32 if device.vector_bits == 512 or device.arch == "aarch64" else 16


def _most_accumulators(device: Device) -> int:
    # A quarter of the registers stays free for the operands of a product.
    return _vector_registers(device) * 3 // 4


def _most_without_spills(device: Device) -> int:
    # Beside its sums, a block of whole rows keeps the vectors of one row and a number that is broadcast in registers.
    rows = (_vector_registers(device) - VECTORS_PER_ROW - 1) // VECTORS_PER_ROW
    return rows * VECTORS_PER_ROW
