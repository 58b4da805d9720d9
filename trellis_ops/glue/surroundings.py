"""Where kernels may stand for the modules of a model: only if nobody could tell the difference."""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch._C._functorch import get_interpreter_stack
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

from trellis_ops.calls import values
from trellis_ops.dispatch import forced_schedule
from trellis_ops.dispatch.layer import serves
from trellis_ops.dispatch.resolve import forced_implementation

TYPES = (torch.float32, torch.bfloat16)
"""Of what kernels stand for modules of."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Where a module keeps what is called beside its forward."""

_ALL_HOOKS = (*HOOKS, "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{each}" for each in _ALL_HOOKS)


class PlainNorm(Protocol):
    """What is read of a norm."""

    weight: nn.Parameter
    eps: float


_PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


def why_not_call(kind: str = "cpu") -> str | None:
    """Why what surrounds a call on a device of a kind has to see the modules at work, in one sentence; None if not."""
    if torch.compiler.is_compiling():
        return "torch.compile traces the call"
    if torch.is_autocast_enabled(kind):
        return "autocast is on"
    if values.enabled():
        return f"{values.VARIABLE} asks for checks of values between the operators"
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    if modes or get_interpreter_stack() is not None:
        return "a mode or a function transform of torch looks at every operation"
    if has_hooks_on_all():
        return "there are hooks on all modules"
    return None


def has_hooks_on_all() -> bool:
    """Whether torch calls something beside every module."""
    return any([getattr(module_hooks, name) for name in _GLOBAL_HOOKS])


def is_plain_norm(norm: nn.Module) -> TypeGuard[PlainNorm]:
    """Whether a norm is torch's RMSNorm, with a weight and an epsilon, without hooks and a forward of its own."""
    if (
        torch.compiler.is_compiling()
        or type(norm) is not nn.RMSNorm
        or norm.weight is None
        or norm.eps is None
        or "forward" in vars(norm)
    ):
        return False
    return not any([getattr(norm, name) for name in _ALL_HOOKS])


def makes_anew(linear: nn.Module) -> bool:
    """Whether what a linear map returns is nobody else's: torch's own map, without hooks and a forward of its own."""
    plain = type(linear) is nn.Linear and "forward" not in vars(linear)
    return plain and not any([getattr(linear, name) for name in _ALL_HOOKS])


def replaces_modules(*tensors: Tensor) -> bool:
    """Whether the operators of `trellis_ops.glue` stand for modules whose inputs and parameters these tensors are.

    All are plain tensors of one type, float32 or bfloat16, on a CPU. Nothing around the call needs to see more:
    neither what `why_not_call` names nor forward mode, and no schedule is forced for every call.
    """
    if torch.compiler.is_compiling():
        return False
    first, *others = tensors
    if first.dtype not in TYPES or not first.is_cpu:
        return False
    if any([x.dtype != first.dtype or not x.is_cpu for x in others]) or not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    forced = forced_schedule.current()
    name = forced_implementation(None)
    if (name is not None and not serves("memory_inputs", first.device)) or (forced and forced.operator is None):
        return False
    return forward_ad._current_level < 0 and why_not_call() is None
