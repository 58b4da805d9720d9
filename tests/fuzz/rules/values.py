"""The tensors of a case of any rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, Given, states, tensors
from codegen.rule import SOLVE, Rule
from codegen.spec import CHUNKED_STEP, POOL_OPERATOR
from tests.fuzz.cases import Case
from tests.fuzz.layouts import LAYOUTS
from tests.fuzz.rules.drawn import STEPS

Named = dict[str, Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_KEYS = ("q", "k", "probe", "erase_a", "erase_b")


def moved_states(case: Case) -> tuple[str, ...]:
    """The tensors that a call moves in place: states of a step, and its sums since the start of the chunk."""
    problem, rule = case.kernel.spec.problem, case.kernel.spec.rule
    if problem.operator not in STEPS:
        return ()
    return (*states(rule), *(name for name in used_chunk_states(rule, problem.operator == CHUNKED_STEP) if "A" in name))


def values(case: Case, generator: torch.Generator) -> Named:
    """All tensors by name; where link is "solve" no target, as that is k."""
    problem, rule = case.kernel.spec.problem, case.kernel.spec.rule
    rows = (1, sum(case.lengths)) if case.packed else (len(case.lengths), case.lengths[0])
    rows = rows[:1] if problem.operator in STEPS else rows
    sizes = {name: getattr(problem, name) for name in ("dim_k", "dim_v", "slots")} | {"window": rule.window - 1}
    made = {}
    for each in tensors(rule):
        if each.name == "target" and rule.link == SOLVE:
            continue
        shape = (case.heads,) if each.per == HEAD else (*rows, case.heads)
        x = _value(case, each, (*shape, *(sizes[axis] for axis in each.axes)), generator)
        made[each.name] = x.to(_type(case, each))
    if case.state is not None:
        kept = used_chunk_states(rule, problem.operator == CHUNKED_STEP)
        count = 1 if problem.operator == POOL_OPERATOR else len(case.lengths)
        for name, axes in (states(rule) | kept).items():
            made[name] = _state(rule, name, (count, case.heads, *(sizes[axis] for axis in axes)), case.state, generator)
    return made


def laid_out(case: Case, made: Named) -> Named:
    """The same in the layouts of the case; what solves a system stays a matrix of one."""
    rule = case.kernel.spec.rule
    given = {each.name for each in tensors(rule)}
    of_given, of_states = case.layouts[:6], case.layouts[6:]
    found = {}
    for place, (name, x) in enumerate(made.items()):
        layouts = of_given if name in given else of_states
        systems = rule.link == SOLVE and name in ("S_k", "S0_k")
        found[name] = x if systems else LAYOUTS[layouts[place % len(layouts)]](x)
    return found


def _type(case: Case, each: Given) -> torch.dtype:
    if each.is_input:
        return DTYPES[case.kernel.spec.problem.dtype]
    return DTYPES[case.gate_type] if each.name in ("log_decay", "step_size") else torch.float32


def _value(case: Case, each: Given, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    rule, (of_q, of_w, of_target) = case.kernel.spec.rule, case.scales
    x = torch.randn(shape, generator=generator)
    if each.name in ("log_decay", "step_size"):
        values = torch.tensor(case.log_decays if each.name == "log_decay" else case.step_sizes, dtype=torch.float32)
        return values[torch.randint(len(values), shape, generator=generator)]
    if each.name in _KEYS:
        x = x.abs() if rule.normaliser != "none" and each.name in ("q", "k", "probe") else x
        x = F.normalize(x, dim=-1)
        scales = {"q": of_q, "erase_a": -1.0, "erase_b": 1.0}
        return scales.get(each.name, of_w) * (x.abs() if each.name.startswith("erase") else x)
    if each.name in ("reader_step", "momentum", "window_weight"):
        return 0.8 * x.sigmoid()
    if each.name == "regulariser":
        return 1 + x**2
    return {"target": of_target, "v": of_w}.get(each.name, 1.0) * x


def _state(rule: Rule, name: str, shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    if name in ("n", "n0"):
        return scale * (0.1 + x.abs())
    if rule.link == SOLVE and name in ("S_k", "S0_k"):
        x = x @ x.mT
    return scale * x
