"""How a kernel computes: schedules and their choices. Defaults are in `defaults.py`, legality in `legality.py`.

A schedule never changes the result beyond rounding, so a tuner may search all of it freely.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import ClassVar

from codegen.device import Device
from codegen.errors import ScheduleFieldError, UnknownBackendError
from codegen.spec import Spec

Value = int | str

VARIANTS: dict[str, tuple[str, ...]] = {
    "trellis_attention": ("fused", "pair", "split", "recurrent"),
    "memory_update": ("update",),
    "memory_readout": ("readout",),
    "memory_readout_transposed": ("readout",),
    "trellis_step": ("recurrent",),
    "trellis_step_chunked": ("recurrent",),
}
"""Variants of each operator.

fused: both memories and both readouts in one program per sequence and head, states resident.
pair: keys and values in programs of their own, the values a segment of the sequence behind; for few heads.
split: an update kernel per memory that stores chunk-start states and codes, then a readout kernel parallel over chunks.
recurrent: token by token, exact; with one token it is the decode step.
"""

BACKWARD_VARIANTS: dict[str, tuple[str, ...]] = {"trellis_attention": ("backward", "backward_split", "backward_chunks")}
"""Variants of the operators that have a backward kernel. All begin with a forward that also stores states.

backward: one program per sequence and head that walks back with the cotangents of both states.
backward_split: first R again, parallel over chunks; then one memory after the other, so that half as much is resident.
backward_chunks: only the cotangents of states walk back; all else is parallel over chunks, each of them one tile.
"""


@dataclass(frozen=True)
class Schedule:
    """What every schedule has: a backend and a variant."""

    backend: ClassVar[str]
    choices: ClassVar[dict[str, tuple[Value, ...]]]
    variant: str

    def key(self) -> str:
        """Stable text key."""
        return f"{self.backend}:" + ",".join(f"{name}={value}" for name, value in self.settings().items())

    def settings(self) -> dict[str, Value]:
        """The fields as plain data, as a tuning record stores them."""
        return dict(vars(self))

    @property
    def row_unit(self) -> int:
        """Numbers that a row of scratch memory is padded to a multiple of."""
        return 1

    def workers(self, programs: int) -> int:
        """How many of so many programs need scratch memory of their own."""
        return programs


@dataclass(frozen=True)
class TvmSchedule(Schedule):
    """Settings of the TVM templates.

    Attributes:
        tile_tokens: tokens processed at a time; on a CPU they are the vector lanes of the chunk's products.
        vector_width: float32 lanes per vector instruction; for CUDA, numbers that a thread reads at once.
        accumulators: vector registers that a product sums in at once, the others are for its operands; for CUDA,
            numbers that a thread sums at once.
        threads: tasks that the programs are dealt to, of which 1 stays on the calling thread; for CUDA, of a block.
        checkpoint_spacing: a backward keeps the states at the start of every so many chunks, and computes those of the
            chunks between again. A tile of it may span as many chunks.
        dot_precision: of the products of a kernel for CUDA: "ieee", by multiply-adds; or by tensor cores, as
            TritonSchedule has it, "tf32x3", "tf32" or "bf16". On a CPU "ieee".
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
    tile_tokens: int
    vector_width: int
    accumulators: int
    threads: int
    checkpoint_spacing: int = 1
    dot_precision: str = "ieee"

    @property
    def row_unit(self) -> int:
        """A whole vector."""
        return self.vector_width

    def workers(self, programs: int) -> int:
        """A thread keeps its scratch memory from one program to the next."""
        return self.threads


