"""The arguments of the kernels that compute any rule: what the record says that it takes, carries and keeps."""

from __future__ import annotations

from collections.abc import Iterator

from codegen.kernels.arguments import FLOAT, IN_PLACE, INPUT, INT, READ, WRITTEN, Argument
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.program import Axes
from codegen.recurrence.reverse import AFTER, reverse_program
from codegen.recurrence.tensors import HEAD, Given, state_behind, states, tensors
from codegen.rule import Rule
from codegen.spec import CHUNKED_STEP, Spec

WALKS = ("recurrence", "recurrence_backward")
"""Kernels for any rule, token by token, one sequence and head per program."""

CHUNKS = ("memory_chunks", "memory_chunks_backward")
"""Kernels for rules that `codegen.recurrence.forms` has a form for, the tokens of a tile at once."""

STALE = "stale_chunks"
"""The kernel for rules that `codegen.recurrence.forms.why_no_stale_form` lets pass, the tokens of a tile at once."""

KERNELS = (*WALKS, *CHUNKS, STALE)
"""All that take what a record says."""

KEPT, WALKED = "kept_", "walk_"
"""What the names begin with of states that a forward leaves for its backward, and of those of one segment's tokens."""

_OFFSETS = ("cu_seqlens", "chunk_offsets")


def is_chunked(spec: Spec) -> bool:
    """Whether z is taken at states from the start of a chunk of several tokens."""
    return spec.problem.operator == CHUNKED_STEP or spec.problem.chunk > 1


def kept_states(spec: Spec) -> dict[str, Axes]:
    """The states that a forward keeps at the start of every segment, by name with their axes."""
    return states(spec.rule) | used_chunk_states(spec.rule, is_chunked(spec))


def walked_states(spec: Spec) -> dict[str, Axes]:
    """The states of every token of a segment that its reverse reads, by name with their axes."""
    bilevel = spec.problem.direction != "backward_first_order"
    program = reverse_program(spec.rule, is_chunked(spec), bilevel)
    read = {name.removesuffix(AFTER) for name in program.given}
    behind = {state_behind(name) for name in read}
    return {name: axes for name, axes in kept_states(spec).items() if "0" not in name and name in read | behind}


def kernel_arguments(kernel: str, spec: Spec) -> tuple[Argument, ...]:
    """The arguments of one of `KERNELS` in order."""
    return tuple(_backward(spec, kernel in WALKS) if kernel.endswith("_backward") else _forward(spec))


def operator_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What an operator of any rule takes and gives, besides the offsets of sequences."""
    found = [*_tensors(spec), *_states(spec.rule), *_chunk_states(spec), Argument("y", _row("dim_v"), INPUT, WRITTEN)]
    if spec.problem.direction != "forward":
        found += [*_kept(spec, WRITTEN), Argument("dy", _row("dim_v"), INPUT, READ)]
        found += [*_cotangents_of_states(spec.rule), *_gradients(spec)]
    return tuple(found)


def _forward(spec: Spec) -> Iterator[Argument]:
    keeps = spec.problem.direction != "forward"
    yield from _tensors(spec)
    yield from _states(spec.rule)
    yield from _chunk_states(spec)
    for name in _OFFSETS if keeps else ("cu_seqlens",):
        yield Argument(name, ("offsets",), INT, READ)
    if keeps:
        yield from _kept(spec, WRITTEN)
    yield Argument("y", _row("dim_v"), INPUT, WRITTEN)


def _backward(spec: Spec, walks: bool) -> Iterator[Argument]:
    yield from _tensors(spec)
    yield from _kept(spec, READ)
    yield Argument("dy", _row("dim_v"), INPUT, READ)
    yield from _cotangents_of_states(spec.rule)
    for name in _OFFSETS:
        yield Argument(name, ("offsets",), INT, READ)
    for name, axes in walked_states(spec).items() if walks else ():
        yield Argument(f"{WALKED}{name}", ("workers", "steps", *axes), FLOAT, WRITTEN)
    yield from _gradients(spec)


def _row(*axes: str) -> Axes:
    return ("tokens", "heads", *axes)


def _tensors(spec: Spec) -> Iterator[Argument]:
    for each in tensors(spec.rule):
        axes = ("heads", *each.axes) if each.per == HEAD else _row(*each.axes)
        yield Argument(each.name, axes, _type(each), READ)


def _gradients(spec: Spec) -> Iterator[Argument]:
    """Of what each head has, a part from every sequence."""
    for each in tensors(spec.rule):
        axes = ("sequences", "heads", *each.axes) if each.per == HEAD else _row(*each.axes)
        yield Argument(f"d{each.name}", axes, _type(each), WRITTEN)


def _type(each: Given) -> str:
    return INPUT if each.is_input else FLOAT


def _states(rule: Rule) -> Iterator[Argument]:
    for name, axes in states(rule).items():
        yield Argument(name, ("sequences", "heads", *axes), FLOAT, IN_PLACE)


def _cotangents_of_states(rule: Rule) -> Iterator[Argument]:
    for name, axes in states(rule).items():
        yield Argument(f"d{name}", ("sequences", "heads", *axes), FLOAT, IN_PLACE)


def _chunk_states(spec: Spec) -> Iterator[Argument]:
    """Those that the caller of a step keeps from the start of the chunk."""
    if spec.problem.operator == CHUNKED_STEP:
        for name, axes in used_chunk_states(spec.rule, chunked=True).items():
            access = READ if state_behind(name) else IN_PLACE
            yield Argument(name, ("sequences", "heads", *axes), FLOAT, access)


def _kept(spec: Spec, access: str) -> Iterator[Argument]:
    for name, axes in kept_states(spec).items():
        yield Argument(f"{KEPT}{name}", ("chunks", "heads", *axes), FLOAT, access)
