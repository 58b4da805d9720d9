"""A case whose sequences take turns on the slots of a pool."""

from __future__ import annotations

import dataclasses

import torch

from codegen.recurrence.tensors import states
from codegen.rule import SOLVE
from tests.fuzz.cases import Case
from tests.fuzz.rules.values import Named
from tests.support.pooled import serving, turns
from tests.trellis_ops.family import cases as family


def served(case: Case, t: Named) -> Named:
    """y of every sequence, and its states in its slot, after calls that take all of them to their ends."""
    rule, problem = case.kernel.spec.rule, case.kernel.spec.problem
    sizes = {name: getattr(problem, name) for name in ("chunk", "dim_k", "dim_v", "slots")}
    count = len(case.lengths)
    made = family.Case(rule, batch=count, tokens=case.lengths[0], heads=case.heads, seed=case.seed, **sizes)
    given = {name: x for name, x in t.items() if name not in states(rule)}
    if rule.link == SOLVE:
        given["target"] = t["k"]
    first = {name: t[name][0] for name in states(rule) if name in t}
    slots = tuple(range(count, 0, -1))
    pool = dataclasses.replace(serving(made, slots, count + 2), given=given, first=first)
    for number, turn in enumerate(turns(made, case.seed)):
        beside = pool.call(turn, case.kernel.backend, from_zero=case.state is None, skipped=number % 2)
        assert not beside.any(), "y of a row that is skipped is not zero"
    y = torch.stack([torch.cat(pool.y[n]) for n in range(count)])
    return {"y": y} | dict(zip(states(rule), (x[list(slots)] for x in pool.state), strict=True))
