"""How a block of the TVM kernels for CUDA shares out its work, and what it keeps in shared memory, and where.

All of it is float32. A matrix that a product reads has rows of an odd number of four-number words, so that what eight
neighbouring threads read at once, four numbers each from eight rows, lies in different banks. So does a
column of what tensor cores take; their pairs of a row, two numbers each from four rows, meet two by two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from codegen.device import Device
from codegen.schedules.tvm_fields import TvmFields
from codegen.spec import Problem

WIDTH = 4
"""Numbers that a thread reads at once from shared memory, which has no wider instruction."""

ACCUMULATORS = (4, 8, 16)
"""What a thread may sum of a product at once: one, two or four rows of four, or two rows of what a warp has."""

MMA_ROWS = 16
"""Rows that tensor cores multiply at once, and how deep."""

FEWEST_THREADS = 64
"""One for each token of the longest tile."""

MOST_RESIDENT = 64
"""The token-by-token kernel keeps states in registers, unless a thread would have more numbers of them than this."""

_ACROSS = 16  # Half a warp: a row of a state is read in whole sectors, and has few parts to add up.
_LANES_OF_A_TOKEN = 32
_ROWS_OF_SUMS = 4  # No map has more sums over its axis.
_FLOAT_BYTES = 4
_MMA_ROWS_OF_A_LANE = 2
_MOST_THREADS_OF_TWO = 256  # Two blocks of more would leave a thread too few registers.

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Buffer:
    """One matrix or vector: its name in the template, its shape with padding, and its offset in numbers."""

    name: str
    shape: Shape
    offset: int


@dataclass(frozen=True)
class Block:
    """What one kernel's block is made of.

    Attributes:
        threads: of the block.
        buffers: of the shared memory, in the order in which they lie.
        floats: how many numbers they are.
        unit: matrices are padded with zeros to multiples of so many rows and columns.
        sums: rows and columns of a product that a thread sums at once.
        lanes: threads that share a token where its map is applied.
        across: threads that share a row of a state in the token-by-token kernel.
        resident: whether that kernel keeps both states in registers.
    """

    threads: int
    buffers: tuple[Buffer, ...]
    floats: int
    unit: int
    sums: Shape
    lanes: int
    across: int
    resident: bool

    @property
    def shared_bytes(self) -> int:
        """The size of the shared memory."""
        return self.floats * _FLOAT_BYTES

    def blocks(self, device: Device) -> int:
        """How many blocks a multiprocessor should hold at least."""
        return 1 if self.threads > _MOST_THREADS_OF_TWO or 2 * self.shared_bytes > device.shared_bytes else 2


def block_of(kernel: str, problem: Problem, schedule: TvmFields) -> Block:
    """The block of one of the kernels that have a TVM template for CUDA."""
    threads, step = schedule.threads, kernel == "memory_step"
    tokens = 2 if step else schedule.tile_tokens
    lanes = min(_LANES_OF_A_TOKEN, threads // tokens)
    shapes = {**_SHAPES[kernel](problem, schedule), "sums": (_ROWS_OF_SUMS, tokens * lanes)}
    buffers = tuple(_placed(shapes))
    floats = buffers[-1].offset + _words(math.prod(buffers[-1].shape))
    resident = resident_numbers(problem, threads) <= MOST_RESIDENT
    unit = WIDTH if step else unit_of(schedule)
    return Block(threads, buffers, floats, unit, sums_of(schedule), lanes, _ACROSS, resident)


def unit_of(schedule: TvmFields) -> int:
    """Of how many rows and columns matrices are padded to multiples: a warp's block of tensor cores, or four."""
    return WIDTH if schedule.dot_precision == "ieee" else max(MMA_ROWS, columns_of_a_warp(schedule))


def sums_of(schedule: TvmFields) -> Shape:
    """Rows and columns of a product that a thread sums at once."""
    if schedule.dot_precision == "ieee":
        return schedule.accumulators // WIDTH, WIDTH
    return _MMA_ROWS_OF_A_LANE, schedule.accumulators // _MMA_ROWS_OF_A_LANE


