"""The program of one token of a rule: docs/rules.md has the equations."""

from __future__ import annotations

import functools

from codegen.maps import registry
from codegen.maps.derive import write_of
from codegen.maps.expression import input_row, total
from codegen.recurrence import program as p
from codegen.recurrence.order import ordered_for_moves
from codegen.recurrence.program import Builder, Program, Term
from codegen.recurrence.tensors import KEEP, PUT, Memory, chunk_states, memories, states, tensors
from codegen.rule import SOLVE, Rule


@functools.cache
def token_program(rule: Rule, chunked: bool) -> Program:
    """What one token does.

    Args:
        rule: any.
        chunked: whether z is taken at states kept from the start of a chunk of several tokens; otherwise at those
            before the token.
    """
    made = _Token(rule, chunked).program()
    return ordered_for_moves(made.reduced((*made.moved.values(), *made.results)))


def used_chunk_states(rule: Rule, chunked: bool) -> dict[str, p.Axes]:
    """Those of `chunk_states` that a token reads, by name with their axes: no Hebbian rule reads S0."""
    given = token_program(rule, chunked).given
    return {name: axes for name, axes in chunk_states(rule).items() if chunked and name in given}


def write_inputs(of: str) -> frozenset[str]:
    """The rows, of z, a and g, that u of a map or loss depends on: a Hebbian one on the target alone."""
    return write_of(registry.find(of).expression, registry.find(of).is_loss).u.inputs


