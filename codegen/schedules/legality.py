"""What a schedule may be: the single test of legality, for the search and for dispatch alike."""

from __future__ import annotations

from codegen.device import Device
from codegen.errors import IllegalScheduleError
from codegen.schedules import cuda_block
from codegen.schedules.known_bad import why_known_bad
from codegen.schedules.schedule import (
    CUDA_VARIANTS,
    FEWEST_ACCUMULATORS,
    FEWEST_TOKENS_PER_STATE,
    MOST_TASKS,
    SPANNING,
    Schedule,
    TritonSchedule,
    TvmSchedule,
    dot_precisions,
    most_accumulators,
    segment_tokens,
    variants_of,
)
from codegen.spec import Problem, Spec, next_power_of_two

_LONGEST_TRITON_BACKWARD_CHUNK = 1024
_BITS_OF_OPERANDS = {"tf32": 11, "bf16": 8}
_BITS_OF_INPUTS = {"float32": 24, "float16": 11, "bfloat16": 8}
_BYTES_OF_INPUTS = {"float32": 4, "float16": 2, "bfloat16": 2}
_FIRST_WITH_TMA = 90
_DESCRIPTOR_ALIGNMENT = 16
_MOST_TOKENS_PER_STATE = 256  # States of so many tokens take less than their inputs do.


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
    if schedule.variant == "recurrent" and problem.operator == "trellis_attention" and problem.chunk != 1:
        return f"variant 'recurrent' is exact only for chunk 1, not {problem.chunk}"
    reason = why_known_bad(schedule.backend, schedule.settings(), device)
    if reason is not None:
        return reason
    reason = _why_illegal_spacing(spec, segment_tokens(spec, schedule) // problem.chunk)
    if reason is not None:
        return reason
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


def _why_illegal_spacing(spec: Spec, spacing: int) -> str | None:
    tokens = spacing * spec.problem.chunk
    if spec.problem.direction == "forward":
        return None if spacing == 1 else "only a backward stores states: checkpoint_spacing must be 1"
    if tokens < FEWEST_TOKENS_PER_STATE:
        return f"checkpoint_spacing {spacing} stores the states of every {tokens} tokens, which takes too much memory"
    if spacing > 1 and tokens > _MOST_TOKENS_PER_STATE:
        return f"checkpoint_spacing {spacing} would compute the states of {tokens} tokens again, to save little memory"
    return None


def _why_illegal_tvm(spec: Spec, schedule: TvmSchedule, device: Device) -> str | None:
    if device.kind == "hip":
        return "the TVM templates are written for CPUs and CUDA, not HIP"
    if device.kind == "cuda":
        return _why_illegal_tvm_cuda(spec, schedule, device)
    if schedule.dot_precision != "ieee":
        return f"no CPU kernel has {schedule.dot_precision} dots: dot_precision must be 'ieee'"
    if schedule.vector_width * 32 > device.vector_bits:
        return f"vector_width {schedule.vector_width} exceeds the {device.vector_bits}-bit vectors of {device.arch}"
    if schedule.variant == "recurrent" and (
        schedule.tile_tokens != schedule.vector_width or schedule.accumulators != FEWEST_ACCUMULATORS
    ):
        return (
            "variant 'recurrent' has no tile: tile_tokens must be the vector width, and accumulators"
            f" {FEWEST_ACCUMULATORS}"
        )
    if schedule.tile_tokens % schedule.vector_width:
        return f"tile_tokens {schedule.tile_tokens} is no multiple of vector_width {schedule.vector_width}"
    if schedule.variant not in SPANNING and schedule.tile_tokens > max(
        schedule.vector_width, next_power_of_two(spec.problem.chunk)
    ):
        return f"tile_tokens {schedule.tile_tokens} exceeds the chunk of {spec.problem.chunk} tokens"
    if schedule.variant == "backward":
        spanned = schedule.tile_tokens // spec.problem.chunk
        if spanned > schedule.checkpoint_spacing:
            return (
                f"tile_tokens {schedule.tile_tokens} spans {spanned} chunks of {spec.problem.chunk} tokens,"
                f" more than checkpoint_spacing {schedule.checkpoint_spacing}"
            )
    if schedule.accumulators > most_accumulators(device):
        return f"{schedule.accumulators} accumulators do not fit the vector registers of {device.arch}"
    if schedule.threads > device.cores:
        return f"threads {schedule.threads} exceeds the {device.cores} cores"
    if schedule.threads > MOST_TASKS:
        return f"threads {schedule.threads} is for blocks of CUDA; on a CPU there are at most {MOST_TASKS}"
    return None


def _why_illegal_tvm_cuda(spec: Spec, schedule: TvmSchedule, device: Device) -> str | None:
    problem, tile, threads = spec.problem, schedule.tile_tokens, schedule.threads
    if schedule.variant not in CUDA_VARIANTS:
        return f"for CUDA there are TVM templates of {', '.join(CUDA_VARIANTS)} only, not of {schedule.variant!r}"
    if schedule.vector_width != cuda_block.WIDTH:
        return f"for CUDA vector_width must be {cuda_block.WIDTH}, what a thread reads at once"
    if threads < cuda_block.FEWEST_THREADS:
        return f"a block of {threads} threads is too small: for CUDA there are at least {cuda_block.FEWEST_THREADS}"
    if schedule.variant == "recurrent":
        if tile != cuda_block.WIDTH or schedule.accumulators != FEWEST_ACCUMULATORS:
            return (
                f"variant 'recurrent' has no tile: tile_tokens must be {cuda_block.WIDTH}, and accumulators"
                f" {FEWEST_ACCUMULATORS}"
            )
    elif schedule.accumulators not in cuda_block.ACCUMULATORS:
        return f"for CUDA accumulators must be one of {cuda_block.ACCUMULATORS}, not {schedule.accumulators}"
    if tile > max(cuda_block.WIDTH, next_power_of_two(problem.chunk)):
        return f"tile_tokens {tile} exceeds the chunk of {problem.chunk} tokens"
    reason = _why_illegal_tensor_cores(spec, schedule, device)
    if reason is not None:
        return reason
    needed = cuda_block.most_shared_bytes(problem, schedule)
    if needed > device.shared_bytes:
        return f"a block would need {needed} bytes of shared memory, {device.arch} has {device.shared_bytes}"
    return None


def _why_illegal_tensor_cores(spec: Spec, schedule: TvmSchedule, device: Device) -> str | None:
    if schedule.dot_precision == "ieee":
        return None
    if schedule.variant == "recurrent":
        return "variant 'recurrent' has no dots: dot_precision must be 'ieee'"
    if schedule.dot_precision not in dot_precisions(device):
        return f"{device.arch} has no {schedule.dot_precision} dots: dot_precision must be 'ieee'"
    columns = cuda_block.columns_of_a_warp(schedule)
    if schedule.tile_tokens % max(cuda_block.MMA_ROWS, columns):
        return (
            f"tensor cores take {cuda_block.MMA_ROWS} rows and, with accumulators {schedule.accumulators}, {columns}"
            f" columns at once, of which tile_tokens {schedule.tile_tokens} must be a multiple"
        )
    return _why_too_few_bits(spec, schedule.dot_precision)


def _why_illegal_triton(spec: Spec, schedule: TritonSchedule, device: Device) -> str | None:
    if spec.problem.direction != "forward" and spec.problem.chunk > _LONGEST_TRITON_BACKWARD_CHUNK:
        return (
            f"the backward kernel takes chunks of at most {_LONGEST_TRITON_BACKWARD_CHUNK} tokens,"
            f" not {spec.problem.chunk}"
        )
    if device.kind == "cpu" and schedule.num_stages > 1:
        return "the interpreter has no software pipeline: num_stages must be 1"
    if schedule.tile_rows > max(16, next_power_of_two(spec.problem.chunk)):
        return f"tile_rows {schedule.tile_rows} exceeds the chunk of {spec.problem.chunk} tokens"
    if schedule.variant == "backward_chunks" and schedule.tile_rows < spec.problem.chunk:
        return f"variant 'backward_chunks' takes whole chunks: tile_rows must hold {spec.problem.chunk} tokens"
    if schedule.variant == "backward_chunks" and schedule.checkpoint_spacing != 1:
        return "variant 'backward_chunks' reads the first state of every chunk: checkpoint_spacing must be 1"
    if schedule.variant == "recurrent" and schedule.tile_rows != 16:
        return "variant 'recurrent' has no tile: tile_rows must be 16"
    if schedule.ptxas != "standard" and not device.arch.startswith(("sm_8", "sm_9")):
        return f"{device.arch} has one assembler only: ptxas must be 'standard'"
    if schedule.loads == "descriptors":
        reason = _why_illegal_descriptors(spec.problem, schedule, device)
        if reason is not None:
            return reason
    if schedule.variant != "recurrent":
        return _why_illegal_precision(spec, schedule, device)
    return None if schedule.dot_precision == "ieee" else "variant 'recurrent' has no dots: dot_precision must be 'ieee'"


def _why_illegal_descriptors(problem: Problem, schedule: TritonSchedule, device: Device) -> str | None:
    if device.kind != "cpu" and not (device.kind == "cuda" and int(device.arch.removeprefix("sm_")) >= _FIRST_WITH_TMA):
        return f"{device.arch} copies no tiles by tensor descriptors, sm_{_FIRST_WITH_TMA} and later do"
    if schedule.variant == "recurrent" or problem.direction != "forward":
        return "only the chunked kernels of a forward have tensor descriptors: loads must be 'pointers'"
    rows, chunk = schedule.tile_rows, problem.chunk
    if schedule.variant == "readout" and rows >= chunk:
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


def _why_illegal_precision(spec: Spec, schedule: TritonSchedule, device: Device) -> str | None:
    if schedule.dot_precision not in dot_precisions(device):
        return f"{device.arch} has no {schedule.dot_precision} dots, only {', '.join(dot_precisions(device))}"
    reason = _why_too_few_bits(spec, schedule.dot_precision)
    if reason is not None:
        return reason
    cheaper = "tf32x3" in dot_precisions(device)
    if spec.problem.dtype != "float32" and schedule.dot_precision == "ieee" and cheaper:
        return f"ieee dots cost most and gain nothing over tf32x3 for {spec.problem.dtype} inputs"
    return None


def _why_too_few_bits(spec: Spec, precision: str) -> str | None:
    bits = _BITS_OF_OPERANDS.get(precision)
    if bits is not None and bits < _BITS_OF_INPUTS[spec.problem.dtype]:
        return f"{precision} dots keep {bits} bits of each operand: too few for {spec.problem.dtype} inputs"
    return None
