"""A call resolved once: the same shapes, types, devices, settings and threads find their operator in one look-up."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from codegen.backends import held
from codegen.errors import ImplementationError
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from trellis_ops.calls import values
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import forced_schedule, glue, launch, memory_room, ranks, resolve, served
from trellis_ops.dispatch.memory_room import Needs
from trellis_ops.dispatch.reach import reach_of
from trellis_ops.operators import transforms
from trellis_ops.operators.spans import Spans
from trellis_ops.specs import recorded


@dataclass(frozen=True)
class Plan:
    """What a call runs.

    Attributes:
        operator: compiled; None for the eager implementation.
        sequences: where the sequences of a batch lie; packed sequences have their own in every call. The chunks of a
            backward are what lies between the states that it keeps.
        checks_values: whether TRELLIS_OPS_CHECK_VALUES asked for it when the plan was made.
        chunk_tokens: how many tokens lie between the starts of two chunks of `sequences`.
        needs: what the call and its reverse pass allocate, if that is much; None if it is little.
        heads: B x H, the programs of a decode step.
        spans: of what a step moves and reads, as its kernel takes them.
        offsets: `sequences.cu_seqlens` as the only kernel of a step takes it with the least work.
    """

    operator: CompiledOperator | None
    sequences: Sequences
    checks_values: bool
    chunk_tokens: int
    needs: Needs | None
    heads: int
    spans: Spans | None = None
    offsets: Any = None


# Whether a tensor is on the CPU is looked up and compared faster than its device.
_layout_of = attrgetter("shape", "dtype", "is_cpu")

_PLANS: dict[Hashable, Plan] = {}

QUICK_PLANS: dict[Hashable, Plan | None] = {}
"""Those that `quick_step` finds by less than a whole layout; None where a kernel has refused such a call."""

# A server meets prompts of every length. Making a plan again costs less than a millisecond once its kernels are there.
MOST_PLANS = 4096
"""Of each kind; then they are made again."""


def plan(
    request: Callable[..., Request],
    tensors: tuple[Tensor | None, ...],
    settings: tuple[Hashable, ...],
    implementation: str | None,
    *,
    reverse: bool = False,
) -> Plan:
    """The plan for a call; `request` checks its tensors and settings, and is only called the first time.

    A backward has no operator where there is no kernel, even if an implementation is forced: that is for the forward.

    Args:
        request: makes a checked call of `tensors` and `settings`.
        tensors, settings, implementation: of the call.
        reverse: whether its reverse pass is to run now, not the call itself.

    Raises:
        TrellisError: the arguments are wrong, a forced implementation cannot run them, or memory is short.
    """
    layout = tuple([None if t is None else _layout_of(t) for t in tensors])
    first = tensors[0]
    # Off the CPU, which device each is on matters too. A first that is None is for `request` to refuse.
    devices = None if first is None or first.is_cpu else tuple([None if t is None else t.device for t in tensors])
    key = (request, layout, devices, settings, implementation, torch.get_num_threads(), forced_schedule.current())
    try:
        found = _PLANS.get(key)
    except TypeError:
        found = _refuse_settings(request, tensors, settings, implementation)
    if found is None:
        found = _resolve(request(*tensors, *settings), implementation, tensors, reverse)
        if len(_PLANS) >= MOST_PLANS:
            _PLANS.clear()
        _PLANS[key] = found
    if found.needs is not None:
        memory_room.require(found.needs, tensors, reverse=reverse)
    return found


def _refuse_settings(
    request: Callable[..., Request], tensors: tuple[Tensor | None, ...], settings: tuple[object, ...], name: object
) -> Plan:
    """Raise for settings that cannot be a part of a key, such as a list where a name belongs."""
    request(*tensors, *settings)
    raise ImplementationError(name=name, reason=f"no such implementation; choose one of {resolve.implementations()}")


def _resolve(request: Request, implementation: str | None, tensors: tuple[Tensor | None, ...], reverse: bool) -> Plan:
    resolution = ranks.resolution_of(request, implementation)
    reach, problem = reach_of(request, resolution.schedule), request.spec.problem
    if reach.needs is not None:
        # What is too large is refused before anything is compiled for it.
        memory_room.require(reach.needs, tensors, reverse=reverse)
    operator = served.operator_of(resolution, request.spec)
    schedule = None if operator is None else operator.schedule
    if operator is not None:
        recorded.record(request.spec, resolution.device.kind)
    if schedule != resolution.schedule:
        # What was resolved does not compile.
        reach = reach_of(request, schedule)
    sequences = launch.even_sequences(problem.batch, problem.tokens, reach.chunk_tokens, request.device)
    heads = problem.batch * problem.heads
    return Plan(operator, sequences, values.enabled(), reach.chunk_tokens, reach.needs, heads)


def forget() -> None:
    """Drop every plan and what was read of the tuning database: after tuning, or after changing the environment."""
    _PLANS.clear()
    QUICK_PLANS.clear()
    glue.forget()
    served.forget()


def keep_quick(key: Hashable, found: Plan, spans: Spans, refused: bool) -> None:
    """Put a plan into `QUICK_PLANS`, or that a kernel has refused a call of its key."""
    if len(QUICK_PLANS) >= MOST_PLANS:
        QUICK_PLANS.clear()
    if refused or found.operator is None:
        QUICK_PLANS[key] = None
        return
    (kernel,) = found.operator.kernels
    QUICK_PLANS.setdefault(key, replace(found, spans=spans, offsets=held(kernel, found.sequences.cu_seqlens)))


_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))


def is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a call on these tensors needs nothing from torch's dispatcher.

    It needs the dispatcher when a gradient is wanted, forward or reverse, when torch.compile traces, and when tensors
    are fake, wrapped by a function transform, or watched by a dispatch mode.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None or not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    if torch.is_grad_enabled():
        # Faster than `wants_gradient`, which takes what may be no tensor.
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return False
    return forward_ad._current_level < 0 or not transforms.has_tangent(tensors)


def wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd would have to record a call on these tensors."""
    return torch.is_grad_enabled() and any([getattr(t, "requires_grad", False) for t in tensors])
