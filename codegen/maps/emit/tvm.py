"""Maps as TVM code for CPUs: Python functions that emit sweeps over rows; numbers are those of docs/backward.md.

One text serves a tile, with tokens in the lanes, and one token, with slots in the lanes: how a row is walked is for the
object `walk` of codegen/backends/tvm/emit/walks.py to say. Sums and scalars live in vectors of WIDTH lanes, named as in
the program.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from codegen.maps.derive import Write, pullback_of, value_of, write_of
from codegen.maps.emit.masks import masked_names
from codegen.maps.emit.printer import Printer
from codegen.maps.emit.steps import Program, program, used
from codegen.maps.emit.sweeps import Sweep, early_scalars, is_long, sweeps
from codegen.maps.expression import Expr, eps, nodes
from codegen.maps.folding import folded
from codegen.maps.registry import find

RESERVED = (
    *("T", "M", "D_K", "D_V", "WIDTH", "TILE", "C", "Z", "A", "U", "X", "Y", "b", "m", "t", "l", "g", "walk", "add"),
    *("features", "stats", "kept", "first", "dz", "dtarget", "scaled", "eps", "zeros", "real", "exp", "sigmoid"),
)


def _is_constant(text: str) -> bool:
    return text.startswith("T.float32(") and text.endswith(")") and text.count("(") == 1


def _extreme(function: str, x: str, y: str) -> str:
    """max or min that keeps NaN: for numbers that do not compare, TVM's are their second argument."""
    if _is_constant(y):
        return f"T.{function}({y}, {x})"
    return f"T.{function}({x}, {y})" if _is_constant(x) else selected(function, x, y)


def selected(function: str, x: str, y: str) -> str:
    """max or min that keeps NaN, by comparing."""
    sign = ">" if function == "max" else "<"
    if _is_constant(y):
        x, y = y, x
    if _is_constant(x):
        return f"T.Select({x} {sign} {y}, {x}, {y})"
    return f"T.Select({x} {sign} {y}, {x}, T.Select({y} {sign}= {x}, {y}, {x} + {y}))"


FUNCTIONS: Mapping[str, Callable[..., str]] = {
    "exp": lambda x: f"exp({x})",
    "log": lambda x: f"T.log({x})",
    "sigmoid": lambda x: f"sigmoid({x})",
    "tanh": lambda x: f"tanh_of({x})",
    "sqrt": lambda x: f"T.sqrt({x})",
    "rsqrt": lambda x: f"T.float32(1) / T.sqrt({x})",
    "abs": lambda x: f"T.abs({x})",
    "sign": lambda x: f"sign_of({x})",
    "max": lambda x, y: _extreme("max", x, y),
    "min": lambda x, y: _extreme("min", x, y),
    "where": lambda condition, x, y: f"T.Select({condition}, {x}, {y})",
    "power": lambda x, exponent: f"exp({exponent} * T.log({x}))",
}


def number(x: float) -> str:
    """A constant of float32."""
    return f"T.float32({int(x) if x == int(x) and abs(x) < 1e6 else repr(x)})"


@dataclass
class Places:
    """Where the rows and scalars of a function lie, as texts over m, t and l.

    Attributes:
        rows: places of inputs, and of rows that were stored or are being computed.
        scalars: places of scalars that are no vectors of their own.
        width, eps: texts of the two symbols.
        lane: the index of a scalar in its vector.
        functions: how functions are written.
        means: the rows that scalars are the means of, by name.
    """

    rows: dict[str, str]
    scalars: dict[str, str] = field(default_factory=dict)
    width: str = "features"
    eps: str = "eps"
    lane: str = "l"
    functions: Mapping[str, Callable[..., str]] = field(default_factory=lambda: FUNCTIONS)
    means: dict[str, str] = field(default_factory=dict)

    def text(self, x: Expr) -> str:
        """An expression of the program."""
        printer = Printer(
            self.functions, self._leaf, number, f"T.float32({self.width})", f"T.float32({self.eps})", "T.float32(0) - "
        )
        return printer(x)

    def centred(self, x: Expr) -> str | None:
        """The text of a row minus its mean; None if x is something else."""
        if x.op != "add" or len(x.args) != 2:
            return None
        minus, row = x.args
        if minus.op != "mul" or len(minus.args) != 2 or minus.args[0].value != -1 or row.op != "input":
            return None
        mean = minus.args[1]
        if self.means.get(str(mean.value)) != str(row.value):
            return None
        return f"minus_mean({self.text(row)}, {self.text(mean)}, {self.width})"

    def _leaf(self, x: Expr) -> str:
        name = str(x.value)
        return self.rows.get(name, name) if x.op == "input" else self.scalars.get(name, f"{name}[{self.lane}]")


