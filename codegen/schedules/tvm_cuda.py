"""The default and the legality of TVM's schedules on NVIDIA GPUs, whose kernels have nothing of those for CPUs."""

from __future__ import annotations

from typing import TypeVar

from codegen.device import Device
from codegen.schedules import cuda_block
from codegen.schedules.precision import dot_precisions, usual_precision, why_too_few_bits
from codegen.schedules.schedule import BACKWARD_VARIANTS, FEWEST_TOKENS_PER_STATE, VARIANTS
from codegen.schedules.tvm_fields import FEWEST_ACCUMULATORS, TvmFields
from codegen.spec import Spec, next_power_of_two

VARIANTS_ON_CUDA = ("split", "recurrent", "update", "readout")
"""Variants that have templates for CUDA."""

_DEFAULT_TILE = 64
_THREADS = 256

Kind = TypeVar("Kind", bound=TvmFields)


def default(kind: type[Kind], spec: Spec, device: Device) -> Kind:
    """The longest tile whose block fits into shared memory; token by token, states in registers where they fit."""
    problem, variant = spec.problem, _default_variant(spec)
    if variant == "recurrent":
        fits = (n for n in (128, 256) if cuda_block.resident_numbers(problem, n) <= cuda_block.MOST_RESIDENT)
        threads = next(fits, 512)
        return kind(variant, cuda_block.WIDTH, cuda_block.WIDTH, FEWEST_ACCUMULATORS, threads)
    if variant not in VARIANTS_ON_CUDA:
        # No kernel: legality says so, and of nothing else that is wrong.
        spacing = FEWEST_TOKENS_PER_STATE if variant == "recurrence_backward" else 1
        return kind(variant, cuda_block.WIDTH, cuda_block.WIDTH, FEWEST_ACCUMULATORS, _THREADS, spacing)
    longest = min(_DEFAULT_TILE, max(cuda_block.WIDTH, next_power_of_two(problem.chunk)))
    tiles = [tile for tile in reversed(kind.choices["tile_tokens"]) if isinstance(tile, int) and tile <= longest]
    precision = usual_precision(problem.dtype, device)
    schedules = [_products(kind, variant, tile, precision) for tile in tiles]
    fitting = (each for each in schedules if cuda_block.most_shared_bytes(problem, each) <= device.shared_bytes)
    return next(fitting, schedules[-1])


def why_illegal(schedule: TvmFields, spec: Spec, device: Device) -> str | None:
    """Why a schedule is none for `device`, in one sentence; None if it is one."""
    problem, tile, threads = spec.problem, schedule.tile_tokens, schedule.threads
    if schedule.variant not in VARIANTS_ON_CUDA:
        return f"for CUDA there are TVM templates of {', '.join(VARIANTS_ON_CUDA)} only, not of {schedule.variant!r}"
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
    reason = _why_illegal_tensor_cores(schedule, spec, device)
    if reason is not None:
        return reason
    needed = cuda_block.most_shared_bytes(problem, schedule)
    if needed > device.shared_bytes:
        return f"a block would need {needed} bytes of shared memory, {device.arch} has {device.shared_bytes}"
    return None


def _default_variant(spec: Spec) -> str:
    problem = spec.problem
    if problem.direction != "forward" and problem.operator in BACKWARD_VARIANTS:
        return BACKWARD_VARIANTS[problem.operator][0]
    if problem.operator != "trellis_attention":
        return VARIANTS[problem.operator][0]
    return "recurrent" if problem.chunk == 1 else "split"


def _products(kind: type[Kind], variant: str, tile: int, precision: str) -> Kind:
    most = max(cuda_block.ACCUMULATORS)
    if precision == "ieee" or tile < cuda_block.MMA_ROWS:
        return kind(variant, tile, cuda_block.WIDTH, most, _THREADS)
    # A warp's columns are at most a tile, whose scores have no more.
    return kind(variant, tile, cuda_block.WIDTH, min(most, tile // 2), _THREADS, dot_precision=precision)


def _why_illegal_tensor_cores(schedule: TvmFields, spec: Spec, device: Device) -> str | None:
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
    return why_too_few_bits(spec, schedule.dot_precision)
