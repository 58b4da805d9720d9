"""The record of one argument of a kernel: name, axes, type and access."""

from __future__ import annotations

from dataclasses import dataclass

READ, WRITTEN, IN_PLACE = "in", "out", "in place"
"""How a kernel uses an argument; what is "in place" is read first, and holds a result afterwards."""

INPUT, FLOAT, INT, DOTS, KEPT = "input", "float32", "int32", "dots", "kept"
"""Types: of the problem; float32; int32; what the schedule's dots round to; what the schedule keeps states in."""

BYTES_OF = {"float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}
"""Of one number of each type as torch calls it."""

AXES = {
    "tokens": "B*T",
    "heads": "H",
    "slots": "M",
    "dim_k": "D_k",
    "dim_v": "D_v",
    "sequences": "N",
    "offsets": "N + 1",
    "chunks": "chunks",
    "workers": "workers",
    "tiles": "tiles",
    "window": "c - 1",
    "steps": "steps",
    "padded_slots": "M",
    "padded_dim_k": "D_k",
    "padded_dim_v": "D_v",
}
"""Every axis by name, with the letter that documents use. `chunks` counts kept states, `workers` the threads of a CPU
or the programs of a GPU, `tiles` those between two kept states; what is padded fills whole vectors of a CPU. `window`
has the pairs that a window carries, `steps` one state more than a segment has tokens."""


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    Attributes:
        name: as the template calls it.
        axes: names from `AXES`; none for a plain number.
        type: one of INPUT, FLOAT, INT, DOTS, KEPT.
        access: one of READ, WRITTEN, IN_PLACE.
    """

    name: str
    axes: tuple[str, ...]
    type: str
    access: str

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor, and no plain number."""
        return bool(self.axes)

    @property
    def cotangent_of(self) -> str | None:
        """What it is the cotangent of; None if of nothing."""
        return self.name[1:] if self.name.startswith("d") else None