@dataclass(frozen=True)
class _Function:
    """What a function over one vector b of rows is made of.

    Attributes:
        made: the program.
        places: of its inputs, and of scalars that are known before.
        parts: its sweeps.
        keep: the place of a row that a sweep stores.
        results: statements of the last sweep.
        begin: statements that every sweep, or if the first says so only that, begins with.
        after: lines that follow a sweep.
    """

    made: Program
    places: Places
    parts: tuple[Sweep, ...]
    keep: Callable[[str], str]
    results: Callable[[Places], list[str]]
    begin: tuple[str, ...] = ()
    after: Callable[[Sweep], list[str]] = lambda part: []

    def lines(self) -> list[str]:
        """Its body."""
        masked = masked_names(self.made, ("z", "a", "ct"), results=False)
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
        lines = ["", f"def {name}(m, t, l, real):", *_indented(body), ""]
        lines += [f"fill({each}, LOWEST)" for each in maxima]
        lines.append(f"walk.sweep(b, {self.places.width}, {name})")
        lines += [f"walk.{kind}({', '.join(names)})" for kind, names in (("highest", maxima), ("total", sums)) if names]
        return lines + _scalars(part, self.places) + self.after(part)


def _made(vectors: Sequence[str], how: str) -> list[str]:
    if not vectors:
        return []
    names = ", ".join(vectors) if len(vectors) > 1 else f"({vectors[0]},)"
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
    for place, text in sorted(stores, key=lambda each: each[0] == places.rows["z"]):
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
    return ["", "def of_lane(t, l):", *_indented(body), "", "walk.each_lane(b, of_lane)"]


def _indented(lines: Iterable[str]) -> list[str]:
    """The body of a function inside of that over one vector."""
    return [f"    {part}" for line in lines for part in folded(line, 12)]


def _written(head: str, says: str, lines: Iterable[str]) -> str:
    """The text of a function whose body is that of every vector b of a walk."""
    body = "".join(f"        {line}".rstrip() + "\n" for line in lines)
    return f'def {head}:\n    """{says}"""\n\n    def of_vector(b):\n{body}\n    walk.each_vector(of_vector)\n'


def identifier(of: str) -> str:
    """What generated code calls a map."""
    return find(of).key.replace("@", "_")


def reads_eps(of: str) -> bool:
    """Whether a map has an epsilon."""
    return eps in nodes(find(of).expression)


def any_reads_eps(several: Iterable[str]) -> bool:
    """Whether one of some maps has an epsilon."""
    return any(map(reads_eps, several))


def apply(of: str) -> str:
    """A function apply_<map>(walk, X, features): X <- y of X."""
    made = program({"y": value_of(find(of).expression)}, RESERVED, early=True)
    parts = sweeps(made)
    rows, setup = _kept_in(made, parts, ["X[m, t]"])
    places = Places({"z": "X[m, t]"}, eps="READOUT_EPS")
    body = _Function(made, places, parts, rows.__getitem__, lambda p: [store("X[m, t]", p.text(made.outputs["y"]))])
    return _written(
        f"apply_{identifier(of)}(walk, X, features)", f"X <- {find(of).name} of X.", [*setup, *body.lines()]
    )


def codes(of: str) -> str:
    """A function codes_of(walk, Z, A, U): U <- u of Z and A; overwrites Z."""
    made = program({"u": write(of).u}, RESERVED, early=True)
    parts = sweeps(made)
    rows, setup = _kept_in(made, parts, ["Z[m, t]", "U[m, t]"])
    places = Places({"z": "Z[m, t]", "a": "A[m, t]"}, width="M", eps="PHI_EPS")
    body = _Function(made, places, parts, rows.__getitem__, lambda p: [store("U[m, t]", p.text(made.outputs["u"]))])
    return _written("codes_of(walk, Z, A, U)", says(of), [*setup, *body.lines()])


def write(of: str) -> Write:
    """What is derived of a map or loss for its write."""
    return write_of(find(of).expression, find(of).is_loss)


