"""Which tensors a rule takes and which states it carries, as its record says."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from codegen.recurrence.program import Axes
from codegen.rule import SOLVE, Rule

TOKEN, HEAD = "token", "head"
"""What has a row of its own: each token of each head, or each head."""


@dataclass(frozen=True)
class Memory:
    """One memory of a rule.

    Attributes:
        suffix: of the names of its states: "" for the one of one pass, else "_k" or "_v".
        rows, columns: axes of its matrix S.
        write, target: the tensors w and a.
        written, coded: the axes of w, and of z and a.
        probe: the tensor that z is taken along.
    """

    suffix: str
    rows: str
    columns: str
    write: str
    target: str
    written: str
    coded: str
    probe: str


@dataclass(frozen=True)
class Given:
    """A tensor of a call.

    Attributes:
        name: as the public functions call it.
        axes: beside those of tokens and heads.
        per: TOKEN or HEAD.
        is_input: whether it is of the type of q; else float32.
        optional: whether None stands for ones.
    """

    name: str
    axes: Axes
    per: str = TOKEN
    is_input: bool = False
    optional: bool = False


@functools.cache
def memories(rule: Rule) -> tuple[Memory, ...]:
    """The memory of one pass, or those of keys and of values."""
    if rule.passes == 2:
        return (
            Memory("_k", "slots", "dim_k", "k", "target", "dim_k", "slots", "k"),
            Memory("_v", "slots", "dim_v", "v", "target", "dim_v", "slots", "v"),
        )
    write, target = ("v", "k") if rule.transposed else ("k", "v")
    written, coded = ("dim_v", "dim_k") if rule.transposed else ("dim_k", "dim_v")
    probe = "probe" if rule.probe == "own" else write
    return (Memory("", "dim_v", "dim_k", write, target, written, coded, probe),)


def decay_axes(rule: Rule) -> Axes:
    """The axes of the forget gate beside those of tokens and heads."""
    (first, *_) = memories(rule)
    return {"none": (), "scalar": (), "slot": (first.rows,), "channel": (first.columns,)}[rule.decay]


@functools.cache
def tensors(rule: Rule) -> tuple[Given, ...]:
    """What a call gives, in order; the states come after."""
    (first, *_) = memories(rule)
    found = [Given("q", ("dim_k",), is_input=True), Given("k", ("dim_k",), is_input=True)]
    found.append(Given("v", ("dim_v",), is_input=True))
    if rule.passes == 2:
        found.append(Given("target", ("slots",), is_input=True))
    if rule.decay != "none":
        found.append(Given("log_decay", decay_axes(rule)))
    found.append(Given("step_size", (), HEAD if rule.step_size == "head" else TOKEN, optional=True))
    if rule.step_size == "reader_writer":
        found.append(Given("reader_step", ()))
    if rule.probe == "own":
        found.append(Given("probe", (first.written,), is_input=True))
    if rule.erase:
        found += [Given("erase_a", ("dim_k",), is_input=True), Given("erase_b", ("dim_k",), is_input=True)]
    if rule.momentum:
        found.append(Given("momentum", ()))
    if rule.window > 1:
        found.append(Given("window_weight", (), optional=True))
    if rule.loss.takes_gain:
        found.append(Given("gain", (first.coded,), HEAD))
    if rule.link == SOLVE:
        found.append(Given("regulariser", ("dim_k",), HEAD))
    return tuple(found)


def states(rule: Rule) -> dict[str, Axes]:
    """The states that a sequence carries, by name with their axes, float32: `[N, H, *axes]`."""
    found: dict[str, Axes] = {}
    kinds = memories(rule)
    found |= {f"S{each.suffix}": (each.rows, each.columns) for each in kinds}
    if rule.momentum:
        found |= {f"P{each.suffix}": (each.rows, each.columns) for each in kinds}
    if rule.normaliser != "none":
        found["n"] = ("dim_k",)
    if rule.window > 1:
        for each in kinds:
            found[f"window_u{each.suffix}"] = ("window", each.coded)
            found[f"window_w{each.suffix}"] = ("window", each.written)
    return found


def chunk_states(rule: Rule) -> dict[str, Axes]:
    """What is kept from the start of a chunk of several tokens to its end, by name with the axes.

    A name with 0 is the state of that name at the start of the chunk; A is the sum of the writes since, from zero.
    """
    found: dict[str, Axes] = {}
    for each in memories(rule):
        found[f"S0{each.suffix}"] = (each.rows, each.columns)
    if rule.normaliser != "none":
        found["n0"] = ("dim_k",)
    if rule.step_size == "reader_writer":
        found |= {f"A{each.suffix}": (each.rows, each.columns) for each in memories(rule)}
    return found


def state_behind(name: str) -> str | None:
    """The state that a chunk state is a copy of; None for a sum of writes."""
    return name.replace("0", "") if "0" in name else None


KEEP, PUT = "keep", "put"
"""Rows over the window that a walk gives: 0 and 1 at the oldest pair, 1 and 0 elsewhere."""
