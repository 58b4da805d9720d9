"""Results without data: what torch.compile traces with, made from the axes that the signatures declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from codegen.kernels.arguments import INPUT
from codegen.kernels.signatures import operator_arguments
from trellis_ops.calls.arguments import Request
from trellis_ops.operators.schemas import Operator

Size = int | torch.SymInt


def register(registered: CustomOpDef, operator: Operator, request: Callable[..., Request]) -> None:
    """Give `registered` its fake implementation.

    Args:
        registered: what torch has of `operator`.
        operator: its declaration.
        request: checks a call's tensors and settings, by name.
    """

    @registered.register_fake
    def _(*arguments: Any) -> Any:
        call = operator.call_of(arguments)
        found = results(operator, request(**call.tensors, **call.settings), call.tensors)
        return found if len(found) > 1 else next(iter(found))


def results(
    operator: Operator, request: Request, tensors: dict[str, Any], kept: Size | None = None
) -> tuple[Tensor, ...]:
    """The results of a checked call, and after them what it keeps.

    Args:
        operator: which is called.
        request: its checked call.
        tensors: of the call.
        kept: how many states it keeps.
    """
    declared = {argument.name: argument for argument in operator_arguments(request.spec)}
    lengths = _lengths(operator, request, kept)
    like: Tensor = next(iter(tensors.values()))
    accumulated = torch.float64 if request.float64 else torch.float32
    made = []
    for name in operator.results + operator.kept:
        shape = [size for axis in declared[name].axes for size in lengths[axis]]
        made.append(like.new_empty(shape, dtype=like.dtype if declared[name].type == INPUT else accumulated))
    return tuple(made)


def _lengths(operator: Operator, request: Request, kept: Size | None) -> dict[str, tuple[Size, ...]]:
    """The sizes of every axis: tokens and chunks have those of their sequences before them, a step has no T."""
    problem = request.spec.problem
    batch, tokens, chunk = problem.batch, problem.tokens, problem.chunk
    return {
        "tokens": (batch,) if operator.moves_states else (batch, tokens),
        "chunks": (batch, (tokens + chunk - 1) // chunk) if kept is None else (kept,),
        "sequences": (batch if request.packed is None else request.packed,),
        "heads": (problem.heads,),
        "slots": (problem.slots,),
        "dim_k": (problem.dim_k,),
        "dim_v": (problem.dim_v,),
    }
