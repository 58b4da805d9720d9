"""Whether what a call is about to allocate fits into the memory that is there.

Linux promises memory that it does not have, and ends the process, or another one, when it is written to. So a call that
allocates much looks first; one that allocates little costs nothing more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from codegen.errors import MemoryRoomError
from codegen.kernels.buffers import Bytes

LITTLE = 2**28
"""Bytes of one call below which nobody looks: to write more takes a thousand times as long as to look."""

_PROCESS, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a control group of version 2 and of the memory controller of version 1: limit, usage, what can be reclaimed."""


@dataclass(frozen=True)
class Needs:
    """What a call allocates.

    Attributes:
        forward: bytes of its results and buffers.
        reverse: those of its reverse pass.
        copies: whether inputs that are not contiguous are copied whole, as for kernels.
    """

    forward: Bytes
    reverse: Bytes
    copies: bool


def needs(forward: Bytes, reverse: Bytes, inputs: int, *, copies: bool) -> Needs | None:
    """What a call on `inputs` bytes allocates; None if that is little, copies of its inputs included."""
    most = max(sum(forward.values()), sum(reverse.values())) + inputs
    return Needs(forward, reverse, copies) if most > LITTLE else None


def require(needed: Needs, tensors: Sequence[Tensor | None], *, reverse: bool) -> None:
    """Raise unless a call on `tensors`, or its reverse pass, fits.

    Raises:
        MemoryRoomError: with the bytes asked for, by tensor, and those that are there.
    """
    made = dict(needed.reverse if reverse else needed.forward)
    copied = [t.numel() * t.element_size() for t in tensors if t is not None and not t.is_contiguous()]
    if copied and needed.copies:
        made["contiguous copies of inputs"] = sum(copied)
    first = tensors[0]
    assert first is not None
    asked, (there, kind) = sum(made.values()), _room(first.device)
    if there is not None and asked > there:
        parts = ", ".join(f"{name} {count}" for name, count in made.items())
        raise MemoryRoomError(asked=asked, parts=parts, device=first.device, there=there, kind=kind)


def _room(device: torch.device) -> tuple[int | None, str]:
    """The bytes of memory there, None where nobody knows, and which of them they are."""
    if device.type == "cuda":
        # What is free there changes by the call, and torch says so itself when it has none to give.
        return _memory_of_gpu(device.index or 0), "in all"
    return available_bytes() if device.type == "cpu" else None, "available"


@functools.cache
def _memory_of_gpu(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).total_memory)


def available_bytes(process: Path = _PROCESS, groups: Path = _GROUPS) -> int | None:
    """Bytes that this process can still write to: free, reclaimable or of swap; None where the system does not say.

    Args:
        process: where Linux shows its own and its processes' state.
        groups: where it shows control groups, whose limits containers have.
    """
    try:
        lines = (process / "meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()
    }
    if "MemAvailable" not in kilobytes:
        return None
    machine = 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    return min([machine, *_rooms_of_groups(process, groups)])


def _rooms_of_groups(process: Path, groups: Path) -> Iterator[int]:
    """What is left in each control group that this process is in, those around it included."""
    try:
        lines = (process / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in {"", "memory"} & set(controllers.split(",")):
            top = groups / controller
            here = top / path.lstrip("/")
            for folder in (here, *here.parents):
                room = _room_of_group(folder, *_FILES[controller])
                if room is not None:
                    yield room
                if folder == top:
                    break


def _room_of_group(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        counters = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return None if most == "max" else max(0, int(most) - used + int(counters.get(reclaimable, 0)))
    except (OSError, ValueError):
        # Not every group has a limit, and what is not readable here is not for this process to know.
        return None
