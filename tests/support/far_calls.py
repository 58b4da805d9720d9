"""Every tensor of an operator's kernels, for one sequence and head, and where it lies behind others of its axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from codegen.kernels.arguments import INT
from codegen.kernels.buffers import length
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.pool.arguments import CAPACITY, ROWS
from codegen.kernels.signatures import dtype_of
from codegen.limits.extent import Extent
from tests.support.far_memory import far

Tensors = dict[str, Tensor]
SLOT, POSITION = ROWS


def axes_of(compiled: CompiledOperator) -> dict[str, tuple[str, ...]]:
    """The axes of every argument of every kernel, by the name of its buffer."""
    return {name: argument.axes for step in compiled.steps for name, argument in step.arguments}


def tensors_of(compiled: CompiledOperator, tokens: int, position: int = 0) -> Tensors:
    """Every tensor of every kernel; of a pool, whose row has seen `position` tokens, with one slot."""
    schedule, chunks = compiled.schedule, -(-tokens // compiled.chunk_tokens)
    extent, generator, found = Extent(tokens, 1, 1, chunks, chunks), torch.Generator().manual_seed(0), {}
    for step in compiled.steps:
        for name, argument in step.arguments:
            if not argument.is_tensor or argument.axes == ("offsets",):
                continue
            if name not in found:
                shape = [length(axis, step.spec, schedule, extent) for axis in argument.axes]
                x = torch.randn(shape, generator=generator) / compiled.spec.problem.dim_k**0.5
                x = -x.abs() if name == "log_decay" else x
                found[name] = x.to(getattr(torch, dtype_of(argument, step.spec, schedule)))
                if argument.type == INT:
                    found[name].fill_(position if name == POSITION else 0)
    return found


def behind(compiled: CompiledOperator, tensors: Tensors, rows: Mapping[str, int]) -> Tensors:
    """The tensors, each behind so many rows of its first axis; a row of a pool has its slot there."""
    axes, distant = axes_of(compiled), {}
    for name, x in tensors.items():
        count = rows.get(axes[name][0], 0)
        distant[name] = far(x, count) if count else x.clone()
        if name == SLOT:
            distant[name][count:] += rows[CAPACITY]
    return distant


def that_differ(distant: Tensors, near: Tensors) -> list[str]:
    """The tensors whose last rows are not those of the same call nearby."""
    return [name for name, x in near.items() if name != SLOT and not torch.equal(distant[name][-len(x) :], x)]
