"""Checks that must read the data: always for offsets on the CPU, for the rest under TRELLIS_OPS_CHECK_VALUES=1.

Reading a tensor stalls a GPU, so nothing here runs on one unless the environment variable asks for it.
"""

from __future__ import annotations

import itertools
import os

import torch
from torch import Tensor

from codegen.errors import SequenceError, ValueCheckError

VARIABLE = "TRELLIS_OPS_CHECK_VALUES"


def enabled() -> bool:
    """Whether TRELLIS_OPS_CHECK_VALUES asks for the checks."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def check_offsets(cu_seqlens: Tensor, tokens: int, *, stall: bool) -> None:
    """Refuse offsets that do not start at 0, do not end at `tokens`, or fall; a sequence may be empty.

    Offsets on a GPU are read only if `stall` allows to wait for it.

    Raises:
        SequenceError: with the offending offset.
    """
    if cu_seqlens.device.type != "cpu" and not stall:
        return
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0:
        raise SequenceError(problem="does not start at 0", value=offsets[0])
    if offsets[-1] != tokens:
        raise SequenceError(problem=f"does not end at T = {tokens}", value=offsets[-1])
    for first, last in itertools.pairwise(offsets):
        if last < first:
            raise SequenceError(problem="holds a negative sequence", value=f"{first} to {last}")


def check_values(log_decay: Tensor, step_size: Tensor, **tensors: Tensor | None) -> None:
    """Refuse NaN anywhere, a positive log_decay and a negative step_size.

    Raises:
        ValueCheckError: with the first offending index and value.
    """
    for name, tensor in {**tensors, "log_decay": log_decay, "step_size": step_size}.items():
        if tensor is not None:
            _refuse(name, tensor, torch.isnan(tensor), "holds NaN")
    _refuse("log_decay", log_decay, log_decay > 0, "is positive (beta = exp(log_decay) must be at most 1)")
    _refuse("step_size", step_size, step_size < 0, "is negative (the step size must be at least 0)")


def check_positive(name: str, tensor: Tensor) -> None:
    """Refuse what is not above 0.

    Raises:
        ValueCheckError: with the first offending index and value.
    """
    _refuse(name, tensor, ~(tensor > 0), "is not positive")


def _refuse(name: str, tensor: Tensor, wrong: Tensor, problem: str) -> None:
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueCheckError(name=name, problem=problem, index=index, value=float(tensor[index]))
