"""A guess at a candidate's time on a GPU from what its compiler says, to try the promising first.

A program walks the tiles of its sequence one after another. Each tile costs the instructions that the kernel has, which
schedulers issue one a cycle and which a lone warp waits for, unless its threads have other numbers to go on with; its
share of the matrix units; the loads that nothing hides; and a trip to memory for each spilled register. Programs that
do not fit run in waves. No kernel is faster than its bytes at the speed of memory. The numbers are round ones of the
makers' manuals, but for two that are fitted to what 200 schedules took on an H200 (docs/gpu.md). Only the order counts,
and once times are known `tuner/search/guesses.py` says whether it was worth anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from codegen.backends import Resources
from codegen.device import THREADS_PER_WARP, Device
from codegen.kernels.exact_update import KERNEL
from codegen.kernels.rule_arguments import CHUNKS, WALKS
from codegen.schedules.schedule import Schedule, TileLoop
from codegen.spec import Spec
from tuner.measure.cost import cost_of
from tuner.offline.occupancy import occupancy

_CYCLES_PER_INSTRUCTION = 4.0
_NUMBERS_TO_GO_ON_WITH = 12.0
"""Of a tile, in one thread: with as many, an instruction waits for no other. Fitted."""
_CODE_PER_STAGE = 0.1
"""What a stage of a pipeline adds to the code that runs for each tile, as a share of it, to run once. Fitted."""
_SCHEDULERS = 4
_INSTRUCTION_BYTES = {"cuda": 16, "hip": 8}
_MOST_WARPS = {"cuda": 64, "hip": 32}
_LOAD_CYCLES = 600.0
_DESCRIPTORS = 4
_DESCRIPTOR_CODE_BYTES = 2048
_SPILL_CYCLES = 8.0
_FOR_EACH_TOKEN = {KERNEL: 0.25}
"""The share of code that runs for each token of a tile, for tiles of any length, in the assembly of sm_90."""

_BY_TOKEN = ("memory_step", *WALKS)
"""Kernels that go token by token."""

_PRODUCTS = {"ieee": 16.0, "tf32x3": 6.0, "tf32": 2.0, "bf16x3": 3.0, "bf16": 1.0}
"""How many times what a bf16 product takes, a product of that precision takes."""


@dataclass(frozen=True)
class Rates:
    """Of one GPU.

    Attributes:
        clock: cycles per second.
        bandwidth: bytes per second, read and written together.
        matrix: bf16 operations of one multiprocessor per cycle.
    """

    clock: float
    bandwidth: float
    matrix: float


RATES = {
    "sm_80": Rates(1.41e9, 1.6e12, 2048),
    "sm_90": Rates(1.75e9, 4.3e12, 4096),
    "gfx942": Rates(2.1e9, 4.0e12, 2048),
}


@dataclass(frozen=True)
class Walk:
    """How a kernel is launched: so many programs, each of which walks so many tiles."""

    programs: int
    tiles: int


def predicted_seconds(
    spec: Spec, schedule: Schedule, device: Device, kernels: Sequence[tuple[str, Resources]]
) -> float | None:
    """About how long a call takes whose kernels need this.

    None where nothing is known of the device, of a kernel, or of how the schedule goes over tiles.
    """
    rates, loop = RATES.get(device.arch), schedule.tile_loop()
    if rates is None or loop is None or any(needs.code_bytes is None for _, needs in kernels):
        return None
    walked = replace(spec, problem=replace(spec.problem, chunk=schedule.chunk_of(spec)))
    walks = [walk_of(name, walked, loop) for name, _ in kernels]
    steps = sum(walk.programs * walk.tiles for walk in walks)
    cost = cost_of(spec)
    seconds = 0.0
    for (name, needs), walk in zip(kernels, walks, strict=True):
        share = walk.programs * walk.tiles / steps
        flops = cost.flops * share / (walk.programs * walk.tiles)
        numbers = _numbers_of_thread(name, spec, loop, device)
        held = occupancy(needs, schedule, device) or 0.0
        at_work = _seconds_of(_run_for_a_tile(name, needs, loop), walk, flops, numbers, held, loop, device, rates)
        seconds += max(at_work, cost.bytes / len(kernels) / rates.bandwidth)
    return seconds


def _run_for_a_tile(kernel: str, needs: Resources, loop: TileLoop) -> Resources:
    """What a kernel needs, with the code that runs for each token of a tile so many times."""
    assert needs.code_bytes is not None
    runs = 1 + _FOR_EACH_TOKEN.get(kernel, 0.0) * (loop.tokens - 1)
    return replace(needs, code_bytes=round(runs * needs.code_bytes))


def _numbers_of_thread(kernel: str, spec: Spec, loop: TileLoop, device: Device) -> float:
    """Of a tile, or of a state where a program goes token by token."""
    rows = spec.problem.dim_k if kernel in _BY_TOKEN else loop.tokens
    return rows * spec.problem.slots / (THREADS_PER_WARP[device.kind] * loop.warps)


def walk_of(kernel: str, spec: Spec, loop: TileLoop) -> Walk:
    """The launch of a kernel of `spec`, whose chunk is the one that it takes."""
    problem = spec.problem
    heads = problem.batch * problem.heads
    if kernel in _BY_TOKEN:
        # A reverse computes the states of its segments again first.
        return Walk(heads, problem.tokens * (2 if kernel.endswith("_backward") else 1))
    if kernel in CHUNKS:
        return Walk(heads, -(-problem.tokens // loop.tokens))
    segment = problem.chunk * loop.segment
    tiles = loop.segment * -(-problem.chunk // loop.tokens)
    segments = -(-problem.tokens // segment)
    if kernel.endswith(("_readout", "_reading", "_writing")):
        return Walk(heads * segments, tiles)
    if kernel in ("trellis_update", "states_backward") or (kernel == KERNEL and spec.rule.passes == 2):
        return Walk(2 * heads, segments * tiles)
    again = 2 if kernel.endswith("_backward") and tiles > 1 else 1
    return Walk(heads, again * segments * tiles)


def _seconds_of(
    needs: Resources,
    walk: Walk,
    flops: float,
    numbers: float,
    held: float,
    loop: TileLoop,
    device: Device,
    rates: Rates,
) -> float:
    blocks = max(1, int(held * _MOST_WARPS[device.kind] / loop.warps))
    together = min(blocks, -(-walk.programs // device.cores))
    waves = -(-walk.programs // (device.cores * blocks))
    assert needs.code_bytes is not None
    described = _DESCRIPTORS if loop.copies_tiles else 0
    once = described * _DESCRIPTOR_CODE_BYTES
    instructions = (needs.code_bytes - once + once / walk.tiles) / _INSTRUCTION_BYTES[device.kind]
    instructions /= 1 + _CODE_PER_STAGE * (loop.stages - 1)
    waited = min(_CYCLES_PER_INSTRUCTION, max(1.0, _NUMBERS_TO_GO_ON_WITH / numbers))
    issued = instructions * max(waited, together * loop.warps / _SCHEDULERS)
    products = together * flops * _PRODUCTS[loop.dot_precision] / rates.matrix
    # Outside of a pipeline, Triton waits for a copy by a descriptor before it begins the next.
    waits = described if described and loop.stages == 1 else 1
    loads = _LOAD_CYCLES * waits / loop.stages
    spilled = _SPILL_CYCLES * (needs.spill_bytes or 0)
    return waves * walk.tiles * (max(issued, products) + loads + spilled) / rates.clock


def promising_first(schedules: Sequence[tuple[Schedule, float | None]]) -> list[Schedule]:
    """Schedules with their guesses, best guess first; those without one keep their order, at the end."""
    known = sorted((seconds, place) for place, (_, seconds) in enumerate(schedules) if seconds is not None)
    unknown = [place for place, (_, seconds) in enumerate(schedules) if seconds is None]
    return [schedules[place][0] for place in (*(place for _, place in known), *unknown)]
