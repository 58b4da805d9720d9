"""How many warps a multiprocessor holds at once, from what a kernel needs.

NVIDIA's limits are those of the CUDA C++ Programming Guide for compute capabilities 8.0 and 9.0; AMD's those of the
instruction set manual of CDNA3: 512 vector registers per lane and SIMD, eight waves per SIMD, four SIMDs per unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.backends import Resources
from codegen.device import THREADS_PER_WARP, Device
from codegen.schedules.schedule import Schedule


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor.

    Attributes:
        warps, blocks: it holds at most so many.
        registers: there are, for all threads.
        shared_bytes: for all blocks; each takes `reserved_bytes` more than it asks for.
        granule: registers of a warp are given out in multiples of this.
    """

    warps: int
    blocks: int
    registers: int
    shared_bytes: int
    reserved_bytes: int
    granule: int


NVIDIA = {
    "sm_80": Limits(64, 32, 65_536, 167_936, 1024, 256),
    "sm_90": Limits(64, 32, 65_536, 233_472, 1024, 256),
}
_WARP = THREADS_PER_WARP["cuda"]
_WAVES, _SIMDS, _VECTOR_REGISTERS, _VECTOR_GRANULE, _LDS_BYTES = 8, 4, 512, 8, 65_536


def occupancy(needs: Resources, schedule: Schedule, device: Device) -> float | None:
    """The share of the warps a multiprocessor can hold; 0 if not even one block fits, None if it is not known."""
    if needs.registers is None or needs.shared_bytes is None:
        return None
    warps = schedule.block_threads(device) // THREADS_PER_WARP[device.kind]
    if device.kind == "hip":
        return _of_amd(needs.registers, needs.shared_bytes, warps)
    limits = NVIDIA.get(device.arch)
    return None if limits is None else _of_nvidia(needs.registers, needs.shared_bytes, warps, limits)


def _of_nvidia(registers: int, shared_bytes: int, warps: int, limits: Limits) -> float:
    per_warp = -(-max(registers, 1) * _WARP // limits.granule) * limits.granule
    by_registers = limits.registers // per_warp // warps
    by_shared = limits.shared_bytes // (shared_bytes + limits.reserved_bytes)
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return blocks * warps / limits.warps


def _of_amd(registers: int, shared_bytes: int, waves: int) -> float:
    given = -(-max(registers, 1) // _VECTOR_GRANULE) * _VECTOR_GRANULE
    by_registers = min(_WAVES, _VECTOR_REGISTERS // given) * _SIMDS // waves
    by_shared = _LDS_BYTES // shared_bytes if shared_bytes else by_registers
    return min(by_registers, by_shared, _WAVES * _SIMDS // waves) * waves / (_WAVES * _SIMDS)
