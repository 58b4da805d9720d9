"""How a kernel computes: schedules, their choices, their defaults, and the single test of legality.

A schedule never changes the result beyond rounding, so a tuner may search all of it freely.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from codegen.device import Device
from codegen.errors import IllegalScheduleError, ScheduleFieldError, UnknownBackendError
from codegen.spec import Spec, next_power_of_two

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

BACKWARD_VARIANTS: dict[str, tuple[str, ...]] = {"trellis_attention": ("backward",)}
"""Variants of the operators that have a backward kernel.

backward: `fused` that also stores states at starts of chunks, then one program per sequence and head that walks back.
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
        return asdict(self)


@dataclass(frozen=True)
class TvmSchedule(Schedule):
    """Settings of the TVM templates for CPUs.

    Attributes:
        tile_tokens: tokens processed at a time; they are the vector lanes of the chunk's products.
        vector_width: float32 lanes per vector instruction.
        accumulators: vector registers that a product sums in at once; the others are for its operands.
        threads: tasks that the programs are dealt to; 1 stays on the calling thread.
        checkpoint_spacing: a backward keeps the states at the start of every so many chunks, and computes those of the
            chunks between again. A tile of it may span as many chunks.
    """

    backend: ClassVar[str] = "tvm"
    choices: ClassVar[dict[str, tuple[Value, ...]]] = {
        "tile_tokens": (4, 8, 16, 32, 64),
        "vector_width": (4, 8, 16),
        "accumulators": (4, 8, 12, 16, 24),
        "threads": (1, 2, 4, 8, 16, 32, 64),
        "checkpoint_spacing": (1, 2, 4, 8, 16, 32, 64),
    }
    tile_tokens: int
    vector_width: int
    accumulators: int
    threads: int
    checkpoint_spacing: int = 1


@dataclass(frozen=True)
class TritonSchedule(Schedule):
    """Settings of the Triton templates.

    Attributes:
        tile_rows: tokens processed at a time (rows of a dot operand), at least 16.
        num_warps: warps per program.
        num_stages: software-pipelining depth of the token loop.
        dot_precision: how float32 operands enter a dot: "ieee", "tf32x3" or "tf32".
    """

    backend: ClassVar[str] = "triton"
    choices: ClassVar[dict[str, tuple[Value, ...]]] = {
        "tile_rows": (16, 32, 64),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (1, 2, 3),
        "dot_precision": ("ieee", "tf32x3", "tf32"),
    }
    tile_rows: int
    num_warps: int
    num_stages: int
    dot_precision: str


_ONLY_TVM = ("pair", "backward")
_FEWEST_ACCUMULATORS = 4
_DEFAULT_TILE = 16
_DEFAULT_ACCUMULATORS = 16
_SPANNING = ("fused", "pair", "backward")  # TVM variants whose tiles may span several chunks.

# A backward of shorter chunks keeps the states at starts of about so many tokens, in tiles that span chunks.
_SHORTEST_KEPT_CHUNK = 16
_TOKENS_BETWEEN_KEPT = 64
_MOST_TOKENS_BETWEEN_KEPT = 512

VECTORS_PER_ROW = 4
"""Vectors of an output row that the TVM templates accumulate at once."""

SCHEDULES: dict[str, type[TvmSchedule] | type[TritonSchedule]] = {"tvm": TvmSchedule, "triton": TritonSchedule}
BACKENDS = tuple(SCHEDULES)


def variants_of(operator: str, backend: str, direction: str = "forward") -> tuple[str, ...]:
    """The variants of `operator` in one of `codegen.spec.DIRECTIONS` that `backend` has templates for."""
    variants = VARIANTS[operator] if direction == "forward" else BACKWARD_VARIANTS.get(operator, ())
    return tuple(variant for variant in variants if backend == "tvm" or variant not in _ONLY_TVM)


def from_settings(backend: str, settings: dict[str, object]) -> Schedule:
    """The schedule that stored plain data describes.

    Raises:
        UnknownBackendError: no such backend.
        ScheduleFieldError: a field that is unknown, missing, of the wrong type, or outside its choices.
    """
    if backend not in SCHEDULES:
        raise UnknownBackendError(name=backend, known=", ".join(BACKENDS))
    kind = SCHEDULES[backend]
    groups = (*VARIANTS.values(), *BACKWARD_VARIANTS.values())
    variants = tuple(dict.fromkeys(variant for group in groups for variant in group))
    allowed: dict[str, tuple[Value, ...]] = {"variant": variants, **kind.choices}
    for name in sorted({field.name for field in fields(kind)} ^ settings.keys()):
        reason = "missing" if name in allowed else "unknown field"
        raise ScheduleFieldError(field=name, value=settings.get(name), backend=backend, reason=reason)
    for name, value in settings.items():
        if isinstance(value, bool) or value not in allowed[name]:
            reason = f"expected one of {allowed[name]}"
            raise ScheduleFieldError(field=name, value=value, backend=backend, reason=reason)
    return kind(**settings)  # type: ignore[arg-type]