def columns_of_a_warp(schedule: TvmFields) -> int:
    """How many columns of a product a warp sums at once by tensor cores, each lane two rows of a quarter of them."""
    return 2 * schedule.accumulators


def most_shared_bytes(problem: Problem, schedule: TvmFields) -> int:
    """What the kernel of the schedule's variant that needs most shared memory needs."""
    kernels = {"recurrent": ("memory_step",), "split": ("memory_update", "memory_readout")}.get(
        schedule.variant, (problem.operator.removesuffix("_transposed"),)
    )
    widest = replace(problem, dim_k=max(problem.dim_k, problem.dim_v))
    return max(
        block_of(kernel, widest if kernel == "memory_update" else problem, schedule).shared_bytes for kernel in kernels
    )


def resident_numbers(problem: Problem, threads: int) -> int:
    """How many numbers of both states each thread has in the token-by-token kernel."""
    rows = -(-problem.slots * _ACROSS // threads)
    return rows * sum(-(-dim // _ACROSS) for dim in (problem.dim_k, problem.dim_v))


def _update(problem: Problem, schedule: TvmFields) -> dict[str, Shape]:
    tile, unit = schedule.tile_tokens, unit_of(schedule)
    slots, dim = _row(problem.slots, unit), _row(problem.dim_k, unit)
    return {
        "S_now": (_round_up(problem.slots, unit), dim),
        "w_rows": (tile, dim),
        "A": (tile, slots),
        "U": (tile, slots),
        **{name: (tile,) for name in ("beta", "g", "weight")},
        "forget": (1,),
    }


def _readout(problem: Problem, schedule: TvmFields) -> dict[str, Shape]:
    tile, unit = schedule.tile_tokens, unit_of(schedule)
    both = problem.operator == "trellis_attention"
    padded, slots = _round_up(problem.slots, unit), _row(problem.slots, unit)
    dims = [_row(dim, unit) for dim in ((problem.dim_k, problem.dim_v) if both else (problem.dim_k,))]
    state = {"S": (padded, max(dims))}
    if both and problem.chunk > tile:
        # Both move from tile to tile; else there is room for one, as they are read one after the other.
        state = {name: (padded, dim) for name, dim in zip(("S_k_now", "S_v_now"), dims, strict=True)}
    rows = {"x_rows": (tile, max(dims)), "w_rows": (tile, max(dims)), "U": (tile, slots), "R": (tile, slots)}
    if not both:
        del rows["x_rows" if problem.operator == "memory_readout_transposed" else "R"]
    return {
        **state,
        **rows,
        "scores": (tile, _row(tile, unit)),
        "Omega": (tile, _row(tile, unit)),
        **{name: (tile,) for name in ("beta", "g", "start")},
    }


def _step(problem: Problem, schedule: TvmFields) -> dict[str, Shape]:
    slots, dim_k, dim_v = problem.slots, problem.dim_k, problem.dim_v
    return {
        "q_row": (dim_k,),
        "k_row": (dim_k,),
        "v_row": (dim_v,),
        "A": (2, slots),
        "U": (2, slots),
        "R": (1, slots),
        "Y": (1, dim_v),
        # One more than the lanes, so that threads which add up neighbouring rows read different banks.
        "of_rows": (2, slots, _ACROSS + 1),
        "of_columns": (schedule.threads // _ACROSS, dim_v),
    }


_SHAPES: dict[str, Callable[[Problem, TvmFields], dict[str, Shape]]] = {
    "memory_update": _update,
    "memory_readout": _readout,
    "memory_step": _step,
}


def _placed(shapes: dict[str, Shape]) -> Iterator[Buffer]:
    offset = 0
    for name, shape in shapes.items():
        yield Buffer(name, shape, offset)
        offset += _words(math.prod(shape))


def _words(count: int) -> int:
    return _round_up(count, WIDTH)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _row(count: int, unit: int) -> int:
    words = _round_up(count, unit) // WIDTH
    return (words | 1) * WIDTH
