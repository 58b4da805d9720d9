"""Maps as TVM code for CUDA, over the rows of a matrix in shared memory.

LANES threads share a row. In a sweep each adds up what it sees, writes that to `sums`, and after a barrier reads the
sums of the others. Two rows of `sums` serve one sweep and two the next, so that nothing is overwritten before it is
read; a sweep with more sums is made in several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from codegen.maps.derive import value_of
from codegen.maps.emit import tvm
from codegen.maps.emit.sweeps import Sweep, early_scalars, is_long, sweeps
from codegen.maps.emit.tvm import replaces_z
from codegen.maps.emit.tvm_names import identifier, reads_eps, says, write
from codegen.maps.emit.tvm_places import FUNCTIONS, RESERVED, Places, selected
from codegen.maps.emit.tvm_sweeps import statements, store
from codegen.maps.folding import folded
from codegen.maps.lowering import Program, program
from codegen.maps.registry import find

__all__ = ["apply", "codes", "functions_of", "identifier", "imports", "reads_eps"]

_TOGETHER = 2
"""Sums of one sweep: half of the rows of `sums`."""

_FUNCTIONS: Mapping[str, Callable[..., str]] = {
    **FUNCTIONS,
    "exp": lambda x: f"T.exp({x})",
    "sigmoid": lambda x: f"sigmoid({x}, T.exp)",
    "tanh": lambda x: f"T.tanh({x})",
    # CUDA's own drop a NaN, whichever argument it is.
    "max": lambda x, y: selected("max", x, y),
    "min": lambda x, y: selected("min", x, y),
}


def apply(of: str) -> str:
    """A function apply_<map>(X, count, features, eps, sums, thread): X <- y of X."""
    made = program({"y": value_of(find(of).expression)}, (*RESERVED, "row", "sums", "count"), early=True)
    head = f"apply_{identifier(of)}(X, count, features, eps, sums, thread)"
    return _function(head, f"X <- {find(of).name} of X.", made, Places({"z": "X[row, m]"}))


def codes(of: str) -> str:
    """A function codes_of(U, A, count, sums, thread): U <- u of U and A."""
    made = program({"u": write(of).u}, (*RESERVED, "row", "sums", "count"), early=True)
    places = Places({"z": "U[row, m]", "a": "A[row, m]"}, width="M", eps="PHI_EPS")
    return _function("codes_of(U, A, count, sums, thread)", says(of).replace("Z", "U"), made, places)


def functions_of(phi: str | None, applied: Iterable[str]) -> str:
    """What generated code calls for these maps."""
    texts = [apply(of) for of in dict.fromkeys(applied) if of != "identity"]
    return "".join(f"{each}\n\n" for each in (*texts, *([codes(phi)] if phi is not None else [])))


def imports(text: str, *more: str) -> str:
    """The lines that import what a text, such as that of `functions_of`, uses, and some names more."""
    return tvm.imports(text) + tvm.imported("codegen.backends.tvm_cuda.emit", _PROVIDED, text, more)


_PROVIDED = {"threads": ("combine_lanes", "register", "sync", "view"), "tile": ("Tile",)}
"""What `imports` finds in codegen.backends.tvm_cuda.emit, by its modules."""


def _function(head: str, says_what: str, made: Program, places: Places) -> str:
    place = places.rows["z"]
    places.lane, places.functions = "0", _FUNCTIONS
    parts = sweeps(made)
    if sum(len(part.stored) for part in parts) > 1 or not replaces_z(made, parts):
        parts = sweeps(made, keep=())
    for each in early_scalars(made):
        places.scalars[each.name] = f"({places.text(each.value)})"
    shared = _split(parts)
    lines = ["row = thread // LANES"]
    long = {each.name for part in parts for each in part.rows if is_long(each.value)}
    vectors = [each.name for part in parts for each in (*part.reductions, *part.scalars)]
    lines += [f"{name} = register()" for name in [*vectors, *sorted(long)]]
    for number, part in enumerate(shared):
        lines += _sweep(number, part, places, place)
        if part is not shared[-1]:
            continue
        (result,) = made.outputs.values()
        lines.append(f"        {store(place, places.text(result))}")
    body = "".join(f"{part}\n" for line in lines for part in _fitting(f"    {line}"))
    return f'def {head}:\n    """{says_what}"""\n{body}'


def _fitting(line: str) -> list[str]:
    text = line.lstrip()
    indent = len(line) - len(text)
    return [" " * indent + part for part in folded(text, indent)] if text.startswith("T.") or " = " in text else [line]


def _split(parts: Sequence[Sweep]) -> list[Sweep]:
    """The sweeps, with no more sums in each than have rows to be written to."""
    found = []
    for part in parts:
        groups = [part.reductions[i : i + _TOGETHER] for i in range(0, len(part.reductions), _TOGETHER)] or [()]
        # Rows are stored by the last, since the others read what that may overwrite.
        found += [replace(part, reductions=group, scalars=(), stored=()) for group in groups[:-1]]
        found.append(replace(part, reductions=groups[-1]))
    return found


def _sweep(number: int, part: Sweep, places: Places, place: str) -> list[str]:
    """One sweep, its barrier, and what follows from its sums."""
    first = number % 2 * _TOGETHER
    body = statements(part, places, lambda name: place, ())
    places.rows.update(dict.fromkeys(part.stored, place))
    lines = ["with T.If(row < count), T.Then():"]
    lines += [f"    T.buffer_store({each.name}, T.float32({_START[each.value.op]}), [0])" for each in part.reductions]
    lines.append(f"    with T.serial(thread % LANES, {places.width}, step=LANES) as m:")
    lines += [f"        {line}" for line in body]
    if not part.reductions:
        return lines
    for i, each in enumerate(part.reductions):
        lines.append(f"    T.buffer_store(sums, {each.name}[0], [{first + i}, thread])")
    lines += ["sync()", "with T.If(row < count), T.Then():"]
    for i, each in enumerate(part.reductions):
        combine = "T.max" if each.value.op == "max" else "lambda x, y: x + y"
        lines.append(f"    combine_lanes({each.name}, sums, {first + i}, row, LANES, {combine})")
        if each.value.op == "mean":
            lines.append(f"    {store(f'{each.name}[0]', f'{each.name}[0] * T.float32(1 / {places.width})')}")
    return lines + [f"    {store(f'{each.name}[0]', places.text(each.value))}" for each in part.scalars]


_START = {"sum": "0", "mean": "0", "max": "-3.4028234663852886e38"}