class _Token:
    def __init__(self, rule: Rule, chunked: bool) -> None:
        self.rule, self.chunked = rule, chunked
        self.build = Builder()
        self.moved: dict[str, str] = {}
        self.detached: set[str] = set()
        self.build.give(**{each.name: each.axes for each in tensors(rule)}, **states(rule))
        if chunked:
            self.build.give(**chunk_states(rule))
        if rule.window > 1:
            self.build.give(**{KEEP: ("window",), PUT: ("window",)})

    def program(self) -> Program:
        """The statements of all memories and the readout."""
        if self.rule.decay != "none":
            axes = self.build.axes["log_decay"]
            self.build.call(p.GATE, {"beta": axes}, ("log_decay",), says="beta = exp(log_decay)")
        for memory in memories(self.rule):
            self._write(memory)
        self._read()
        return Program(self.build.axes, tuple(self.build.statements), self.moved, ("y",), frozenset(self.detached))

    @property
    def _kept(self) -> tuple[str, ...]:
        """The factors by which a token keeps what was there."""
        return () if self.rule.decay == "none" else ("beta",)

    def _start(self, state: str, suffix: str) -> str:
        """A state as z is taken at it."""
        return f"{state}0{suffix}" if self.chunked else f"{state}{suffix}"

    def _base(self, memory: Memory) -> tuple[str, ...]:
        """The factors whose product is the memory that z is taken at."""
        first = (*(self._kept if self.rule.decay_first else ()), self._start("S", memory.suffix))
        if self.rule.view == "identity":
            return first
        return (self._viewed(self._point(memory), memory, "base"),)

    def _point(self, memory: Memory) -> str:
        """The accumulator that z is taken at, as one value."""
        start = self._start("S", memory.suffix)
        if not self.rule.decay_first:
            return start
        name, axes = f"decayed{memory.suffix}", self.build.axes[start]
        if name not in self.build.axes:
            self.build.sum(name, axes, Term((*self._kept, start)), says=f"{name} = beta {start}")
        return name

    def _viewed(self, accumulator: str, memory: Memory, where: str) -> str:
        name, axes = f"{where}{memory.suffix}", (memory.rows, memory.columns)
        says = f"{name} = {registry.find(self.rule.view).name} of the rows of {accumulator}"
        self._apply(name, axes, accumulator, memory.columns, self.rule.view, says)
        return name

    def _apply(self, name: str, axes: p.Axes, z: str, axis: str, of: str, says: str) -> None:
        self.build.call(p.APPLY, {name: axes}, (z,), axis, of, "readout", says, ("z",), ("y",))

    def _write(self, memory: Memory) -> None:
        base, x = self._base(memory), memory.suffix
        z = self._normalised(memory, self._product(f"z{x}", memory.coded, base, memory.probe))
        self.detached.add(z)
        u = self._code(memory, z)
        if self.rule.window > 1:
            u = self.build.sum(f"weighted{x}", (memory.coded,), Term(("window_weight", u)), says=f"om {u}")
        writes = self._writes(memory, u)
        if self.rule.erase:
            self._product("erased", memory.rows, base, "erase_a")
        self._move(memory, writes)
        if self.rule.window > 1:
            for ring, value, axis in (("window_u", u, memory.coded), ("window_w", memory.write, memory.written)):
                terms = (Term((KEEP, f"{ring}{x}")), Term((PUT, value)))
                says = f"the oldest of {ring}{x} <- {value}"
                self.moved[f"{ring}{x}"] = self.build.sum(f"{ring}{x}_new", ("window", axis), *terms, says=says)
        if self.rule.normaliser != "none":
            terms = (Term((*self._kept, "n")), Term(("step_size", memory.write)))
            says = "n_t = decay n_{t-1} + step_size w"
            self.moved["n"] = self.build.sum("n_new", ("dim_k",), *terms, says=says)

    def _product(self, name: str, axis: str, matrix: tuple[str, ...], vector: str, says: str = "") -> str:
        return self.build.sum(name, (axis,), Term((*matrix, vector)), says=says or f"{name} = {matrix[-1]} {vector}")

    def _normalised(self, memory: Memory, z: str) -> str:
        if self.rule.normaliser != "both":
            return z
        kept = self._kept if self.rule.decay_first else ()
        self.build.sum("weight", (), Term((*kept, self._start("n", ""), memory.probe)), says="n p")
        self.build.call(p.RECIPROCAL, {"inverse": ()}, ("weight",), says="1 / (n p + 1e-6)")
        return self.build.sum("z_normalised", (memory.coded,), Term((z, "inverse")), says="z / (n p + 1e-6)")

    def _code(self, memory: Memory, z: str) -> str:
        name, loss = f"u{memory.suffix}", self.rule.loss
        says = f"{name} = d loss({z}, {memory.target}) / d {z}, {loss.name}"
        given = {"z": z, "a": memory.target, "g": "gain"}
        self._coded(name, (memory.coded,), given, memory.coded, self.rule.phi, "phi", says)
        return name

    def _coded(self, name: str, axes: p.Axes, given: dict[str, str], axis: str, of: str, eps: str, says: str) -> None:
        """u of a loss, from what it depends on."""
        roles = tuple(role for role in given if role in write_inputs(of))
        inputs = tuple(given[role] for role in roles)
        self.build.call(p.CODE, {name: axes}, inputs, axis, of, eps, says, roles, ("u",))

    def _writes(self, memory: Memory, u: str) -> tuple[Term, ...]:
        """The terms that are subtracted from what was there, times step_size."""
        x = memory.suffix
        if self.rule.view_gradient:
            axes = (memory.rows, memory.columns)
            outer = self.build.sum(f"outer{x}", axes, Term((u, memory.write)), says=f"{u} w^T")
            of = _pullback_of(self.rule.view)
            says = "through the view: J^T of each row"
            given = {"z": self._point(memory), "a": outer}
            self._coded(f"written{x}", axes, given, memory.columns, of, "readout", says)
            return (Term(("step_size", f"written{x}"), -1),)
        now: tuple[Term, ...] = (Term(("step_size", u, memory.write), -1),)
        if self.rule.window > 1:
            return (*now, Term(("step_size", f"window_u{x}", f"window_w{x}"), -1))
        return now

    def _move(self, memory: Memory, writes: tuple[Term, ...]) -> None:
        x, axes = memory.suffix, (memory.rows, memory.columns)
        kept = Term((*self._kept, f"S{x}"))
        more = (Term(("erased", "erase_b")),) if self.rule.erase else ()
        if self.rule.momentum:
            terms: tuple[Term, ...] = (Term(("momentum", f"P{x}")), *writes)
            says = f"P{x}_t = eta P{x}_(t-1) - step_size u w^T"
            self.moved[f"P{x}"] = self.build.sum(f"P{x}_new", axes, *terms, says=says)
            writes = (Term((f"P{x}_new",)),)
        if self.rule.step_size == "reader_writer":
            self._move_by_reader(memory, writes)
            return
        says = f"S{x}_t = decay S{x}_(t-1) - step_size u w^T"
        self.moved[f"S{x}"] = self.build.sum(f"S{x}_new", axes, kept, *more, *writes, says=says)

    def _move_by_reader(self, memory: Memory, writes: tuple[Term, ...]) -> None:
        x, axes = memory.suffix, (memory.rows, memory.columns)
        if self.chunked:
            added = tuple(Term(each.factors, -each.sign) for each in writes)
            says = f"A{x} + step_size u w^T"
            self.moved[f"A{x}"] = self.build.sum(f"A{x}_new", axes, Term((f"A{x}",)), *added, says=says)
            terms: tuple[Term, ...] = (Term((f"S0{x}",)), Term(("reader_step", f"A{x}_new"), -1))
        else:
            terms = (Term((f"S{x}",)), *(Term(("reader_step", *each.factors), each.sign) for each in writes))
        says = f"S{x}_t = S0{x} - tau A{x}"
        self.moved[f"S{x}"] = self.build.sum(f"S{x}_new", axes, *terms, says=says)

    def _source(self, state: str, suffix: str) -> str:
        """A state as it is read."""
        if self.rule.read == "after":
            return f"{state}{suffix}_new"
        return self._start(state, suffix) if self.rule.read == "chunk_start" else f"{state}{suffix}"

    def _read(self) -> None:
        first, last = memories(self.rule)[0], memories(self.rule)[-1]
        read = "q"
        if self.rule.passes == 2:
            read = self._linked(first)
        source = self._source("S", last.suffix)
        if self.rule.view != "identity":
            source = self._viewed(source, last, "shown")
        mapped = self.rule.out != "identity"
        divided = self.rule.normaliser != "none"
        name = "y" if not mapped and not divided else "o_v"
        y = self._product(name, "dim_v", (source,), read)
        if divided:
            self.build.sum("weight_read", (), Term((self._source("n", ""), "q")), says="n q")
            self.build.call(p.RECIPROCAL, {"inverse_read": ()}, ("weight_read",), says="1 / (n q + 1e-6)")
            name = "o_normalised" if mapped else "y"
            y = self.build.sum(name, ("dim_v",), Term((y, "inverse_read")), says="S q / (n q + 1e-6)")
        if mapped:
            says = f"y = {registry.find(self.rule.out).name}({y})"
            self._apply("y", ("dim_v",), y, "dim_v", self.rule.out, says)

    def _linked(self, memory: Memory) -> str:
        source = self._source("S", memory.suffix)
        if self.rule.link == SOLVE:
            return self._solved(source)
        if self.rule.view != "identity":
            source = self._viewed(source, memory, "shown")
        o = self._product("o", "slots", (source,), "q")
        if self.rule.link == "identity":
            return o
        says = f"r = {registry.find(self.rule.link).name}(o)"
        self._apply("r", ("slots",), o, "slots", self.rule.link, says)
        return "r"

    def _solved(self, source: str) -> str:
        self.build.call(p.CAST, {"q_rows": ("slots",)}, ("q",), says="q, an entry for each row of S_k")
        says = "(S_k + diag(regulariser)) x = q"
        self.build.call(p.SOLVE, {"x": ("dim_k",)}, (source, "regulariser", "q_rows"), "dim_k", says=says)
        return self.build.call(p.CAST, {"r": ("slots",)}, ("x",), says="r = x, an entry for each slot")[0]


@functools.cache
def _pullback_of(view: str) -> str:
    """The loss whose gradient at z is J^T a, J the Jacobian of the view at z."""
    made = registry.find(view)
    loss = total(made.expression * input_row("a"))
    return str(registry.unnamed(f"{made.name}_pulled", loss, is_loss=True))
