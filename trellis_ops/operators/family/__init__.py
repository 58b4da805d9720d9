"""Any rule as torch.library sees it: tensors and states as lists in the order of the record, which is a text."""

from __future__ import annotations

from trellis_ops.operators.family.given import rule_of
from trellis_ops.operators.family.one_token import run_step, step
from trellis_ops.operators.family.sequences import attention, check_attention, eager_attention, run_attention

__all__ = [
    "attention",
    "check_attention",
    "eager_attention",
    "rule_of",
    "run_attention",
    "run_step",
    "step",
]
