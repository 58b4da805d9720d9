"""A call resolved once: the same shapes, types, devices and settings find their program in one dictionary look-up."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.program import Program
from trellis_ops import dispatch
from trellis_ops.arguments import Request


@dataclass(frozen=True)
class Plan:
    """What a call runs: a compiled program, or None for the eager implementation."""

    request: Request
    program: Program | None


_PLANS: dict[Hashable, Plan] = {}


def plan(
    operator: str,
    tensors: tuple[Tensor | None, ...],
    settings: tuple[Hashable, ...],
    implementation: str | None,
    request: Callable[[], Request],
) -> Plan:
    """The plan for a call; `request` checks its arguments and is only called the first time.

    A backward has no program where there is no kernel, even if an implementation is forced: that is for the forward.

    Raises:
        TrellisError: the arguments are wrong, or a forced implementation cannot run them.
    """
    signature = tuple([None if t is None else (t.shape, t.dtype, t.device) for t in tensors])
    key = (operator, signature, settings, implementation)
    found = _PLANS.get(key)
    if found is None:
        asked = request()
        optional = asked.spec.problem.direction != "forward"
        if optional and not dispatch.has_kernel(asked, implementation):
            found = Plan(asked, None)
        else:
            found = _resolve(asked, implementation)
        _PLANS[key] = found
    return found


def _resolve(request: Request, implementation: str | None) -> Plan:
    resolution = dispatch.resolve_request(request, implementation)
    return Plan(request, dispatch.program_of(resolution, request.spec))


def forget() -> None:
    """Drop every plan and what was read of the tuning database: after tuning, or after changing the environment."""
    _PLANS.clear()
    dispatch.store.cache_clear()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors needs nothing from torch's dispatcher.

    It needs the dispatcher when a gradient is wanted, when torch.compile traces, and when tensors are fake, wrapped by
    a function transform, or watched by a dispatch mode.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    differentiable = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, torch.nn.Parameter) or (differentiable and tensor.requires_grad):
            return False
    return torch._C._functorch.peek_interpreter_stack() is None
