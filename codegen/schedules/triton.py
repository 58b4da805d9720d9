"""Triton's schedules: for GPUs of both makers, and on a CPU in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from codegen.device import THREADS_PER_WARP, Device
from codegen.limits.extent import Extent
from codegen.recurrence.forms import split_chunk, why_no_chunk_form, why_no_split_form, why_no_stale_form
from codegen.recurrence.of_rule import write_inputs
from codegen.rule import Rule
from codegen.schedules import triton_between
from codegen.schedules.precision import dot_precisions, usual_precision, why_too_few_bits
from codegen.schedules.schedule import (
    BACKWARD_VARIANTS,
    CHUNK_FORMS,
    FEWEST_TOKENS_PER_STATE,
    ONE_PASS,
    POOL,
    STALE,
    SUBSTITUTIONS,
    VARIANTS,
    TileLoop,
    why_no_whole_tiles,
)
from codegen.schedules.triton_between import OF_BETWEEN
from codegen.schedules.triton_fields import TritonFields
from codegen.spec import FAMILY_OPERATORS, Problem, Spec, next_power_of_two

_LONGEST_BACKWARD_CHUNK = 1024
_BYTES_OF_INPUTS = {"float32": 4, "float16": 2, "bfloat16": 2}
_FIRST_WITH_TMA = 90
_DESCRIPTOR_ALIGNMENT = 16
_LONGEST_WHOLE_CHUNK = 64
_WITHOUT_TILE = ("recurrent", "recurrence", "recurrence_backward", POOL, *OF_BETWEEN)
_TOKENS_OF_SEGMENT = 16
_DEFAULT_TILE = 16
_WARPS_AND_STAGES = {"sm_90": (4, 3), "gfx942": (4, 2)}


@dataclass(frozen=True)
class TritonSchedule(TritonFields):
    """A schedule of the Triton templates; `TritonFields` says what its fields are."""

    compiler: ClassVar[str] = "codegen.backends.triton.compile"
    first_for: ClassVar[tuple[str, ...]] = ("cuda", "hip")
    shown_for: ClassVar[str] = "sm_90"
    own_variants: ClassVar[tuple[str, ...]] = (
        *TritonFields.own_variants,
        *(STALE, "chunks_backward", POOL, *SUBSTITUTIONS, *OF_BETWEEN),
    )

    @classmethod
    def default(cls, spec: Spec, device: Device) -> Self:
        """For bfloat16 on sm_90 what won on an H200; else what spills least, or nearly so."""
        problem = spec.problem
        if problem.layer is not None:
            return triton_between.default(cls, spec, device)
        precision = usual_precision(problem.dtype, device)
        large = max(problem.slots, problem.dim_k, problem.dim_v) > 64
        variant = _default_variant(spec)
        if variant in ("recurrence", "recurrence_backward", POOL):
            # A walk back holds the cotangents of all states beside what it reads: four warps lack the registers.
            # So do walks on a pool that hold both memories, and both from the start of the chunk.
            backward = variant == "recurrence_backward"
            four = variant == POOL and spec.rule.passes == 2 and problem.chunk > 1
            return cls(
                variant, 16, 8 if large or backward or four else 4, 1, "ieee", _TOKENS_OF_SEGMENT if backward else 1
            )
        if variant in (*CHUNK_FORMS, STALE):
            # So no rule spills on sm_90 with D = M = 64 in bfloat16; longer tiles take more registers.
            return cls(variant, _DEFAULT_TILE, 4 if device.kind == "hip" else 8, 1, precision)
        if variant == "backward":
            # tf32x3 is three products for one, which take more registers than there are for 64 tokens.
            longest = 16 if precision == "tf32x3" else _LONGEST_WHOLE_CHUNK
            if not large and 16 <= problem.chunk <= longest:
                return cls._default_backward_chunks(problem.chunk, precision, device)
            return cls("backward_split", 16, 4 if device.kind == "hip" else 8, 1, precision, _default_spacing(problem))
        # Four warps with the standard assembler are known bad on some devices (codegen/schedules/known_bad.json).
        ptxas = "blackwell" if device.arch == "sm_90" and not large else "standard"
        if variant == "recurrent":
            # The next token's loads are under way without stages; with three an H200 took 1.03 to 1.05 times as long,
            # bf16.
            return cls(variant, 16, 8 if large else 4, 1, "ieee", ptxas=ptxas)
        variant = "split" if variant == "fused" else variant
        chunk = split_chunk(spec.rule, problem.chunk) if variant == ONE_PASS else problem.chunk
        if large or (problem.dtype == "float32" and chunk > 16):
            return cls(variant, 16, 8, 1, precision)
        tile = min(64, max(16, next_power_of_two(chunk)))
        warps, stages = _WARPS_AND_STAGES.get(device.arch, (8, 1))
        return cls(variant, tile, warps, stages, precision, ptxas=ptxas)

    @classmethod
    def unchosen(cls, spec: Spec, device: Device) -> tuple[Self, ...]:
        """Forward substitution, and the reverse pass of tiles: no GPU has run either beside the walk of the default."""
        precision = usual_precision(spec.problem.dtype, device)
        ptxas = "blackwell" if device.arch == "sm_90" else "standard"
        warps = 4 if device.kind == "hip" else 8
        return (
            *(cls(variant, _DEFAULT_TILE, 4, 1, precision, ptxas=ptxas) for variant in SUBSTITUTIONS),
            cls("chunks_backward", _DEFAULT_TILE, warps, 1, precision, _DEFAULT_TILE),
        )

    @classmethod
    def _default_backward_chunks(cls, chunk: int, precision: str, device: Device) -> Self:
        tile = max(16, next_power_of_two(chunk))
        if device.arch == "sm_90" and precision == "bf16":
            # Its matrix units give 64 rows to four warps; eight compute the maps of each row twice.
            return cls("backward_chunks", tile, 4, 2, precision, 1, "blackwell")
        # Of four and eight warps those that spill less: a wave of AMD has twice the threads, with 512 registers each.
        spill_less = 4 if device.kind == "hip" or (device.arch == "sm_80" and precision == "bf16") else 8
        return cls("backward_chunks", tile, spill_less, 1, precision)

    def why_illegal(self, spec: Spec, device: Device) -> str | None:
        """By the chunk, the variant, the assembler, the loads and the precision."""
        if self.variant in OF_BETWEEN:
            reason = triton_between.why_illegal(self, spec.problem)
            if reason is not None:
                return reason
        chunk = self.chunk_of(spec)
        of_chunks = spec.problem.operator not in FAMILY_OPERATORS
        if spec.problem.direction != "forward" and of_chunks and chunk > _LONGEST_BACKWARD_CHUNK:
            return f"the backward kernel takes chunks of at most {_LONGEST_BACKWARD_CHUNK} tokens, not {chunk}"
        if device.kind == "cpu" and self.num_stages > 1 and self.variant not in OF_BETWEEN:
            return "the interpreter has no software pipeline: num_stages must be 1"
        if self.variant not in CHUNK_FORMS and self.tile_rows > max(16, next_power_of_two(chunk)):
            return f"tile_rows {self.tile_rows} exceeds the chunk of {chunk} tokens"
        if self.variant == "backward_chunks" and self.tile_rows < chunk:
            return f"variant 'backward_chunks' takes whole chunks: tile_rows must hold {chunk} tokens"
        if self.variant == "backward_chunks" and self.checkpoint_spacing != 1:
            return "variant 'backward_chunks' reads the first state of every chunk: checkpoint_spacing must be 1"
        if self.variant == "chunks_backward":
            reason = self._why_no_reverse_of_tiles(spec.rule)
            if reason is not None:
                return reason
        if self.variant == STALE:
            reason = self._why_no_stale_tiles(spec.rule)
            if reason is not None:
                return reason
        if self.variant in _WITHOUT_TILE and self.tile_rows != 16:
            return f"variant {self.variant!r} has no tile: tile_rows must be 16"
        if self.ptxas != "standard" and not device.arch.startswith(("sm_8", "sm_9")):
            return f"{device.arch} has one assembler only: ptxas must be 'standard'"
        if self.loads == "descriptors":
            reason = self._why_illegal_descriptors(spec.problem, device)
            if reason is not None:
                return reason
        if self.variant not in _WITHOUT_TILE:
            return self._why_illegal_precision(spec, device)
        if self.dot_precision != "ieee":
            return f"variant {self.variant!r} has no dots: dot_precision must be 'ieee'"
        return None

    def _why_no_reverse_of_tiles(self, rule: Rule) -> str | None:
        if rule.decay == "channel" or rule.erase or rule.read != "after":
            return "variant 'chunks_backward' has decay='scalar' or 'none', no erase, and read='after' on Triton"
        if self.checkpoint_spacing != self.tile_rows:
            return f"it reads the first state of every tile: checkpoint_spacing must be {self.tile_rows}"
        return None

    def _why_no_stale_tiles(self, rule: Rule) -> str | None:
        if _takes_z_decayed(rule):
            return "variant 'stale_chunks' takes z at the memory as it was, not decayed first, on Triton"
        if rule.window > 1 and self.num_stages > 1:
            # A pipeline would load the pairs of the next tile before this tile has written them.
            return "the pairs that a window carries pass through memory from tile to tile: num_stages must be 1"
        return None

    def _why_illegal_descriptors(self, problem: Problem, device: Device) -> str | None:
        has_tma = device.kind == "cuda" and int(device.arch.removeprefix("sm_")) >= _FIRST_WITH_TMA
        if device.kind != "cpu" and not has_tma:
            return f"{device.arch} copies no tiles by tensor descriptors, sm_{_FIRST_WITH_TMA} and later do"
        if self.variant in (*_WITHOUT_TILE, *CHUNK_FORMS, STALE, *SUBSTITUTIONS) or problem.direction != "forward":
            return "only the chunked kernels of a forward have tensor descriptors: loads must be 'pointers'"
        rows, chunk = self.tile_rows, problem.chunk
        if self.variant == "readout" and rows >= chunk:
            return "a readout of one tile has no loop that hides the copies of descriptors: loads must be 'pointers'"
        if chunk % rows:
            # Later rows of a chunk's last tile would be tokens of the next: even as NaN they must not reach this chunk.
            return f"a tensor descriptor copies whole tiles: tile_rows {rows} must divide the chunk of {chunk} tokens"
        for name, width in (("dim_k", problem.dim_k), ("dim_v", problem.dim_v), ("slots", problem.slots)):
            if width * _BYTES_OF_INPUTS[problem.dtype] % _DESCRIPTOR_ALIGNMENT:
                return (
                    f"a tensor descriptor takes rows of a multiple of {_DESCRIPTOR_ALIGNMENT} bytes, which"
                    f" {name} {width} of {problem.dtype} is not"
                )
        return None

    def _why_illegal_precision(self, spec: Spec, device: Device) -> str | None:
        if self.dot_precision not in dot_precisions(device):
            return f"{device.arch} has no {self.dot_precision} dots, only {', '.join(dot_precisions(device))}"
        reason = why_too_few_bits(spec, self.dot_precision)
        if reason is not None:
            return reason
        cheaper = "tf32x3" in dot_precisions(device)
        if spec.problem.dtype != "float32" and self.dot_precision == "ieee" and cheaper:
            return f"ieee dots cost most and gain nothing over tf32x3 for {spec.problem.dtype} inputs"
        return None

    def template_variables(self, kernel: str, spec: Spec, device: Device) -> dict[str, object]:
        """The chunk of the kernel, which a variant may leave free."""
        return {"chunk": self.chunk_of(spec)}

    @classmethod
    def why_untimed(cls, device: Device) -> str | None:
        """On a CPU they are interpreted."""
        return "its interpreter runs on a CPU, but is no kernel to be timed" if device.kind == "cpu" else None

    def brief(self) -> str:
        """Rows, warps and precision, and what is not usual."""
        words = [f"{self.tile_rows} rows", f"{self.num_warps} warps", self.dot_precision]
        words += [f"{self.num_stages} stages"] if self.num_stages > 1 else []
        words += [f"every {self.checkpoint_spacing}"] if self.checkpoint_spacing > 1 else []
        words += [self.ptxas] if self.ptxas != "standard" else []
        words += [self.loads] if self.loads != "pointers" else []
        return ", ".join(words)

    @property
    def tile(self) -> int:
        """The rows."""
        return self.tile_rows

    def block_threads(self, device: Device) -> int:
        """Those of the warps."""
        return self.num_warps * THREADS_PER_WARP[device.kind]

    def tile_loop(self) -> TileLoop:
        """As the fields say."""
        return TileLoop(
            self.tile_rows,
            self.checkpoint_spacing,
            self.num_warps,
            self.num_stages,
            self.dot_precision,
            self.loads == "descriptors",
        )

    def counts(self, spec: Spec, extent: Extent) -> dict[str, int]:
        """Rows of a tile, from its first on, are 32-bit numbers where registers are short."""
        widest = max(spec.problem.dim_k, spec.problem.dim_v, spec.problem.slots)
        rows = self.tile_rows if self.variant == "backward_chunks" else 1
        return super().counts(spec, extent) | {"H x width x tokens of a tile": extent.heads * widest * rows}


def _default_spacing(problem: Problem) -> int:
    spacings = (n for n in TritonSchedule.choices["checkpoint_spacing"] if isinstance(n, int))
    return next(n for n in spacings if n * problem.chunk >= FEWEST_TOKENS_PER_STATE)


def _default_variant(spec: Spec) -> str:
    problem = spec.problem
    reverse = problem.direction != "forward"
    if problem.operator == "memory_attention":
        if not reverse and not why_no_split_form(spec.rule, problem.chunk):
            return ONE_PASS
        if problem.tokens > _DEFAULT_TILE and not reverse:
            if not _why_no_tiles(spec):
                return "chunks"
            whole = problem.chunk >= _DEFAULT_TILE  # A tile that chunks leave half empty need be no faster than a walk.
            if whole and not why_no_stale_form(spec.rule, problem.chunk) and not _takes_z_decayed(spec.rule):
                return STALE
    if reverse and problem.operator in BACKWARD_VARIANTS:
        return BACKWARD_VARIANTS[problem.operator][0]
    if problem.operator == "trellis_attention" and problem.chunk == 1:
        return "recurrent"
    return VARIANTS[problem.operator][0]


def _takes_z_decayed(rule: Rule) -> bool:
    return rule.decay_first and "z" in write_inputs(rule.phi)


def _why_no_tiles(spec: Spec) -> str | None:
    """Why the default schedule does not compute the tokens of a tile at once; None if it does."""
    chunk = spec.problem.chunk
    return why_no_chunk_form(spec.rule, chunk) or why_no_whole_tiles(spec.rule, chunk, _DEFAULT_TILE)
