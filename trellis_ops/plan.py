"""A call resolved once: the same shapes, types, devices, settings and threads find their program in one look-up."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor
from torch.autograd import forward_ad

from codegen.program import Program, Sequences
from trellis_ops import dispatch, launch, ranks, transforms, values
from trellis_ops.arguments import Request


@dataclass(frozen=True)
class Plan:
    """What a call runs.

    Attributes:
        program: compiled; None for the eager implementation.
        sequences: where the sequences of a batch lie; packed sequences have their own in every call. The chunks of a
            backward are what lies between the states that it keeps.
        checks_values: whether TRELLIS_OPS_CHECK_VALUES asked for it when the plan was made.
        heads: B x H, the programs of a decode step.
        state_bytes: of S_k and of S_v, contiguous and float32.
    """

    program: Program | None
    sequences: Sequences
    checks_values: bool
    heads: int
    state_bytes: tuple[int, int]


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
) -> Plan:
    """The plan for a call; `request` checks its tensors and settings, and is only called the first time.

    A backward has no program where there is no kernel, even if an implementation is forced: that is for the forward.

    Raises:
        TrellisError: the arguments are wrong, or a forced implementation cannot run them.
    """
    layout = tuple([None if t is None else _layout_of(t) for t in tensors])
    first = tensors[0]
    # Off the CPU, which device each is on matters too. A first that is None is for `request` to refuse.
    devices = None if first is None or first.is_cpu else tuple([None if t is None else t.device for t in tensors])
    key = (request, layout, devices, settings, implementation, torch.get_num_threads())
    found = _PLANS.get(key)
    if found is None:
        found = _resolve(request(*tensors, *settings), implementation)
        if len(_PLANS) >= MOST_PLANS:
            _PLANS.clear()
        _PLANS[key] = found
    return found


def _resolve(request: Request, implementation: str | None) -> Plan:
    problem, program = request.spec.problem, None
    if problem.direction == "forward" or dispatch.has_kernel(request, implementation):
        program = dispatch.program_of(ranks.resolution_of(request, implementation), request.spec)
    kept = problem.chunk if program is None or problem.direction == "forward" else program.segment_tokens
    sequences = launch.even_sequences(problem.batch, problem.tokens, kept, request.device)
    heads = problem.batch * problem.heads
    state_bytes = (4 * heads * problem.slots * problem.dim_k, 4 * heads * problem.slots * problem.dim_v)
    return Plan(program, sequences, values.enabled(), heads, state_bytes)


def forget() -> None:
    """Drop every plan and what was read of the tuning database: after tuning, or after changing the environment."""
    _PLANS.clear()
    QUICK_PLANS.clear()
    dispatch.store.cache_clear()


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
    return not wants_gradient(tensors) and (forward_ad._current_level < 0 or not transforms.has_tangent(tensors))


def wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd would have to record a call on these tensors."""
    return torch.is_grad_enabled() and any([getattr(t, "requires_grad", False) for t in tensors])
