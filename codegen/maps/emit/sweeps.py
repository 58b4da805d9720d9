"""Programs as sweeps over a row: what each adds up, which scalars follow from it, and which rows are kept between them.

A reduction can begin when the scalars that its row is computed from are known. Reductions that wait for the same ones
share a sweep; after it come the scalars that they complete. The last sweep computes the results.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from codegen.maps.expression import Expr
from codegen.maps.lowering import Definition, Program, used
from codegen.maps.traversal import nodes

_LONG = ("exp", "log", "sigmoid", "tanh")
"""Functions that cost more to compute again than to load."""


@dataclass(frozen=True)
class Sweep:
    """One walk along the row.

    Attributes:
        rows: what it computes of each number, in order, without what was stored before.
        reductions: what it adds up; none in the last sweep.
        scalars: what follows from them, in order.
        stored: names of `rows` that later sweeps, or another program, load.
    """

    rows: tuple[Definition, ...]
    reductions: tuple[Definition, ...]
    scalars: tuple[Definition, ...]
    stored: tuple[str, ...]


def is_long(x: Expr) -> bool:
    """Whether a value is one that is materialised before it is used."""
    return any(
        (node.op == "call" and node.value in _LONG) or (node.op == "pow" and node.number.denominator > 2)
        for node in nodes(x)
    )


def sweeps(made: Program, given: Collection[str] = (), keep: Collection[str] | None = None) -> tuple[Sweep, ...]:
    """The sweeps of a program, the last of which computes its outputs.

    Args:
        made: a program.
        given: names that are known before.
        keep: the rows to store where they are first computed; if None, what takes long and a later sweep begins with.
    """
    own = [each for each in made.definitions if each.name not in given]
    stages = _stages(own)
    last = max((stages[each.name] for each in own if each.reduction), default=0)
    wanted = [
        {name for each in own if each.reduction and stages[each.name] == stage for name in each.uses}
        for stage in range(1, last + 1)
    ]
    wanted.append({name for x in made.outputs.values() for name in used(x)})
    kept = _worth_keeping(own, wanted) if keep is None else frozenset(keep)
    found, stored = list[Sweep](), set[str]()
    for stage, names in enumerate(wanted, start=1):
        needed = _closure(own, names, stored)
        rows = tuple(each for each in own if each.row and each.name in needed)
        new = tuple(each.name for each in rows if each.name in kept)
        stored |= set(new)
        scalars = [each for each in own if not each.row and stages[each.name] == stage]
        sums = tuple(each for each in scalars if each.reduction)
        found.append(Sweep(rows, sums, tuple(each for each in scalars if not each.reduction), new))
    return tuple(found)


def early_scalars(made: Program) -> tuple[Definition, ...]:
    """Scalars that wait for no sweep, in order."""
    stages = _stages(made.definitions)
    return tuple(each for each in made.definitions if not each.row and not stages[each.name])


def _stages(definitions: Collection[Definition]) -> dict[str, int]:
    """By name, after how many sweeps it is known."""
    stages: dict[str, int] = {}
    for each in definitions:
        stages[each.name] = max((stages.get(name, 0) for name in each.uses), default=0) + each.reduction
    return stages


def _closure(own: Collection[Definition], names: set[str], stored: Collection[str] = ()) -> set[str]:
    """The rows that those named are computed from, themselves included, down to what is stored."""
    found = set(names)
    for each in reversed(list(own)):
        if each.row and each.name in found and each.name not in stored:
            found |= each.uses
    return found - set(stored)


def _worth_keeping(own: Collection[Definition], wanted: list[set[str]]) -> frozenset[str]:
    """Functions that more than one sweep needs; in place of one, the row that is all that later sweeps take it for."""
    needed = [_closure(own, names) for names in wanted]
    kept = set[str]()
    for each in own:
        several = [place for place, names in enumerate(needed) if each.name in names]
        if not each.row or not is_long(each.value) or len(several) < 2:
            continue
        late = set().union(*wanted[several[1] :])
        takers = [
            other for other in own if each.name in other.uses and any(other.name in needed[i] for i in several[1:])
        ]
        if len(takers) == 1 and takers[0].name in needed[several[0]] and each.name not in late:
            kept.add(takers[0].name)
        else:
            kept.add(each.name)
    return frozenset(kept)
