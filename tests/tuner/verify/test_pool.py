"""Candidates whose states lie in a pool: right ones pass, and each way to move a slot wrongly is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tuner.verify.check import check
from tuning_db import Outcome

SPEC = Spec(Rule(step_size="token"), Problem("memory_pool", 1, 1, 1, 8, 12, 5, chunk=4))


def right() -> CompiledOperator:
    return build(SPEC, replace(default("tvm", SPEC, cpu()), threads=1), cpu())


@dataclass(frozen=True)
class Wrong:
    """The kernel, with what it is given or has written changed."""

    kernel: Any
    before: Callable[[dict[str, Any]], object] | None = None
    after: Callable[[dict[str, Any]], object] | None = None

    def __call__(self, programs: int, *arguments: Any) -> None:
        names = [each for each, _ in right().steps[0].arguments]
        named = dict(zip(names, arguments, strict=True))
        held = {name: x.clone() for name, x in named.items() if isinstance(x, torch.Tensor)}
        if self.before is not None:
            self.before(named)
        self.kernel(programs, *named.values())
        if self.after is not None:
            self.after(named | {"held": held})


def test_the_kernel_is_right():
    assert check(right(), SPEC).outcome is Outcome.ok


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda named: named.update(positions=named["positions"] + named["positions"].eq(0).int() * 4), None),
        (lambda named: named.update(positions=named["positions"] // 4 * 4), None),
        (lambda named: named.update(state_indices=named["state_indices"].flip(0)), None),
        (None, lambda named: named["S_v"].copy_(named["held"]["S_v"])),
        (None, lambda named: named["S0_k"].copy_(named["held"]["S0_k"])),
        (None, lambda named: named["S_k"][0].zero_()),
    ],
    ids=[
        "a fresh row is not cleared",
        "every row starts a chunk",
        "rows have each other's slots",
        "a state is not written",
        "the start of a chunk is not kept",
        "a slot of nobody is written",
    ],
)
def test_a_wrong_one_is_found(before, after):
    operator = right()
    wrong = replace(operator, kernels=(Wrong(operator.kernels[0], before, after),))
    assert check(wrong, SPEC).outcome is Outcome.wrong_answer
