"""Rules with a kernel of their own: named ones, and random legal records."""

from __future__ import annotations

import random

from codegen.rule import SOLVE, Rule
from codegen.rules import NAMED
from codegen.spec import CHUNKED_STEP, FAMILY_OPERATORS, POOL_OPERATOR, Problem
from tests.trellis_ops.family.cases import random_rule

KINDS = (
    ("memory_attention", "forward"),
    ("memory_attention", "backward"),
    ("memory_attention", "backward_first_order"),
    ("memory_step", "forward"),
    (CHUNKED_STEP, "forward"),
    (POOL_OPERATOR, "forward"),
)
"""Operators and directions that have kernels for any rule."""

MOST_TOKENS = 40
"""Of all sequences together: the oracle walks them one by one."""

STEPS = ("memory_step", CHUNKED_STEP)


def is_of_rule(problem: Problem) -> bool:
    """Whether the operator takes a rule."""
    return problem.operator in FAMILY_OPERATORS


def draw_rule(drawn: random.Random, operator: str) -> Rule:
    """A named rule or a random one, but none that `trellis_attention` computes, or that excludes the operator."""
    while True:
        named = drawn.random() < 0.4
        rule = drawn.choice([*NAMED.values()]).rule if named else random_rule(drawn.choice)
        if not rule.is_trellis and not (rule.decay_first and operator == CHUNKED_STEP):
            return rule


def fitted(rule: Rule, problem: dict[str, int]) -> dict[str, int]:
    """The sizes that a rule leaves free, and what it makes of the others."""
    problem = dict(problem)
    if rule.decay_first:
        problem["chunk"] = 1
    if rule.link == SOLVE:
        problem["slots"] = problem["dim_k"]
    if rule.passes == 1:
        problem["slots"] = problem["dim_v"]
    return problem
