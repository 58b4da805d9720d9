"""What a call of any rule gives: lists in the order of the record, which is a text."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.recurrence.tensors import tensors
from codegen.rule import Rule
from codegen.rule_text import rule_of_text
from trellis_ops.calls import values


@functools.lru_cache(maxsize=1024)
def rule_of(text: str) -> Rule:
    """The rule of a text that was made of one."""
    return rule_of_text(text)


def parted(flat: Sequence[Tensor], counts: tuple[int, ...]) -> list[list[Tensor]]:
    """Lists that lie one after the other, each of so many tensors."""
    waiting = iter(flat)
    return [list(itertools.islice(waiting, count)) for count in counts]


def check_values(rule: Rule, given: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Refuse what `values.check_values` refuses among the tensors of a call, and among other states."""
    named = {each.name: x for each, x in zip(tensors(rule), given, strict=True)}
    named |= {f"state {place}": x for place, x in enumerate(others)}
    log_decay, step_size = (named.pop(name, torch.zeros(())) for name in ("log_decay", "step_size"))
    values.check_values(log_decay, step_size, **named)
    if "regulariser" in named:
        values.check_positive("regulariser", named["regulariser"])
