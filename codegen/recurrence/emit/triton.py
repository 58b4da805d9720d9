"""What the Triton kernels of any rule are made of: values that they load and store, and the statements of a token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from codegen.kernels.rule_arguments import KEPT, WALKED, is_chunked, kept_states, walked_states
from codegen.maps.emit import triton as of_maps
from codegen.maps.folding import folded
from codegen.recurrence.emit.triton_statements import NAMES, Writer, indented, sizes
from codegen.recurrence.of_rule import token_program, used_chunk_states
from codegen.recurrence.order import with_few_matrices
from codegen.recurrence.program import Axes, Program, Statement
from codegen.recurrence.reverse import AFTER, cotangent, reverse_program
from codegen.recurrence.tensors import HEAD, KEEP, PUT, TOKEN, state_behind, states, tensors
from codegen.rule import READOUT_EPS
from codegen.spec import Spec, next_power_of_two

_MEANINGS = {
    "slots": "slots",
    "dim_v": "width of v and y",
    "dim_k": "width of q and k",
    "window": "pairs of the window",
}


@dataclass(frozen=True)
class Value:
    """A tensor, state or cotangent in memory.

    Attributes:
        name: as the program of a token calls it.
        axes: of one token, or of one sequence and head.
    """

    name: str
    axes: Axes

    @property
    def is_ring(self) -> bool:
        """Whether it has a row for each pair of a window."""
        return self.axes[:1] == ("window",)

    @property
    def behind(self) -> str | None:
        """What a chunk state is a copy of."""
        return state_behind(self.name)

    @property
    def zeros(self) -> str:
        """A block of zeros of its shape."""
        shape = ", ".join(f"{NAMES[axis]}_PAD" for axis in self.axes)
        return f"tl.zeros([{shape}], tl.float32)" if self.axes else "0.0"

    def load(self, pointer: str, index: str, turned: str = "") -> str:
        """The text that reads number `index` of a tensor of such values, of a ring after `turned` tokens."""
        if not self.axes:
            return f"tl.load({pointer} + {index})"
        if turned and self.is_ring:
            return f"load_ring({pointer}, {index}, {turned}, {_widths(self.axes[1:])})"
        return f"{self._kind('load')}({pointer}, {index}, {_widths(self.axes)})"

    def store(self, pointer: str, index: str, value: str, turned: str = "") -> str:
        """The text that writes `value` there, of a ring after `turned` tokens."""
        if not self.axes:
            return f"tl.store({pointer} + {index}, {value})"
        if turned and self.is_ring:
            return f"store_ring({pointer}, {index}, {value}, {turned}, {_widths(self.axes[1:])})"
        return f"{self._kind('store')}({pointer}, {index}, {value}, {_widths(self.axes)})"

    def _kind(self, does: str) -> str:
        return f"{does}_{'row' if len(self.axes) == 1 else 'matrix'}"


def _widths(axes: Axes) -> str:
    return ", ".join(f"{NAMES[axis]}, {NAMES[axis]}_PAD" for axis in axes)


@dataclass(frozen=True)
class Body:
    """Statements of a token.

    Attributes:
        text: their lines.
        tokens, heads: the tensors that they read, of each token and of each head.
        states, starts: the states and chunk states that they read or move.
        moves: a state's name, and that of the value which it then has.
        with_ring: whether they read `keep` and `put`.
    """

    text: str
    tokens: tuple[Value, ...]
    heads: tuple[Value, ...]
    states: tuple[Value, ...]
    starts: tuple[Value, ...]
    moves: tuple[tuple[str, str], ...]
    with_ring: bool

    def load(self, row: str, into: str, indent: int) -> str:
        """The call of `load_token` that gives the tokens' values of a row."""
        arguments = ", ".join([*(f"{each.name}_ptr" for each in self.tokens), row])
        return ("\n" + " " * indent).join(folded(f"{into} = load_token({arguments})", indent))

    @property
    def names(self) -> str:
        """Those of `tokens`."""
        return ", ".join(each.name for each in self.tokens)


@dataclass(frozen=True)
class Kernel:
    """What a template is given as `token`.

    Attributes:
        functions: the text of what the statements call.
        token: of the forward; in a backward, what moves the states that the reverse reads.
        states: all that the rule carries.
        kept: what a forward with a backward leaves of each segment.
        tokens, heads: every tensor of the call.
        y: the result.
        reverse: the reverse of a token; None in a forward.
        walked: the states that are written for every token of a segment.
        zero: gradients that no statement gives.
        sizes: of every axis its name, its size and what it is.
    """

    functions: str
    token: Body
    states: tuple[Value, ...]
    kept: tuple[Value, ...]
    tokens: tuple[Value, ...]
    heads: tuple[Value, ...]
    y: Value
    reverse: Body | None = None
    walked: tuple[Value, ...] = ()
    zero: frozenset[str] = frozenset()
    sizes: tuple[tuple[str, int, str], ...] = ()

    @property
    def reads_starts(self) -> bool:
        """Whether the reverse reads states from where the chunk started."""
        return self.reverse is not None and "start" in re.findall(r"\w+", self.reverse.text)

    def constants(self, text: str) -> str:
        """The sizes of axes that a text reads, each with the power of two that pads it."""
        return "".join(
            f"{name}, {name}_PAD = tl.constexpr({size}), tl.constexpr({next_power_of_two(size)})"
            f"  # {meaning}, and padded to a power of two\n"
            for name, size, meaning in self.sizes
            if re.search(rf"\b{name}(_PAD)?\b", text)
        )


