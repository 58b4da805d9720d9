"""Which schedule to use where nothing better is known."""

from __future__ import annotations

from codegen.device import Device
from codegen.errors import UnknownBackendError
from codegen.schedules import cuda_block
from codegen.schedules.schedule import (
    BACKENDS,
    BACKWARD_VARIANTS,
    CUDA_VARIANTS,
    FEWEST_ACCUMULATORS,
    FEWEST_TOKENS_PER_STATE,
    MOST_TASKS,
    SPANNING,
    VARIANTS,
    VECTORS_PER_ROW,
    Schedule,
    TritonSchedule,
    TvmSchedule,
    dot_precisions,
    vector_registers,
)
from codegen.spec import Problem, Spec, next_power_of_two

_DEFAULT_TILE = 16
_DEFAULT_CUDA_TILE = 64
_LONGEST_WHOLE_CHUNK = 64
_DEFAULT_ACCUMULATORS = 16
# Where chunks are shorter than FEWEST_TOKENS_PER_STATE, TVM's tiles span chunks, which costs less the more of them.
_TOKENS_PER_STATE = 64
# The fastest that is right by a margin (docs/gpu.md has the errors); the first that the device has.
_USUAL_PRECISIONS = {"float32": ("tf32x3", "ieee"), "float16": ("tf32", "ieee"), "bfloat16": ("bf16", "tf32", "ieee")}
_WARPS_AND_STAGES = {"sm_90": (4, 3), "gfx942": (4, 2)}


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


