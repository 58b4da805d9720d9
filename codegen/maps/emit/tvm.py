"""Maps as TVM code for CPUs: Python functions that emit sweeps over rows; numbers are those of docs/backward.md.

One text serves a tile, with tokens in the lanes, and one token, with slots in the lanes: how a row is walked is for the
object `walk` of codegen/backends/tvm/emit/walks.py to say. Sums and scalars live in vectors of WIDTH lanes, named as in
the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from codegen.maps.derive import value_of
from codegen.maps.emit.sweeps import Sweep, sweeps
from codegen.maps.emit.tvm_names import identifier, says, write
from codegen.maps.emit.tvm_places import RESERVED, Places
from codegen.maps.emit.tvm_reverse import apply_and_pull, kept_rows, stats_rows, write_and_push
from codegen.maps.emit.tvm_sweeps import Function, store, written
from codegen.maps.lowering import Program, program, used
from codegen.maps.registry import find

__all__ = ["functions", "functions_and_pulls", "identifier", "imports", "kept_rows", "stats_rows"]
"""What templates call."""


def apply(of: str) -> str:
    """A function apply_<map>(walk, X, features): X <- y of X."""
    made = program({"y": value_of(find(of).expression)}, RESERVED, early=True)
    parts = sweeps(made)
    rows, setup = _kept_in(made, parts, ["X[m, t]"])
    places = Places({"z": "X[m, t]"}, eps="READOUT_EPS")
    body = Function(made, places, parts, rows.__getitem__, lambda p: [store("X[m, t]", p.text(made.outputs["y"]))])
    return written(f"apply_{identifier(of)}(walk, X, features)", f"X <- {find(of).name} of X.", [*setup, *body.lines()])


def codes(of: str) -> str:
    """A function codes_of(walk, Z, A, U): U <- u of Z and A; overwrites Z. A gain [features] stands before U."""
    made = program({"u": write(of).u}, RESERVED, early=True)
    parts = sweeps(made)
    rows, setup = _kept_in(made, parts, ["Z[m, t]", "U[m, t]"])
    places = Places({"z": "Z[m, t]", "a": "A[m, t]", "g": "gain[m]"}, width="M", eps="PHI_EPS")
    body = Function(made, places, parts, rows.__getitem__, lambda p: [store("U[m, t]", p.text(made.outputs["u"]))])
    inputs = "Z, A, gain" if find(of).takes_gain else "Z, A"
    return written(f"codes_of(walk, {inputs}, U)", says(of), [*setup, *body.lines()])


def replaces_z(made: Program, parts: Sequence[Sweep]) -> bool:
    """Whether the first row that a sweep stores can take the place of z, which no later one reads."""
    place = next((place for place, part in enumerate(parts) if part.stored), len(parts) - 1)
    late = [each for part in parts[place + 1 :] for each in (*part.rows, *part.reductions)]
    results = made.outputs.values() if place < len(parts) - 1 else ()
    return "z" not in set().union(*(each.uses for each in late), *(used(x) for x in results))


def _kept_in(made: Program, parts: Sequence[Sweep], buffers: list[str]) -> tuple[dict[str, str], list[str]]:
    """Places of the rows that sweeps store: the buffers, the first where z is not needed late, and more."""
    stored = [name for part in parts for name in part.stored]
    free = buffers if replaces_z(made, parts) else buffers[1:]
    own = [f"kept_{i}" for i in range(len(stored) - len(free))]
    setup = [f"{name} = walk.scratch({'M' if len(buffers) > 1 else 'features'})" for name in own]
    return dict(zip(stored, [*free, *(f"{name}[m, l]" for name in own)], strict=False)), setup


def functions(phi: str | None, applied: Iterable[str]) -> str:
    """What a forward calls for its maps: codes_of, if it writes, and apply_<map> of readouts."""
    readouts = [apply(of) for of in _mapped(applied)]
    return "\n\n".join([*readouts, *([codes(phi)] if phi is not None else [])])


def functions_and_pulls(phi: str, applied: Iterable[str], bilevel: bool) -> str:
    """What a backward calls for its maps."""
    return "\n\n".join([*map(apply_and_pull, _mapped(applied)), write_and_push(phi, bilevel)])


def _mapped(applied: Iterable[str]) -> list[str]:
    return [of for of in dict.fromkeys(applied) if of != "identity"]


def imports(text: str, *more: str) -> str:
    """The lines that import what a text, such as that of `functions`, uses, and some names more."""
    return imported("codegen.backends.tvm.emit", _PROVIDED, text, more)


def imported(package: str, provided: Mapping[str, Sequence[str]], text: str, more: Sequence[str]) -> str:
    """The lines that import names of a package which a text uses, and those of `more`; `provided` has its modules."""
    lines = []
    for module, names in provided.items():
        used_names = [name for name in names if name in more or re.search(rf"(?<![.\w]){name}\b", text)]
        if used_names:
            lines.append(f"from {package}.{module} import {', '.join(used_names)}\n")
    return "".join(lines)


_PROVIDED = {
    "expressions": ("exp", "forget_gate", "minus_mean", "sigmoid", "sign_of", "tanh_of"),
    "tile": ("Tile",),
    "transpose": ("transpose",),
    "vectors": ("LOWEST", "add", "clear", "fill"),
}
"""What `imports` finds in codegen.backends.tvm.emit, by its modules."""