@dataclass(frozen=True)
class TritonSchedule(Schedule):
    """Settings of the Triton templates.

    Attributes:
        tile_rows: tokens processed at a time (rows of a dot operand), at least 16.
        num_warps: warps per program.
        num_stages: software-pipelining depth of the token loop.
        dot_precision: how float32 operands enter a dot: "ieee"; as one TF32 or BF16 number, "tf32" or "bf16"; or as
            the sum of several, in three products, "tf32x3" or "bf16x3".
        checkpoint_spacing: chunk-start states are stored for the backward of every chunk with a number that it divides.
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
    tile_rows: int
    num_warps: int
    num_stages: int
    dot_precision: str
    checkpoint_spacing: int = 1
    ptxas: str = "standard"
    loads: str = "pointers"


FEWEST_ACCUMULATORS = 4
"""What variant `recurrent` of TVM, which has no tile, has to name."""

SPANNING = ("fused", "pair", "backward")
"""TVM variants whose tiles may span several chunks."""

CUDA_VARIANTS = ("split", "recurrent", "update", "readout")
"""TVM variants that have templates for CUDA."""

MOST_TASKS = 64
"""On a CPU, a TVM kernel deals its programs to no more."""

FEWEST_TOKENS_PER_STATE = 16
"""A state is M x D numbers: stored for every token, states take hundreds of times what the inputs take."""

_ONLY = {"pair": "tvm", "backward_split": "triton", "backward_chunks": "triton"}

_FIRST_WITH_TF32 = 80  # And with bfloat16.

VECTORS_PER_ROW = 4
"""Vectors of an output row that the TVM templates accumulate at once."""

SCHEDULES: dict[str, type[TvmSchedule] | type[TritonSchedule]] = {"tvm": TvmSchedule, "triton": TritonSchedule}
BACKENDS = tuple(SCHEDULES)


def variants_of(operator: str, backend: str, direction: str = "forward") -> tuple[str, ...]:
    """The variants of `operator` in one of `codegen.spec.DIRECTIONS` that `backend` has templates for."""
    variants = VARIANTS[operator] if direction == "forward" else BACKWARD_VARIANTS.get(operator, ())
    return tuple(variant for variant in variants if _ONLY.get(variant, backend) == backend)


def from_settings(backend: str, settings: dict[str, object]) -> Schedule:
    """The schedule that stored plain data describes; a field that came later than the data has its default.

    Raises:
        UnknownBackendError: no such backend.
        ScheduleFieldError: a field that is unknown, missing and without a default, of the wrong type, or outside its
            choices.
    """
    if backend not in SCHEDULES:
        raise UnknownBackendError(name=backend, known=", ".join(BACKENDS))
    kind = SCHEDULES[backend]
    groups = (*VARIANTS.values(), *BACKWARD_VARIANTS.values())
    variants = tuple(dict.fromkeys(variant for group in groups for variant in group))
    allowed: dict[str, tuple[Value, ...]] = {"variant": variants, **kind.choices}
    known = {field.name for field in fields(kind)}
    later = {field.name for field in fields(kind) if field.default is not MISSING}
    for name in sorted((known ^ settings.keys()) - (later - settings.keys())):
        reason = "missing" if name in allowed else "unknown field"
        raise ScheduleFieldError(field=name, value=settings.get(name), backend=backend, reason=reason)
    for name, value in settings.items():
        # Of one type too: 16.0 == 16 and True == 1, but a template writes them otherwise.
        if not any(type(value) is type(each) and value == each for each in allowed[name]):
            reason = f"expected one of {allowed[name]}"
            raise ScheduleFieldError(field=name, value=value, backend=backend, reason=reason)
    return kind(**settings)  # type: ignore[arg-type]


def segment_tokens(spec: Spec, schedule: Schedule) -> int:
    """How many tokens a backward schedule puts between two states that it keeps."""
    assert isinstance(schedule, TvmSchedule | TritonSchedule)
    return schedule.checkpoint_spacing * spec.problem.chunk


def segment_tiles(spec: Spec, schedule: Schedule, tokens: int | None = None) -> int:
    """How many tiles a backward schedule walks between two kept states, of sequences of at most so many tokens."""
    chunk = spec.problem.chunk
    if isinstance(schedule, TritonSchedule):
        return schedule.checkpoint_spacing * -(-chunk // schedule.tile_rows)
    assert isinstance(schedule, TvmSchedule)
    tile, tokens = schedule.tile_tokens, segment_tokens(spec, schedule) if tokens is None else tokens
    unit = max(chunk, min(tile // chunk, schedule.checkpoint_spacing) * chunk)
    segment = min(segment_tokens(spec, schedule), tokens)
    return -(-segment // unit) * -(-min(unit, segment) // tile)


def dot_precisions(device: Device) -> tuple[str, ...]:
    """How float32 operands may enter a dot there; Triton's interpreter computes in float32 whatever it is told."""
    if device.kind == "hip":
        return ("ieee", "tf32", "bf16x3", "bf16") if device.arch == "gfx942" else ("ieee", "bf16x3", "bf16")
    if device.kind == "cpu":
        return ("ieee", "tf32x3", "tf32")
    if int(device.arch.removeprefix("sm_")) < _FIRST_WITH_TF32:
        return ("ieee",)
    return ("ieee", "tf32x3", "tf32", "bf16x3", "bf16")


def dots_in_bfloat16(schedule: Schedule) -> bool:
    """Whether what one kernel of Triton leaves for the dots of the next may be bfloat16, as they round it so."""
    return isinstance(schedule, TritonSchedule) and schedule.dot_precision == "bf16"


def keeps_bfloat16(schedule: Schedule) -> bool:
    """Whether `split` keeps chunk-start states in bfloat16, its inputs' type: its dots round them so."""
    return schedule.variant == "split" and dots_in_bfloat16(schedule)


def vector_registers(device: Device) -> int:
    """How many vector registers a CPU has."""
    return 32 if device.vector_bits == 512 or device.arch == "aarch64" else 16


def most_accumulators(device: Device) -> int:
    """How many vector registers a product may sum in: a quarter stays free for its operands."""
    return vector_registers(device) * 3 // 4
