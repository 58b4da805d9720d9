"""Candidates for a GPU that is not here: compiled, and pruned by what the compiler says they need; never timed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from codegen.backends import Resources, backend
from codegen.device import Device
from codegen.errors import CompileError, TemplateError
from codegen.kernels.build import parts
from codegen.render import render
from codegen.schedules.registry import first_choice
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tuner.space.legal import legal_schedules

MOST_SPILLED = 64
"""Bytes of stack per thread above which a kernel is not worth a measurement: each token would pay for them."""

# An AMD multiprocessor has four times 512 registers for 64 threads, those of its matrix units among them.
_REGISTERS_PER_BLOCK = {"cuda": 65_536, "hip": 131_072}


@dataclass(frozen=True)
class Examined:
    """What compiling one candidate showed.

    Attributes:
        schedule: the candidate.
        kernels: name and needs of each of its kernels; empty if it does not compile.
        reason: why it is pruned; None if it is worth a measurement.
        seconds: that compiling took.
    """

    schedule: Schedule
    kernels: tuple[tuple[str, Resources], ...]
    reason: str | None
    seconds: float


def examine_some(spec: Spec, device: Device, *, most: int, seconds: float) -> Iterator[Examined]:
    """Examine the default and then a seeded random choice of candidates: `most` of them, within `seconds`.

    A candidate that has begun is finished, so it may last a little longer.
    """
    started = time.monotonic()
    first, *others = legal_schedules(spec, first_choice(device), device)
    random.Random(0).shuffle(others)
    for schedule in [first, *others][:most]:
        yield examine(spec, schedule, device)
        if time.monotonic() - started > seconds:
            return


def examine(spec: Spec, schedule: Schedule, device: Device) -> Examined:
    """Compile `schedule` for `device`, which need not be here."""
    started = time.monotonic()
    kernels: list[tuple[str, Resources]] = []
    reason = None
    try:
        for kernel, part in parts(spec, schedule):
            source = render(kernel, part, schedule, device)
            needs = backend(schedule.backend).resources(source, part, schedule, device)
            kernels.append((kernel, needs))
            reason = reason or why_pruned(kernel, needs, schedule, device)
    except (CompileError, TemplateError) as error:
        reason = f"does not compile: {error}"
    return Examined(schedule, tuple(kernels), reason, time.monotonic() - started)


def why_pruned(kernel: str, needs: Resources, schedule: Schedule, device: Device) -> str | None:
    """Why a kernel with these needs is not worth a measurement on `device`; None if it is."""
    if needs.shared_bytes is not None and needs.shared_bytes > device.shared_bytes:
        return (
            f"{kernel} needs {needs.shared_bytes:,} bytes of shared memory; {device.arch} has {device.shared_bytes:,}"
        )
    threads = schedule.block_threads(device)
    if needs.registers is not None and needs.registers * threads > _REGISTERS_PER_BLOCK[device.kind]:
        most = _REGISTERS_PER_BLOCK[device.kind]
        return f"{kernel} needs {needs.registers} registers in {threads} threads; a block has {most:,}"
    if needs.spill_bytes is not None and needs.spill_bytes > MOST_SPILLED:
        return f"{kernel} spills {needs.spill_bytes} bytes per thread"
    return None