def kernel(kernel: str, spec: Spec) -> Kernel:
    """The parts of `recurrence` or `recurrence_backward` for one spec."""
    writer, of = Writer(spec), token_program(spec.rule, is_chunked(spec))
    if kernel == "recurrence":
        body = _body(spec, of, writer, 8 if spec.problem.operator == "memory_attention" else 4)
        return _kernel(spec, writer, body)
    bilevel = spec.problem.direction != "backward_first_order"
    reverse = with_few_matrices(reverse_program(spec.rule, is_chunked(spec), bilevel))
    bodies = _body(spec, _moving(spec, of), writer, 8), _body(spec, reverse, writer, 12, _Loads(spec))
    given = frozenset(cotangent(each.name) for each in tensors(spec.rule))
    made = _kernel(spec, writer, bodies[0])
    return replace(
        made, reverse=bodies[1], walked=_values(walked_states(spec)), zero=given - frozenset(reverse.results)
    )


def _kernel(spec: Spec, writer: Writer, token: Body) -> Kernel:
    """What a forward has, after all statements have been written."""
    given = {per: {each.name: each.axes for each in tensors(spec.rule) if each.per == per} for per in (TOKEN, HEAD)}
    return Kernel(
        functions=_functions(writer, spec),
        token=token,
        states=_values(states(spec.rule)),
        kept=_values(kept_states(spec)),
        tokens=_values(given[TOKEN]),
        heads=_values(given[HEAD]),
        y=Value("y", ("dim_v",)),
        sizes=_sizes(spec),
    )


def _sizes(spec: Spec) -> tuple[tuple[str, int, str], ...]:
    size = sizes(spec)
    return tuple((NAMES[axis], size[axis], meaning) for axis, meaning in _MEANINGS.items())


def _functions(writer: Writer, spec: Spec) -> str:
    """Constants and functions of maps."""
    text = writer.functions
    constants = of_maps.constants_in(text, spec.rule.phi_eps, READOUT_EPS)
    return constants + of_maps.helpers_in(text) + text


def _values(named: Mapping[str, Axes]) -> tuple[Value, ...]:
    return tuple(Value(name, axes) for name, axes in named.items())


def _moving(spec: Spec, of: Program) -> Program:
    """What moves the states that the reverse reads, and those which they depend on."""
    needed, found = {*walked_states(spec)}, of
    while True:
        found = of.reduced(of.moved[name] for name in of.moved if name in needed)
        more = needed | {name for name in found.given if name in of.moved}
        if more == needed:
            return found
        needed = more


def _body(spec: Spec, of: Program, writer: Writer, indent: int, loads: _Loads | None = None) -> Body:
    lines: list[str] = []
    for each in of.statements:
        lines += loads.before(each, of) if loads else []
        lines += writer.lines(each, of)
        lines += [line for name in each.outputs for line in _gradient(name, spec)] if loads else []
    read = {*of.given}
    carried, starts = states(spec.rule), used_chunk_states(spec.rule, is_chunked(spec))
    if loads:
        carried, starts = ({cotangent(name): axes for name, axes in each.items()} for each in (carried, starts))
        starts = {name: axes for name, axes in starts.items() if of.moved.get(name, name) != name}
    given = [each for each in tensors(spec.rule) if each.name in read]
    return Body(
        text="\n".join(indented(lines, indent)),
        tokens=tuple(Value(each.name, each.axes) for each in given if each.per == TOKEN),
        heads=tuple(Value(each.name, each.axes) for each in given if each.per == HEAD),
        states=_values({name: axes for name, axes in carried.items() if name in {*of.moved, *read}}),
        starts=_values({name: axes for name, axes in starts.items() if name in {*of.moved, *read}}),
        moves=tuple((name, value) for name, value in of.moved.items() if name != value),
        with_ring=bool(read & {KEEP, PUT}),
    )


def _gradient(name: str, spec: Spec) -> Iterator[str]:
    """What becomes of the cotangent of a tensor of the call, as soon as there is one."""
    for each in tensors(spec.rule):
        if name == cotangent(each.name):
            value = Value(name, each.axes)
            yield f"sum_of_{name} += {name}" if each.per == HEAD else value.store(f"{name}_ptr", "row", name)


class _Loads:
    """Loads the states that a reverse reads where it reads them: they would fill registers meanwhile."""

    def __init__(self, spec: Spec) -> None:
        self._starts = used_chunk_states(spec.rule, is_chunked(spec))
        self._states = kept_states(spec)
        self._held: set[str] = set()

    def before(self, each: Statement, of: Program) -> list[str]:
        """The loads of what a statement reads; what the one before it with matrices has read is there."""
        read = {name for name in each.inputs if name.removesuffix(AFTER) in self._states}
        lines = [line for name in each.inputs if name in read - self._held for line in self._load(name)]
        if any(len(of.axes[name]) == 2 for name in (*each.inputs, *each.outputs)):
            self._held = read
        return lines

    def _load(self, name: str) -> Iterator[str]:
        state = name.removesuffix(AFTER)
        value = Value(state, self._states[state])
        behind = state_behind(state)
        if state in self._starts and behind is not None:
            size = " * ".join(NAMES[axis] for axis in value.axes)
            pointer = f"at_start({KEPT}{state}_ptr, kept, {WALKED}{behind}_ptr, scratch, start, {size})"
            yield f"{name} = {value.load(pointer, '0')}"
            return
        after = " + 1" if name.endswith(AFTER) else ""
        yield f"{name} = {value.load(f'{WALKED}{state}_ptr', f'scratch + i{after}')}"
        if state in self._starts and not after:
            yield f"{name} = tl.where(t % C == 0, 0.0, {name})"
