"""A decode step of any rule whose kernel checks the arguments itself, as `quick_step` is for TRELLIS."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from codegen.recurrence.tensors import tensors
from codegen.rule import Rule
from trellis_ops.dispatch import forced_schedule
from trellis_ops.operators.plan import Plan, keep_quick
from trellis_ops.operators.spans import Spans

_increment_version = torch._C._increment_version


def key_of(
    given: Sequence[Tensor], state: Sequence[Tensor], starts: Sequence[Tensor], rule: str, implementation: str | None
) -> Hashable | None:
    """All that chooses a kernel, and what kernels do not compare.

    None off the CPU, where a list is no rule's, and where a schedule is forced.
    """
    if len(given) < 3 or not state or not given[0].is_cpu or forced_schedule.current() is not None:
        return None
    q, _, v, *_ = given
    counts = (len(given), len(state), len(starts))
    sizes = (q.shape, v.shape, state[0].shape, q.dtype)
    return ("rule", rule, implementation, counts, sizes, torch.get_num_threads())


def step(found: Plan, given: Sequence[Tensor], state: Sequence[Tensor], starts: Sequence[Tensor]) -> Tensor | None:
    """y `[B, H, D_v]`, the states moved in place; None, and nothing written, if sizes, types or memory are refused.

    Args:
        found: what `plan.QUICK_PLANS` has for the call's key.
        given, state, starts: of the call.

    Raises:
        RuntimeError: TVM knows nothing of a tensor's device or type, or the kernel has begun.
    """
    assert found.operator is not None and found.spans is not None
    # The kernel takes contiguous tensors only, so that where they begin tells whether they meet.
    begins = tuple([x.data_ptr() for x in (*state, *starts, *given)])
    if begins not in found.spans.known and not found.spans.lie_apart(begins):
        return None
    _, _, v, *_ = given
    y = torch.empty_like(v)
    (kernel,) = found.operator.kernels
    try:
        kernel(found.heads, *given, *state, *starts, found.offsets, y)
    except (AttributeError, ValueError, TypeError):
        return None
    except BaseException:
        _increment_version((*state, *starts))
        raise
    _increment_version((*state, *starts))
    return y


def remember(
    key: Hashable | None, found: Plan, refused: bool, rule: Rule, given: Sequence[Tensor], held: Sequence[Tensor]
) -> None:
    """Let calls with this key go straight to the kernel, once one of them has gone the long way without an error.

    Args:
        key: its key.
        found: what it ran.
        refused: whether it was refused the short way; then all calls with its key go the long way from now on.
        rule: of the call.
        given, held: what it read, and its states with those of the chunk's start; a kernel takes no other sizes.
    """
    operator = found.operator
    if key is None or operator is None or found.checks_values or found.needs is not None:
        return
    if not operator.checks_arguments or len(operator.kernels) != 1:
        return
    # A kernel takes gates as float32, whatever those were that a first call had made so.
    read = [x.nbytes if each.is_input else 4 * x.numel() for each, x in zip(tensors(rule), given, strict=True)]
    sizes = (*[x.nbytes for x in held], *read)
    keep_quick(key, found, Spans(sizes, written=len(held)), refused)
