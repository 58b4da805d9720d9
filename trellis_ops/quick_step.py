"""A decode step whose kernel checks the arguments itself, so that nine tensors are not looked at in Python.

A token of one layer takes a kernel microseconds, as many as reading shapes, types, devices and strides in Python does.
TVM's kernels read them again in machine code, and refuse what is not as their spec says before they write anything.
So once a call has gone the long way, calls alike go straight to its kernel, and one that the kernel refuses goes the
long way again, where it is either refused with a reason or made contiguous.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from trellis_ops.plan import MOST_PLANS, QUICK_PLANS, Plan

# How TVM refuses: a size or a stride, a type, a device that it knows nothing of.
_REFUSALS = (ValueError, TypeError, RuntimeError)


def key_of(tensors: tuple[Tensor | None, ...], settings: tuple[Hashable, ...], implementation: str | None) -> Hashable:
    """What calls alike have in common: all that chooses a kernel, and what kernels do not compare; None of bad input.

    Args:
        tensors: q, k, v, alpha, log_beta, gamma, S_k, S_v, G_k, G_v, as `operators.run_step` takes them.
        settings, implementation: those that a plan is made with.
    """
    q, _, v, _, _, gamma, s_k, _, g_k, _ = tensors
    if q is None or v is None or gamma is None or s_k is None:
        return None
    shapes = (q.shape, v.shape, gamma.ndim, s_k.shape)
    return (shapes, q.dtype, q.is_cpu, g_k is None, settings, implementation, torch.get_num_threads())


def step(key: Hashable, v: Tensor, *tensors: Tensor) -> Tensor | None:
    """y `[B, H, D_v]`, the states moved in place; None, and nothing written, if the call has to go the long way.

    Args:
        key: of the call.
        v: is what y is like.
        tensors: q, k, v, alpha, log_beta, gamma, S_k, S_v, and where the caller keeps them apart G_k, G_v.
    """
    found = QUICK_PLANS.get(key)
    if found is None or found.program is None:
        return None
    y = torch.empty_like(v)
    try:
        found.program.kernels[0](y.shape[0] * y.shape[1], *tensors, found.sequences.cu_seqlens, y)
    except _REFUSALS:
        # Calls alike differ in what the kernel refuses. Trying it each time would cost more than it saves.
        QUICK_PLANS[key] = None
        return None
    return y


def remember(key: Hashable, plan: Plan) -> None:
    """Let calls like one that went the long way go straight to the kernel, unless one of them was refused there."""
    if key is None or plan.program is None or plan.checks_values or not plan.program.checks_arguments:
        return
    if len(QUICK_PLANS) >= MOST_PLANS:
        QUICK_PLANS.clear()
    QUICK_PLANS.setdefault(key, plan)
