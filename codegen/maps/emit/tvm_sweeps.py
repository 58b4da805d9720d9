"""A function over the rows of a walk, as sweeps, and what follows from the sums of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from codegen.maps.emit.masks import masked_names
from codegen.maps.emit.sweeps import Sweep, early_scalars, is_long
from codegen.maps.emit.tvm_places import Places
from codegen.maps.folding import folded
from codegen.maps.lowering import Program

_LONGEST_NAMES = 90
"""Letters of the names that one line makes; more do not fit a page."""


@dataclass(frozen=True)
class Function:
    """What a function over one vector b of rows is made of.

    Attributes:
        made: the program.
        places: of its inputs, and of scalars that are known before.
        parts: its sweeps.
        keep: the place of a row that a sweep stores.
        results: statements of the last sweep.
        begin: statements that every sweep, or if the first says so only that, begins with.
        after: lines that follow a sweep.
        padded: the inputs that are 0 past the last feature; without any, they may be NaN there, and no sum takes them.
    """

    made: Program
    places: Places
    parts: tuple[Sweep, ...]
    keep: Callable[[str], str]
    results: Callable[[Places], list[str]]
    begin: tuple[str, ...] = ()
    after: Callable[[Sweep], list[str]] = lambda part: []
    padded: tuple[str, ...] = ("z", "a", "ct")

    def lines(self) -> list[str]:
        """Its body."""
        reductions = frozenset(each.name for part in self.parts for each in part.reductions)
        masked = masked_names(self.made, self.padded, results=False) if self.padded else reductions
        vectors = [each.name for part in self.parts for each in (*part.reductions, *part.scalars)]
        lines = _made(vectors, "zeros")
        for each in early_scalars(self.made):
            self.places.scalars.setdefault(each.name, f"({self.places.text(each.value)})")
        long = sorted({each.name for part in self.parts for each in part.rows if is_long(each.value)})
        lines += _made(long, "registers")
        for place, part in enumerate(self.parts):
            lines += self._sweep(place, part, masked)
        return lines

    def _sweep(self, place: int, part: Sweep, masked: Collection[str]) -> list[str]:
        name = f"sweep_{place + 1}" if len(self.parts) > 1 else "sweep"
        body = [*self.begin] if place == 0 else []
        body += statements(part, self.places, self.keep, masked)
        body += self.results(self.places) if part is self.parts[-1] else []
        self.places.rows.update({each: self.keep(each) for each in part.stored})
        maxima = [each.name for each in part.reductions if each.value.op == "max"]
        sums = [each.name for each in part.reductions if each.value.op != "max"]
        lines = ["", f"def {name}(m, t, l, real):", *indented(body), ""]
        lines += [f"fill({each}, LOWEST)" for each in maxima]
        lines.append(f"walk.sweep(b, {self.places.width}, {name})")
        lines += [f"walk.{kind}({', '.join(names)})" for kind, names in (("highest", maxima), ("total", sums)) if names]
        return lines + _scalars(part, self.places) + self.after(part)


def _made(vectors: Sequence[str], how: str) -> list[str]:
    if not vectors:
        return []
    names = ", ".join(vectors) if len(vectors) > 1 else f"({vectors[0]},)"
    if len(names) > _LONGEST_NAMES:
        half = len(vectors) // 2
        return _made(vectors[:half], how) + _made(vectors[half:], how)
    return [f"{names} = walk.{how}({len(vectors)})"]


def statements(part: Sweep, places: Places, keep: Callable[[str], str], masked: Collection[str]) -> list[str]:
    """What a sweep does with each number: values, then sums, then what is stored, in place of an input last of all."""
    lines, stores, lane = list[str](), list[tuple[str, str]](), places.lane
    for each in part.rows:
        text = places.centred(each.value) or places.text(each.value)
        if is_long(each.value):
            lines.append(f"T.buffer_store({each.name}, {text}, [{lane}])")
            text = f"{each.name}[{lane}]"
        if each.name in masked:
            text = f"real({text})"
        if not is_long(each.value) or each.name in masked:
            name = f"{each.name}_inside" if is_long(each.value) else each.name
            lines.append(f"{name} = {text}")
            text = name
        places.rows[each.name] = text
        if each.name in part.stored:
            stores.append((keep(each.name), text))
    for each in part.reductions:
        text = places.text(each.value.args[0])
        if each.value.op == "mean":
            places.means[each.name] = str(each.value.args[0].value)
        if each.value.op == "max":
            text = f"real({text}, LOWEST)" if lane == "l" else text
            lines.append(f"T.buffer_store({each.name}, T.max({each.name}[{lane}], {text}), [{lane}])")
        else:
            lines.append(f"add({each.name}, {lane}, {f'real({text})' if each.name in masked else text})")
    for place, text in sorted(stores, key=lambda each: each[0] == places.rows.get("z")):
        lines.append(store(place, text))
    return lines


def store(place: str, text: str) -> str:
    """The statement that stores a value at a place such as U[m, t]."""
    buffer, _, index = place.partition("[")
    return f"T.buffer_store({buffer}, {text}, [{index})"


def _scalars(part: Sweep, places: Places) -> list[str]:
    """What follows from the sums of a sweep, one number for each lane."""
    means = [each.name for each in part.reductions if each.value.op == "mean"]
    body = [f"T.buffer_store({each}, {each}[l] * T.float32(1 / {places.width}), [l])" for each in means]
    body += [f"T.buffer_store({each.name}, {places.text(each.value)}, [l])" for each in part.scalars]
    if not body:
        return []
    return ["", "def of_lane(t, l):", *indented(body), "", "walk.each_lane(b, of_lane)"]


def indented(lines: Iterable[str]) -> list[str]:
    """The body of a function inside of that over one vector."""
    return [f"    {part}" for line in lines for part in folded(line, 12)]


def written(head: str, says: str, lines: Iterable[str]) -> str:
    """The text of a function whose body is that of every vector b of a walk."""
    body = "".join(f"        {line}".rstrip() + "\n" for line in lines)
    return f'def {head}:\n    """{says}"""\n\n    def of_vector(b):\n{body}\n    walk.each_vector(of_vector)\n'
