"""Maps of a token's program as TVM code for CPUs: a function for each that is called, over rows in scratch.

What pads a row may hold anything: every sum leaves it out.
"""

from __future__ import annotations

from codegen.maps.emit.sweeps import sweeps
from codegen.maps.emit.tvm_names import identifier
from codegen.maps.emit.tvm_places import RESERVED, Places
from codegen.maps.emit.tvm_sweeps import Function, store, written
from codegen.maps.lowering import program
from codegen.maps.registry import find
from codegen.recurrence.maps import expressions
from codegen.recurrence.program import CODE, PUSH, Call

_BUFFERS = {"z": "Z", "a": "A", "g": "G", "ct": "CT"}
_RESULTS = {"u": "U", "y": "Y", "dz": "DZ", "da": "DA", "dg": "DG"}


def name_of(call: Call) -> str:
    """What the function is called."""
    parts = [call.function, identifier(call.of), *(call.gives if call.function == PUSH else ())]
    return "_".join(parts)


def function(call: Call) -> str:
    """A function <name>(walk, features, *inputs, *outputs), all of them rows."""
    found = expressions(call)
    names = [*(_BUFFERS[role] for role in call.roles), *(_RESULTS[each] for each in call.gives)]
    made = program(found, (*RESERVED, *_BUFFERS.values(), *_RESULTS.values()), early=call.function in (CODE, PUSH))
    parts = sweeps(made)
    stored = [name for part in parts for name in part.stored]
    # What the one result overwrites last of all may lie in its place before.
    free = [_RESULTS[call.gives[0]]] if len(call.gives) == 1 else []
    rows = [*free, *(f"row_{i}" for i in range(len(stored) - len(free)))][: len(stored)]
    kept = dict(zip(stored, (f"{row}[m, t]" for row in rows), strict=True))
    places = Places(
        {role: f"{_BUFFERS[role]}[m, t]" for role in call.roles},
        eps="PHI_EPS" if call.eps == "phi" else "READOUT_EPS",
    )
    body = Function(
        *(made, places, parts, kept.__getitem__),
        results=lambda p: [store(f"{_RESULTS[each]}[m, t]", p.text(made.outputs[each])) for each in found],
        padded=(),
    )
    setup = [f"{row} = walk.scratch(features)" for row in rows if row.startswith("row_")]
    head = f"{name_of(call)}(walk, features, {', '.join(names)})"
    says = f"{', '.join(_RESULTS[each] for each in found)} of {call.function}, by {find(call.of).name}."
    return written(head, says, [*setup, *body.lines()])
