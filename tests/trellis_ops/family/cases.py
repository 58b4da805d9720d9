"""Random rules that are legal, and tensors for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from codegen.errors import RuleError
from codegen.maps import registry
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import CHOICES, SOLVE, Rule

Named = dict[str, Tensor]
MAPS, LOSSES = list(registry.MAPS), list(registry.LOSSES)
CHUNKS = (1, 2, 3, 16)


@dataclass(frozen=True)
class Case:
    """A rule, sizes and a chunk; `inputs` makes tensors for it."""

    rule: Rule
    chunk: int = 1
    batch: int = 2
    tokens: int = 7
    heads: int = 2
    dim_k: int = 3
    dim_v: int = 4
    slots: int = 5
    seed: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        slots = self.dim_k if self.rule.link == SOLVE else self.slots
        return {"dim_k": self.dim_k, "dim_v": self.dim_v, "slots": slots, "window": self.rule.window - 1}


def inputs(case: Case, dtype: torch.dtype = torch.float64, sequences: int | None = None) -> tuple[Named, Named]:
    """What a call is given, and states to begin with, for the sequences of the batch or as many packed ones."""
    rule, draw = case.rule, torch.Generator().manual_seed(case.seed)
    given = {}
    for each in tensors(rule):
        leading = (case.heads,) if each.per == HEAD else (case.batch, case.tokens, case.heads)
        given[each.name] = _values(each.name, (*leading, *(case.sizes[axis] for axis in each.axes)), rule, draw)
    if rule.link == SOLVE:
        given["target"] = given["k"].clone()
    count = case.batch if sequences is None else sequences
    initial = {}
    for name, axes in states(rule).items():
        shape = (count, case.heads, *(case.sizes[axis] for axis in axes))
        initial[name] = _values(name, shape, rule, draw)
    if rule.link == SOLVE:
        initial["S_k"] = initial["S_k"] @ initial["S_k"].mT
    return tuple({name: x.to(dtype) for name, x in each.items()} for each in (given, initial))


def _values(name: str, shape: tuple[int, ...], rule: Rule, draw: torch.Generator) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64, generator=draw)
    if name == "log_decay":
        return logsigmoid(x)
    if name in ("step_size", "reader_step", "momentum", "window_weight"):
        return torch.sigmoid(x) * 0.8
    if name == "regulariser":
        return 1 + x**2
    if rule.normaliser != "none" and name in ("q", "k", "probe", "n"):
        return 0.1 + x.abs()
    return x * (0.5 if name.startswith("erase") else 0.9)


@st.composite
def rules(draw: st.DrawFn, **fixed: object) -> Rule:
    """Legal rules of all kinds; `fixed` fields are as given."""
    return random_rule(lambda options: draw(st.sampled_from(options)), **fixed)


def random_rule(choose: Callable[[Sequence[Any]], Any], **fixed: object) -> Rule:
    """A legal rule whose fields are chosen from sequences by `choose`; `fixed` ones are as given."""
    if not fixed and choose(range(10)) == 0:
        return Rule(
            phi="hebbian",
            link=SOLVE,
            out=choose(MAPS),
            decay=choose(("none", "scalar")),
            step_size=choose(("head", "token")),
            read=choose(CHOICES["read"]),
        )
    fields: dict[str, object] = {name: choose(choices) for name, choices in CHOICES.items()}
    fields |= {"phi": choose(MAPS + LOSSES), "phi_eps": 1e-3}
    fields |= {name: choose(MAPS) for name in ("link", "out")}
    fields |= {"view": choose(["identity", "identity", *MAPS]), "window": choose((1, 1, 3))}
    if fields["step_size"] == "reader_writer" and choose((False, True)):
        fields |= {"decay": "none", "momentum": False, "window": 1, "view": "identity"}
    return legal({**fields, **fixed})


def legal(fields: dict[str, object]) -> Rule:
    """The rule of the fields without those that it is refused for."""
    fields = dict(fields)
    while True:
        try:
            return Rule(**fields)
        except RuleError as error:
            # What 'reader_writer' needs may be no default, so that it goes where leaving out the field did not help.
            fields.pop(error.field if error.field in fields else "step_size")


@st.composite
def cases(draw: st.DrawFn, *, chunks: tuple[int, ...] = CHUNKS, tokens: int = 8, **fixed: object) -> Case:
    """Rules with sizes and chunks; z is taken at a decayed memory in chunks of one token only."""
    rule, chunk = draw(rules(**fixed)), draw(st.sampled_from(chunks))
    if chunk > 1 and rule.decay_first:
        rule = replace(rule, decay_first=False)
    sizes = {name: draw(st.integers(1, 5)) for name in ("dim_k", "dim_v", "slots")}
    return Case(
        rule,
        chunk,
        batch=draw(st.integers(1, 2)),
        tokens=draw(st.integers(1, tokens)),
        heads=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 2**16)),
        **sizes,
    )
