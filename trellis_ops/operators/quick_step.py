"""A decode step whose kernel checks the arguments itself, so that nine tensors are not looked at in Python.

A token of one layer takes a kernel microseconds, as many as reading shapes, types, devices and strides in Python does.
TVM's kernels read them again in machine code, and refuse what is not as their spec says before they write anything.
So once a call has gone the long way, calls with its key go straight to its kernel. What the kernel refuses goes the
long way again, where it is refused with a reason, or made contiguous and its gates float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from trellis_ops.dispatch import forced_schedule
from trellis_ops.operators.plan import Plan, keep_quick
from trellis_ops.operators.spans import Spans

_GATES = ("log_decay", "step_size")

# What `torch.autograd.graph.increment_version` calls; that function costs as much again.
_increment_version = torch._C._increment_version


def key_of(
    q: Tensor | None,
    v: Tensor | None,
    step_size: Tensor | None,
    S_k: Tensor | None,
    G_k: Tensor | None,
    G_v: Tensor | None,
    settings: tuple[Hashable, ...],
    implementation: str | None,
) -> Hashable | None:
    """All that chooses a kernel, and what kernels do not compare; None where no kernel checks, or a tensor is missing.

    None too where a schedule is forced.

    Args:
        q, v, step_size, S_k, G_k, G_v: of the call, as `operators.run_step` takes them.
        settings, implementation: those that a plan is made with.
    """
    if q is None or v is None or step_size is None or S_k is None or not q.is_cpu:
        return None
    if forced_schedule.current() is not None:
        return None
    shapes = (q.shape, v.shape, step_size.ndim, S_k.shape)
    return (shapes, q.dtype, G_k is None, G_v is None, settings, implementation, torch.get_num_threads())


def step(
    found: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor,
    S_v: Tensor,
    *starts: Tensor,
) -> Tensor | None:
    """y `[B, H, D_v]`, the states moved in place; None, and nothing written, if sizes, types or memory are refused.

    Args:
        found: what `plan.QUICK_PLANS` has for the call's key.
        starts: G_k and G_v, where the caller keeps them apart.

    Raises:
        RuntimeError: TVM knows nothing of a tensor's device or type, or the kernel has begun.
    """
    assert found.operator is not None and found.spans is not None
    y = torch.empty_like(v)
    try:
        # The kernel takes contiguous tensors only, so that where they begin tells whether they meet.
        begins: tuple[int, ...] = (
            S_k.data_ptr(),
            S_v.data_ptr(),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            target.data_ptr(),
            log_decay.data_ptr(),
            step_size.data_ptr(),
        )
        if starts:
            start_k, start_v = starts
            begins += (start_k.data_ptr(), start_v.data_ptr())
        if begins not in found.spans.known and not found.spans.lie_apart(begins):
            return None
        kernel = found.operator.kernels[0]
        kernel(found.heads, q, k, v, target, log_decay, step_size, S_k, S_v, *starts, found.offsets, y)
    except (AttributeError, ValueError, TypeError):
        return None
    except BaseException:
        _increment_version((S_k, S_v))
        raise
    _increment_version((S_k, S_v))
    return y


def remember(
    key: Hashable | None,
    found: Plan,
    refused: bool,
    inputs: Mapping[str, Tensor],
    states: tuple[Tensor, Tensor],
    starts: tuple[Tensor, Tensor] | None,
) -> None:
    """Let calls with this key go straight to the kernel, once one of them has gone the long way without an error.

    Args:
        key: its key.
        found: what it ran.
        refused: whether a kernel had refused it. Calls with its key may differ in strides and types, and to try each
            would cost more than it saves: from then on all of them go the long way.
        inputs: what it read, by name; a kernel takes float32 gates only.
        states, starts: what it moved, and G_k and G_v where the caller keeps them apart.
    """
    if key is None or found.operator is None or found.checks_values or not found.operator.checks_arguments:
        return
    gates = [name in _GATES for name in inputs]
    read = [x.numel() * (4 if gate else x.element_size()) for gate, x in zip(gates, inputs.values(), strict=True)]
    sizes = (*[x.nbytes for x in states], *read, *[x.nbytes for x in starts or ()])
    keep_quick(key, found, Spans(sizes, written=2), refused)
