"""Programs taken apart into contractions, and planned as sweeps over matrices, for every named rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from codegen import rules
from codegen.maps import registry
from codegen.recurrence.contractions import taken_apart
from codegen.recurrence.emit.pytorch import source
from codegen.recurrence.of_rule import token_program
from codegen.recurrence.program import Program, Statement, Sum, summed
from codegen.recurrence.reverse import reverse_program
from codegen.recurrence.sweeps import Plan, Sweep, planned
from codegen.rule import Rule

NAMED = {name: each.rule for name, each in rules.NAMED.items()} | {
    "window_of_two_passes": Rule(decay="slot", momentum=True, window=3),
    "through_views": Rule(view="softmax", view_gradient=True, read="before"),
}
SIZES = {"window": 2, "slots": 3, "dim_v": 4, "dim_k": 3}


def programs(rule: Rule) -> Iterator[Program]:
    for chunked in (False, True):
        yield token_program(rule, chunked)
        yield reverse_program(rule, chunked, True)


def outputs(program: Program, rule: Rule, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    found = {"torch": torch}
    exec(source(program, rule), found)
    return found["token"](*(given[name] for name in program.given))


@pytest.mark.parametrize("rule", NAMED.values(), ids=NAMED)
def test_what_is_taken_apart_has_the_same_values(rule):
    for program in programs(rule):
        draw = torch.Generator().manual_seed(0)
        shapes = {name: [2, *(SIZES[axis] for axis in program.axes[name])] for name in program.given}
        given = {name: torch.rand(shape, dtype=torch.float64, generator=draw) for name, shape in shapes.items()}
        apart = taken_apart(program)
        assert set(apart.given) <= set(program.given)
        for x, y in zip(outputs(apart, rule, given), outputs(program, rule, given), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("rule", NAMED.values(), ids=NAMED)
def test_sums_are_contractions_or_are_over_nothing(rule):
    for program in programs(rule):
        apart = taken_apart(program)
        for each in apart.statements:
            terms = each.terms if isinstance(each, Sum) else ()
            contracted = [summed(term, each.outputs[0], apart.axes) not in ((), ("window",)) for term in terms]
            assert not any(contracted) or len(terms) == 1


@pytest.mark.parametrize("rule", NAMED.values(), ids=NAMED)
def test_a_state_is_overwritten_after_all_that_reads_it(rule):
    for program in programs(rule):
        plan = planned(program)
        written: dict[str, str] = {}
        for each in statements(plan):
            for name in each.inputs:
                root = plan.stored.get(name) or name
                assert written.get(root, name) == name, (each, written)
            written |= {root: name for name in each.outputs if (root := plan.stored.get(name)) is not None}
        made = {name for each in statements(plan) for name in each.outputs}
        assert set(plan.moved.values()) <= made | set(plan.given)


def statements(plan: Plan) -> list[Statement]:
    return [each for step in plan.steps for each in (step.statements if isinstance(step, Sweep) else (step,))]


@pytest.mark.parametrize(
    ("name", "sweeps"), [("linear", 1), ("gated_deltanet", 2), ("kda", 2), ("rwkv7", 2), ("titans", 2), ("trellis", 4)]
)
def test_states_are_swept_as_few_times_as_can_be(name, sweeps):
    plan = planned(token_program(NAMED[name], False))
    assert sum(isinstance(step, Sweep) for step in plan.steps) == sweeps


def test_a_user_s_loss_shares_the_sweep_of_the_write():
    made = registry.define_loss("half_square", lambda z, a: 0.5 * (z - a) ** 2)
    plan = planned(token_program(Rule(phi=str(made), passes=1), False))
    assert [len(step.statements) for step in plan.steps if isinstance(step, Sweep)] == [1, 2]