def default(backend: str, spec: Spec, device: Device) -> Schedule:
    """The schedule to use where nothing better is known; always legal where any is.

    Raises:
        UnknownBackendError: no such backend.
    """
    if backend == "tvm":
        return _default_tvm(spec, device)
    if backend == "triton":
        return _default_triton(spec, device)
    raise UnknownBackendError(name=backend, known=", ".join(BACKENDS))


def why_illegal(spec: Spec, schedule: Schedule, device: Device) -> str | None:
    """Why `schedule` cannot be used for `spec` on `device`, in one sentence; None if it can.

    This is the single source of truth: the search never compiles what is illegal, dispatch never runs it.
    """
    problem = spec.problem
    variants = variants_of(problem.operator, schedule.backend, problem.direction)
    if schedule.variant not in variants:
        operator = problem.operator if problem.direction == "forward" else f"{problem.operator} {problem.direction}"
        known = f"only {', '.join(variants)}" if variants else "and no other"
        return f"{schedule.backend} has no variant {schedule.variant!r} of {operator}, {known}"
    if schedule.variant == "recurrent" and spec.problem.operator == "trellis_attention" and spec.problem.chunk != 1:
        return f"variant 'recurrent' is exact only for chunk 1, not {spec.problem.chunk}"
    if isinstance(schedule, TvmSchedule):
        return _why_illegal_tvm(spec, schedule, device)
    if isinstance(schedule, TritonSchedule):
        return _why_illegal_triton(spec, schedule, device)
    return f"no rule for schedules of type {type(schedule).__name__}"


def require_legal(spec: Spec, schedule: Schedule, device: Device) -> None:
    """Raise IllegalScheduleError if `why_illegal` finds a reason."""
    reason = why_illegal(spec, schedule, device)
    if reason is not None:
        raise IllegalScheduleError(schedule=schedule.key(), spec=spec.key(), reason=reason)