def _default_tvm(spec: Spec, device: Device) -> TvmSchedule:
    if device.kind == "cuda":
        return _default_tvm_cuda(spec, device)
    variant = _default_tvm_variant(spec, device)
    width = min(16, max(4, device.vector_bits // 32))
    most = min(device.cores, MOST_TASKS)
    threads = max(n for n in TvmSchedule.choices["threads"] if isinstance(n, int) and n <= most)
    if variant == "recurrent":
        return TvmSchedule(variant, width, width, FEWEST_ACCUMULATORS, threads)
    tile = max(width, _DEFAULT_TILE)
    if variant == "backward":
        return _default_backward(spec.problem.chunk, width, _most_without_spills(device), threads)
    if variant not in SPANNING:
        tile = max(width, min(tile, next_power_of_two(spec.problem.chunk)))
    return TvmSchedule(variant, tile, width, min(_DEFAULT_ACCUMULATORS, _most_without_spills(device)), threads)


def _most_without_spills(device: Device) -> int:
    # Beside its sums, a block of whole rows keeps the vectors of one row and a number that is broadcast in registers.
    rows = (vector_registers(device) - VECTORS_PER_ROW - 1) // VECTORS_PER_ROW
    return rows * VECTORS_PER_ROW


def _default_tvm_variant(spec: Spec, device: Device) -> str:
    problem = spec.problem
    if problem.operator != "trellis_attention":
        return VARIANTS[problem.operator][0]
    if problem.direction != "forward":
        return BACKWARD_VARIANTS[problem.operator][0]
    if problem.batch * problem.heads < device.cores:
        return "pair"
    # A tile of tokens has to be filled before it is faster than one token after another.
    return "recurrent" if problem.chunk == 1 and problem.tokens <= 2 * _DEFAULT_TILE else "fused"


def _default_tvm_cuda(spec: Spec, device: Device) -> TvmSchedule:
    problem, variant = spec.problem, _default_variant(spec)
    if variant == "recurrent":
        fits = (n for n in (128, 256) if cuda_block.resident_numbers(problem, n) <= cuda_block.MOST_RESIDENT)
        threads = next(fits, 512)
        return TvmSchedule(variant, cuda_block.WIDTH, cuda_block.WIDTH, FEWEST_ACCUMULATORS, threads)
    variant = "split" if variant == "fused" else variant
    if variant not in CUDA_VARIANTS:
        # No kernel: legality says so.
        return TvmSchedule(variant, cuda_block.WIDTH, cuda_block.WIDTH, FEWEST_ACCUMULATORS, 256)
    longest = min(_DEFAULT_CUDA_TILE, max(cuda_block.WIDTH, next_power_of_two(problem.chunk)))
    tiles = [tile for tile in reversed(TvmSchedule.choices["tile_tokens"]) if isinstance(tile, int) and tile <= longest]
    precision = next(each for each in _USUAL_PRECISIONS[problem.dtype] if each in dot_precisions(device))
    schedules = [_cuda_products(variant, tile, precision) for tile in tiles]
    fitting = (each for each in schedules if cuda_block.most_shared_bytes(problem, each) <= device.shared_bytes)
    return next(fitting, schedules[-1])


def _cuda_products(variant: str, tile: int, precision: str) -> TvmSchedule:
    most = max(cuda_block.ACCUMULATORS)
    if precision == "ieee" or tile < cuda_block.MMA_ROWS:
        return TvmSchedule(variant, tile, cuda_block.WIDTH, most, 256)
    # A warp's columns are at most a tile, whose scores have no more.
    return TvmSchedule(variant, tile, cuda_block.WIDTH, min(most, tile // 2), 256, dot_precision=precision)


def _default_backward(chunk: int, width: int, accumulators: int, threads: int) -> TvmSchedule:
    if chunk < FEWEST_TOKENS_PER_STATE:
        spacing = next_power_of_two(_TOKENS_PER_STATE // chunk + 1) // 2
        return TvmSchedule("backward", max(width, _DEFAULT_TILE), width, accumulators, threads, spacing)
    # A longer tile has fewer products but wastes more of them above the diagonal, which the backward leaves out.
    tile = max(width, min(4 * width, next_power_of_two(chunk)))
    return TvmSchedule("backward", tile, width, accumulators, threads)


def _default_triton(spec: Spec, device: Device) -> TritonSchedule:
    # For bfloat16 on sm_90 what won on an H200; else what spills least, or nearly so.
    problem = spec.problem
    precision = next(each for each in _USUAL_PRECISIONS[problem.dtype] if each in dot_precisions(device))
    large = max(problem.slots, problem.dim_k, problem.dim_v) > 64
    variant = _default_variant(spec)
    if variant == "backward":
        # tf32x3 is three products for one, which take more registers than there are for 64 tokens.
        longest = 16 if precision == "tf32x3" else _LONGEST_WHOLE_CHUNK
        if not large and 16 <= problem.chunk <= longest:
            return _default_backward_chunks(problem.chunk, precision, device)
        spacing = _default_triton_spacing(problem)
        return TritonSchedule("backward_split", 16, 4 if device.kind == "hip" else 8, 1, precision, spacing)
    # Four warps with the standard assembler are known bad on some devices (codegen/schedules/known_bad.json).
    ptxas = "blackwell" if device.arch == "sm_90" and not large else "standard"
    if variant == "recurrent":
        # The next token's loads are under way without stages; with three an H200 took 1.03 to 1.05 times as long, bf16.
        return TritonSchedule(variant, 16, 8 if large else 4, 1, "ieee", ptxas=ptxas)
    variant = "split" if variant == "fused" else variant
    if large or (problem.dtype == "float32" and problem.chunk > 16):
        return TritonSchedule(variant, 16, 8, 1, precision)
    tile = min(64, max(16, next_power_of_two(problem.chunk)))
    warps, stages = _WARPS_AND_STAGES.get(device.arch, (8, 1))
    return TritonSchedule(variant, tile, warps, stages, precision, ptxas=ptxas)


def _default_backward_chunks(chunk: int, precision: str, device: Device) -> TritonSchedule:
    tile = max(16, next_power_of_two(chunk))
    if device.arch == "sm_90" and precision == "bf16":
        # Its matrix units give 64 rows to four warps; eight compute the maps of each row twice.
        return TritonSchedule("backward_chunks", tile, 4, 2, precision, 1, "blackwell")
    # Of four and eight warps those that spill less: a wave of AMD has twice the threads, with 512 registers each.
    spill_less = 4 if device.kind == "hip" or (device.arch == "sm_80" and precision == "bf16") else 8
    return TritonSchedule("backward_chunks", tile, spill_less, 1, precision)


def _default_triton_spacing(problem: Problem) -> int:
    spacings = (n for n in TritonSchedule.choices["checkpoint_spacing"] if isinstance(n, int))
    return next(n for n in spacings if n * problem.chunk >= FEWEST_TOKENS_PER_STATE)


def _default_variant(spec: Spec) -> str:
    if spec.problem.direction != "forward" and spec.problem.operator in BACKWARD_VARIANTS:
        return BACKWARD_VARIANTS[spec.problem.operator][0]
    if spec.problem.operator == "trellis_attention" and spec.problem.chunk == 1:
        return "recurrent"
    return VARIANTS[spec.problem.operator][0]
