"""Maps of a backward as TVM code for CPUs: what a write or readout keeps of each token, and what is pulled through it.

Numbers are those of docs/backward.md.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from codegen.maps.derive import pullback_of, value_of
from codegen.maps.emit.sweeps import Sweep, is_long, sweeps
from codegen.maps.emit.tvm_names import identifier, says, write
from codegen.maps.emit.tvm_places import RESERVED, Places
from codegen.maps.emit.tvm_sweeps import Function, indented, store, written
from codegen.maps.expression import Expr
from codegen.maps.lowering import Program, program, used
from codegen.maps.registry import find


@dataclass(frozen=True)
class Kept:
    """What a write or readout keeps of a token for the reverse pass.

    Attributes:
        rows: names of rows, in the buffer `kept`, one below the other.
        scalars: names of scalars, in rows of `stats`.
    """

    rows: tuple[str, ...]
    scalars: tuple[str, ...]

    def row(self, name: str, features: str) -> str:
        """The place of a row."""
        place = self.rows.index(name)
        return f"kept[{f'{place} * {features} + ' if place else ''}m, t]"

    def scalar_places(self) -> dict[str, str]:
        """The places of the scalars."""
        return {name: f"stats[{place}, t]" for place, name in enumerate(self.scalars)}


@functools.cache
def _forth_and_back(
    outputs: tuple[tuple[str, Expr], ...], back: tuple[str, ...], early: bool
) -> tuple[Program, Program, Kept]:
    """The program of what comes first, that of the outputs named `back`, and what the first keeps for the second."""
    made = program(dict(outputs), RESERVED, early)
    late = set(map(str, {"ct"}))
    for each in made.definitions:
        if each.uses & late:
            late.add(each.name)
    before = tuple(each for each in made.definitions if each.name not in late)
    first = Program(before, {name: x for name, x in made.outputs.items() if name not in back})
    second = Program(made.definitions, {name: x for name, x in made.outputs.items() if name in back})
    rows = tuple(each.name for each in before if each.row and is_long(each.value))
    known = {*rows, *(each.name for each in before if not each.row)}
    needed = _needed(second, known)
    scalars = tuple(each.name for each in before if not each.row and each.name in needed and each.uses)
    return first, second, Kept(rows, scalars)


def _needed(made: Program, known: Collection[str]) -> set[str]:
    """The names that its outputs are computed from, down to what is known."""
    found = set().union(*(used(x) for x in made.outputs.values()))
    for each in reversed(made.definitions):
        if each.name in found and each.name not in known:
            found |= each.uses
    return found


def apply_and_pull(of: str) -> str:
    """Functions apply_<map>, which keeps what pull_<map> needs: dX <- J^T dX (B14)."""
    forth, back, kept = _readout_forth_and_back(of)
    y = forth.outputs["y"]
    inputs = {"z": "X[m, t]", "ct": "ct[m, t]"} | {name: kept.row(name, "features") for name in kept.rows}
    epsilon = "READOUT_EPS"
    apply_ = Function(
        *(forth, Places({"z": "X[m, t]"}, eps=epsilon), sweeps(forth, keep=kept.rows)),
        keep=lambda name: kept.row(name, "features"),
        results=lambda p: [store("Y[m, t]", p.text(y))],
        after=lambda part: _keep_scalars(part, kept),
    )
    found = {str(y.value): "Y[m, t]"} if y.op == "input" and y.value != "z" else {}
    known = (*kept.rows, *found, *_before(forth))
    pull = Function(
        *(
            back,
            Places(inputs | found, kept.scalar_places(), eps=epsilon),
            sweeps(back, known, ()),
        ),
        keep=str,
        results=lambda p: [store("ct[m, t]", p.text(back.outputs["dz"]))],
    )
    name = identifier(of)
    return "\n\n".join(
        (
            written(f"apply_{name}(walk, X, Y, kept, stats, features)", f"Y <- {find(of).name} of X.", apply_.lines()),
            written(f"pull_{name}(walk, X, Y, kept, stats, features, ct)", "dX <- J^T dX (B14).", pull.lines()),
        )
    )


def write_and_push(of: str, bilevel: bool) -> str:
    """Functions write_codes, U and -gamma U from Z, and push_codes, dz (B9) and dtarget (B8) from Y.

    dU is -gamma times Y; `first` says that dtarget is set, not added to.
    """
    forth, back, kept = _write_forth_and_back(of, bilevel)
    inputs = {"z": "Z[m, t]", "a": "A[m, t]"}
    write = Function(
        *(forth, Places(dict(inputs), width="M", eps="PHI_EPS"), sweeps(forth, keep=kept.rows)),
        keep=lambda name: kept.row(name, "M"),
        results=lambda p: [
            store("U[m, t]", p.text(forth.outputs["u"])),
            "T.buffer_store(scaled, U[m, t] * (T.float32(0) - g[t]), [m, t])",
        ],
        after=lambda part: _keep_scalars(part, kept),
    )
    parts = sweeps(back, (*kept.rows, *_before(forth)), ())
    ct, begin = "ct", "ct = Y[m, t] * (T.float32(0) - g[t])"
    if len(parts) > 1:
        ct, begin = "Y[m, t]", "T.buffer_store(Y, Y[m, t] * (T.float32(0) - g[t]), [m, t])"
    rows = inputs | {"ct": ct} | {name: kept.row(name, "M") for name in kept.rows}

    def results(places: Places) -> list[str]:
        of_target = places.text(back.outputs["da"])
        lines = [
            f"da = {of_target}",
            "T.buffer_store(dtarget, da if first else dtarget[m, t] + da, [m, t])",
        ]
        return [*([store("dz[m, t]", places.text(back.outputs["dz"]))] if bilevel else []), *lines]

    push = Function(
        *(back, Places(rows, kept.scalar_places(), "M", "PHI_EPS"), parts), keep=str, results=results, begin=(begin,)
    )
    numbers = "dz (B9) and dtarget (B8)" if bilevel else "dtarget (B8), with z held constant"
    return "\n\n".join(
        (
            written("write_codes(walk, Z, A, U, scaled, kept, stats, g)", says(of), write.lines()),
            written(
                "push_codes(walk, Z, A, kept, stats, g, Y, dz, dtarget, first)",
                f"{numbers}; dU is -step_size Y, and `first` sets dtarget.",
                push.lines(),
            ),
        )
    )


def _write_forth_and_back(of: str, bilevel: bool) -> tuple[Program, Program, Kept]:
    derived = write(of)
    outputs = (("u", derived.u), *((("dz", derived.dz),) if bilevel else ()), ("da", derived.da))
    return _forth_and_back(outputs, ("dz", "da"), True)


def _readout_forth_and_back(of: str) -> tuple[Program, Program, Kept]:
    expression = find(of).expression
    outputs = (("y", value_of(expression)), ("dz", pullback_of(expression)))
    return _forth_and_back(outputs, ("dz",), False)


def _before(forth: Program) -> set[str]:
    """The scalars that what came first has computed."""
    return {each.name for each in forth.definitions if not each.row and each.uses}


def _keep_scalars(part: Sweep, kept: Kept) -> list[str]:
    names = [each.name for each in (*part.reductions, *part.scalars) if each.name in kept.scalars]
    stores = [f"T.buffer_store(stats, {name}[l], [{kept.scalars.index(name)}, t])" for name in names]
    if not stores:
        return []
    return ["", "def of_token(t, l):", *indented(stores), "", "walk.each_token(b, of_token)"]


def _all_kept(phi: str, applied: Iterable[str], bilevel: bool) -> list[Kept]:
    return [_write_forth_and_back(phi, bilevel)[2], *(_readout_forth_and_back(of)[2] for of in applied)]


def stats_rows(phi: str, applied: Iterable[str], bilevel: bool) -> int:
    """How many numbers of a token the write and the readouts keep at most."""
    return max(1, *(len(kept.scalars) for kept in _all_kept(phi, applied, bilevel)))


def kept_rows(phi: str, applied: Iterable[str], bilevel: bool) -> int:
    """How many rows of a token the write and the readouts keep at most."""
    return max(1, *(len(kept.rows) for kept in _all_kept(phi, applied, bilevel)))