def _default_tvm(spec: Spec, device: Device) -> TvmSchedule:
    variant = _default_tvm_variant(spec, device)
    width = min(16, max(4, device.vector_bits // 32))
    threads = max(n for n in TvmSchedule.choices["threads"] if isinstance(n, int) and n <= device.cores)
    if variant == "recurrent":
        return TvmSchedule(variant, width, width, _FEWEST_ACCUMULATORS, threads)
    tile = max(width, _DEFAULT_TILE)
    if variant == "backward":
        return _default_backward(spec.problem.chunk, width, _most_accumulators(device), threads)
    if variant not in _SPANNING:
        tile = max(width, min(tile, next_power_of_two(spec.problem.chunk)))
    return TvmSchedule(variant, tile, width, min(_DEFAULT_ACCUMULATORS, _most_accumulators(device)), threads)


def _default_backward(chunk: int, width: int, accumulators: int, threads: int) -> TvmSchedule:
    if chunk < _SHORTEST_KEPT_CHUNK:
        spacing = next_power_of_two(_TOKENS_BETWEEN_KEPT // chunk + 1) // 2
        return TvmSchedule("backward", max(width, _DEFAULT_TILE), width, accumulators, threads, spacing)
    # A longer tile has fewer products but wastes more of them above the diagonal, which the backward leaves out.
    tile = max(width, min(4 * width, next_power_of_two(chunk)))
    return TvmSchedule("backward", tile, width, accumulators, threads)


def segment_tokens(spec: Spec, schedule: Schedule) -> int:
    """How many tokens a backward schedule puts between two states that it keeps."""
    spacing = schedule.checkpoint_spacing if isinstance(schedule, TvmSchedule) else 1
    return spacing * spec.problem.chunk


def segment_tiles(spec: Spec, schedule: TvmSchedule, tokens: int) -> int:
    """How many tiles a backward schedule walks between two kept states, of sequences of at most so many tokens."""
    chunk, tile = spec.problem.chunk, schedule.tile_tokens
    unit = max(chunk, min(tile // chunk, schedule.checkpoint_spacing) * chunk)
    segment = min(segment_tokens(spec, schedule), tokens)
    return -(-segment // unit) * -(-min(unit, segment) // tile)


def _default_triton(spec: Spec, device: Device) -> TritonSchedule:
    # Compiled for sm_90 these are the largest tiles without spills; for larger states every fused kernel spills.
    problem = spec.problem
    precision = "tf32x3" if problem.dtype == "float32" else "tf32"
    if precision not in _dot_precisions(device):
        precision = _dot_precisions(device)[0]
    large = max(problem.slots, problem.dim_k, problem.dim_v) > 64
    tile = 32 if precision == "tf32" and not large and problem.chunk > 16 else 16
    variant = _default_variant(spec)
    if variant == "fused" and large:
        variant = "split"
    elif variant == "recurrent":
        tile = 16
    return TritonSchedule(variant, tile, num_warps=8, num_stages=1, dot_precision=precision)


def _dot_precisions(device: Device) -> tuple[str, ...]:
    # What Triton has for float32 operands there; the interpreter computes in float32 whatever it is told.
    if device.kind == "hip":
        return ("ieee", "tf32") if device.arch == "gfx942" else ("ieee",)
    return ("ieee", "tf32x3", "tf32")


def _default_variant(spec: Spec) -> str:
    if spec.problem.operator == "trellis_attention" and spec.problem.chunk == 1:
        return "recurrent"
    return VARIANTS[spec.problem.operator][0]


def _default_tvm_variant(spec: Spec, device: Device) -> str:
    problem = spec.problem
    if problem.operator != "trellis_attention":
        return VARIANTS[problem.operator][0]
    if problem.direction != "forward":
        return BACKWARD_VARIANTS[problem.operator][0]
    if problem.batch * problem.heads < device.cores:
        return "pair"
    return "recurrent" if problem.chunk == 1 else "fused"


def _vector_registers(device: Device) -> int:
    return 32 if device.vector_bits == 512 or device.arch == "aarch64" else 16


def _most_accumulators(device: Device) -> int:
    # A quarter of the vector registers stays free for the operands of the product.
    return _vector_registers(device) * 3 // 4


def _why_illegal_tvm(spec: Spec, schedule: TvmSchedule, device: Device) -> str | None:
    if device.kind == "hip":
        return "the TVM templates are written for CPUs and CUDA, not HIP"
    if device.kind == "cuda":
        only_update = spec.problem.operator == "memory_update"
        return None if only_update else "for CUDA only memory_update has a TVM template"
    if schedule.vector_width * 32 > device.vector_bits:
        return f"vector_width {schedule.vector_width} exceeds the {device.vector_bits}-bit vectors of {device.arch}"
    if schedule.variant == "recurrent" and (
        schedule.tile_tokens != schedule.vector_width or schedule.accumulators != _FEWEST_ACCUMULATORS
    ):
        return (
            "variant 'recurrent' has no tile: tile_tokens must be the vector width, and accumulators"
            f" {_FEWEST_ACCUMULATORS}"
        )
    if schedule.tile_tokens % schedule.vector_width:
        return f"tile_tokens {schedule.tile_tokens} is no multiple of vector_width {schedule.vector_width}"
    if schedule.variant not in _SPANNING and schedule.tile_tokens > max(
        schedule.vector_width, next_power_of_two(spec.problem.chunk)
    ):
        return f"tile_tokens {schedule.tile_tokens} exceeds the chunk of {spec.problem.chunk} tokens"
    if schedule.variant == "backward":
        reason = _why_illegal_spacing(spec.problem.chunk, schedule)
        if reason is not None:
            return reason
    elif schedule.checkpoint_spacing != 1:
        return f"checkpoint_spacing {schedule.checkpoint_spacing} is for backward schedules, others take 1"
    if schedule.accumulators > _most_accumulators(device):
        return f"{schedule.accumulators} accumulators do not fit the vector registers of {device.arch}"
    if schedule.threads > device.cores:
        return f"threads {schedule.threads} exceeds the {device.cores} cores"
    return None


def _why_illegal_spacing(chunk: int, schedule: TvmSchedule) -> str | None:
    tile, spacing = schedule.tile_tokens, schedule.checkpoint_spacing
    spanned = tile // chunk
    if spanned > spacing:
        return f"tile_tokens {tile} spans {spanned} chunks of {chunk} tokens, more than checkpoint_spacing {spacing}"
    if spacing > 1 and spacing * chunk > _MOST_TOKENS_BETWEEN_KEPT:
        return (
            f"checkpoint_spacing {spacing} keeps states more than {_MOST_TOKENS_BETWEEN_KEPT} tokens apart"
            f" with chunks of {chunk}"
        )
    return None


def _why_illegal_triton(spec: Spec, schedule: TritonSchedule, device: Device) -> str | None:
    if device.kind == "cpu" and schedule.num_stages > 1:
        return "the interpreter has no software pipeline: num_stages must be 1"
    if schedule.tile_rows > max(16, next_power_of_two(spec.problem.chunk)):
        return f"tile_rows {schedule.tile_rows} exceeds the chunk of {spec.problem.chunk} tokens"
    if schedule.variant == "recurrent" and schedule.tile_rows != 16:
        return "variant 'recurrent' has no tile: tile_rows must be 16"
    if schedule.dot_precision not in _dot_precisions(device):
        return f"{device.arch} has no {schedule.dot_precision} dots, only {', '.join(_dot_precisions(device))}"
    if spec.problem.dtype != "float32" and schedule.dot_precision == "ieee" and device.kind != "hip":
        return f"ieee dots cost most and gain nothing over tf32x3 for {spec.problem.dtype} inputs"
    return None