def says(of: str) -> str:
    """What a function that computes codes does, in words."""
    if find(of).is_loss:
        return f"U <- the gradient at Z of the loss {find(of).name} of Z and A."
    return f"U <- J^T (phi(Z) - A), phi = {find(of).name}, J its Jacobian at Z."


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
    expression = find(of).expression
    outputs = (("y", value_of(expression)), ("dz", pullback_of(expression)))
    forth, back, kept = _forth_and_back(outputs, ("dz",), False)
    y = forth.outputs["y"]
    inputs = {"z": "X[m, t]", "ct": "ct[m, t]"} | {name: kept.row(name, "features") for name in kept.rows}
    epsilon = "READOUT_EPS"
    apply_ = _Function(
        *(forth, Places({"z": "X[m, t]"}, eps=epsilon), sweeps(forth, keep=kept.rows)),
        keep=lambda name: kept.row(name, "features"),
        results=lambda p: [store("Y[m, t]", p.text(y))],
        after=lambda part: _keep_scalars(part, kept),
    )
    found = {str(y.value): "Y[m, t]"} if y.op == "input" and y.value != "z" else {}
    known = (*kept.rows, *found, *_before(forth))
    pull = _Function(
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
            _written(f"apply_{name}(walk, X, Y, kept, stats, features)", f"Y <- {find(of).name} of X.", apply_.lines()),
            _written(f"pull_{name}(walk, X, Y, kept, stats, features, ct)", "dX <- J^T dX (B14).", pull.lines()),
        )
    )


def write_and_push(of: str, bilevel: bool) -> str:
    """Functions write_codes, U and -gamma U from Z, and push_codes, dz (B9) and dtarget (B8) from Y.

    dU is -gamma times Y; `first` says that dtarget is set, not added to.
    """
    forth, back, kept = _write_forth_and_back(of, bilevel)
    inputs = {"z": "Z[m, t]", "a": "A[m, t]"}
    write = _Function(
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

    push = _Function(
        *(back, Places(rows, kept.scalar_places(), "M", "PHI_EPS"), parts), keep=str, results=results, begin=(begin,)
    )
    numbers = "dz (B9) and dtarget (B8)" if bilevel else "dtarget (B8), with z held constant"
    return "\n\n".join(
        (
            _written("write_codes(walk, Z, A, U, scaled, kept, stats, g)", says(of), write.lines()),
            _written(
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


def _before(forth: Program) -> set[str]:
    """The scalars that what came first has computed."""
    return {each.name for each in forth.definitions if not each.row and each.uses}


def _keep_scalars(part: Sweep, kept: Kept) -> list[str]:
    names = [each.name for each in (*part.reductions, *part.scalars) if each.name in kept.scalars]
    stores = [f"T.buffer_store(stats, {name}[l], [{kept.scalars.index(name)}, t])" for name in names]
    if not stores:
        return []
    return ["", "def of_token(t, l):", *_indented(stores), "", "walk.each_token(b, of_token)"]


def _all_kept(phi: str, applied: Iterable[str], bilevel: bool) -> list[Kept]:
    found = [_write_forth_and_back(phi, bilevel)[2]]
    for of in applied:
        expression = find(of).expression
        outputs = (("y", value_of(expression)), ("dz", pullback_of(expression)))
        found.append(_forth_and_back(outputs, ("dz",), False)[2])
    return found


def stats_rows(phi: str, applied: Iterable[str], bilevel: bool) -> int:
    """How many numbers of a token the write and the readouts keep at most."""
    return max(1, *(len(kept.scalars) for kept in _all_kept(phi, applied, bilevel)))


def kept_rows(phi: str, applied: Iterable[str], bilevel: bool) -> int:
    """How many rows of a token the write and the readouts keep at most."""
    return max(1, *(len(kept.rows) for kept in _all_kept(phi, applied, bilevel)))


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
    lines = []
    for module, names in _PROVIDED.items():
        used_names = [name for name in names if name in more or re.search(rf"(?<![.\w]){name}\b", text)]
        if used_names:
            lines.append(f"from codegen.backends.tvm.emit.{module} import {', '.join(used_names)}\n")
    return "".join(lines)


_PROVIDED = {
    "expressions": ("exp", "forget_gate", "minus_mean", "sigmoid", "sign_of", "tanh_of"),
    "tile": ("Tile",),
    "transpose": ("transpose",),
    "vectors": ("LOWEST", "add", "clear", "fill"),
}
"""What `imports` finds in codegen.backends.tvm.emit, by its modules."""
