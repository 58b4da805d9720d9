"""What import found: the devices of this machine, and how many winners are known for each."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.device import cpu, gpu_names
from trellis_ops.dispatch.resolve import store


@dataclass(frozen=True)
class Selection:
    """What import found.

    Attributes:
        devices: keys of the devices here, the CPU first.
        records: how many winners are known for each.
        database: folders of the tuning database, the user's first.
    """

    devices: tuple[str, ...]
    records: dict[str, int]
    database: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{device}: {self.records[device]} tuned kernels" for device in self.devices]
        return "\n".join([*lines, *(f"database: {folder}" for folder in self.database)])


def selection() -> Selection:
    """What import found for the devices here, without starting a GPU."""
    devices = (cpu().key(), *gpu_names())
    records = {device: len(store().records(device)) for device in devices}
    layers = (store().user, store().shipped)
    return Selection(devices, records, tuple(str(layer.folder) for layer in layers if layer is not None))
