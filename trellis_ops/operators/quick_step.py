"""A decode step whose kernel checks the arguments itself, so that nine tensors are not looked at in Python.

A token of one layer takes a kernel microseconds, as many as reading shapes, types, devices and strides in Python does.
TVM's kernels read them again in machine code, and refuse what is not as their spec says before they write anything.
So once a call has gone the long way, calls with its key go straight to its kernel. What the kernel refuses goes the
long way again, where it is refused with a reason, or made contiguous and its gates float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trellis_ops.dispatch import forced_schedule
from trellis_ops.operators.plan import Plan, keep_quick

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
    assert found.operator is not None
    y = torch.empty_like(v)
    try:
        # The kernel takes contiguous states only, so that where they begin tells whether they meet.
        (bytes_k, bytes_v), at_k, at_v = found.state_bytes, S_k.data_ptr(), S_v.data_ptr()
        if -bytes_v < at_v - at_k < bytes_k:
            return None
        # Mostly no input lies near the states, which one comparison of each shows.
        least, most = (at_k, at_v + bytes_v) if at_k < at_v else (at_v, at_k + bytes_k)
        least -= found.most_input_bytes
        if (
            least < q.data_ptr() < most
            or least < k.data_ptr() < most
            or least < v.data_ptr() < most
            or least < target.data_ptr() < most
            or least < log_decay.data_ptr() < most
            or least < step_size.data_ptr() < most
        ) and _lies_in(found, (q, k, v, target, log_decay, step_size), ((at_k, bytes_k), (at_v, bytes_v))):
            return None
        if starts:
            start_k, start_v = [start.data_ptr() for start in starts]
            if (
                -bytes_k < start_k - at_k < bytes_k
                or -bytes_v < start_v - at_v < bytes_v
                or -bytes_k < start_k - at_v < bytes_v
                or -bytes_v < start_v - at_k < bytes_k
            ):
                return None
        sequences = found.sequences.cu_seqlens
        (kernel,) = found.operator.kernels
        kernel(found.heads, q, k, v, target, log_decay, step_size, S_k, S_v, *starts, sequences, y)
    except (AttributeError, ValueError, TypeError):
        return None
    except BaseException:
        _increment_version((S_k, S_v))
        raise
    _increment_version((S_k, S_v))
    return y


def _lies_in(found: Plan, inputs: tuple[Tensor, ...], states: tuple[tuple[int, int], ...]) -> bool:
    """Whether an input shares memory with a state, of which there is where it begins and how many bytes it takes."""
    return any(
        begin - size < tensor.data_ptr() < begin + taken
        for tensor, size in zip(inputs, found.input_bytes, strict=True)
        for begin, taken in states
    )


def remember(key: Hashable | None, found: Plan, refused: bool, inputs: Mapping[str, Tensor]) -> None:
    """Let calls with this key go straight to the kernel, once one of them has gone the long way without an error.

    Args:
        key: its key.
        found: what it ran.
        refused: whether a kernel had refused it. Calls with its key may differ in strides and types, and to try each
            would cost more than it saves: from then on all of them go the long way.
        inputs: what it read, by name; a kernel takes float32 gates only.
    """
    if key is None or found.operator is None or found.checks_values or not found.operator.checks_arguments:
        return
    sizes = [4 if name in _GATES else tensor.element_size() for name, tensor in inputs.items()]
    input_bytes = tuple(size * tensor.numel() for size, tensor in zip(sizes, inputs.values(), strict=True))
    keep_quick(key, replace(found, input_bytes=input_bytes, most_input_bytes=max(input_bytes)), refused)
