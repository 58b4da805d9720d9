"""Any rule over sequences of tokens, and its gradient, as torch.library sees them.

The registered `memory_attention` returns y, the final states and, if `keeps`, what its gradient reads again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from codegen.kernels.rule_arguments import kept_states
from codegen.kernels.sequences import Sequences
from codegen.recurrence.tensors import states, tensors
from trellis_ops.calls import family_arguments, values
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import launch, launch_rule, resolve
from trellis_ops.eager import recurrence as eager
from trellis_ops.operators import autocast, batching, transforms
from trellis_ops.operators.family.given import check_values, parted, rule_of
from trellis_ops.operators.gradients import refused_gradient, with_autograd
from trellis_ops.operators.plan import Plan, plan

_SETTINGS = "str rule, int chunk_size, str outer_gradient, bool keeps, str? implementation"
_ATTENTION = f"(Tensor[] given, Tensor[] initial, Tensor? cu_seqlens, {_SETTINGS}) -> Tensor[]"
_BACKWARD = (
    "(Tensor[] cotangents, Tensor[] given, Tensor[] initial, Tensor? cu_seqlens, Tensor[] kept,"
    f" {_SETTINGS}) -> Tensor[]"
)


def attention_request(*arguments: Any) -> Request:
    """The checked call: given, initial, cu_seqlens, then their numbers and the settings."""
    *flat, cu_seqlens, counts, rule, chunk_size, outer_gradient, keeps = arguments
    given, initial = parted(flat, counts)
    made = rule_of(rule)
    return family_arguments.attention_request(made, given, initial, cu_seqlens, chunk_size, outer_gradient, keeps)


def _plan(
    given: Sequence[Tensor],
    initial: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    settings: tuple[Any, ...],
    implementation: str | None,
    reverse: bool = False,
) -> tuple[Plan, Sequences]:
    counts = (len(given), len(initial))
    flat = (*given, *initial, cu_seqlens)
    found = plan(attention_request, flat, (counts, *settings), implementation, reverse=reverse)
    sequences = found.sequences
    if cu_seqlens is not None:
        values.check_offsets(cu_seqlens, given[0].shape[1], stall=found.checks_values)
        sequences = launch.packed_sequences(cu_seqlens, given[0].shape[1], found.chunk_tokens)
    return found, sequences


def run_attention(
    given: list[Tensor],
    initial: list[Tensor],
    cu_seqlens: Tensor | None,
    rule: str,
    chunk_size: int,
    outer_gradient: str,
    keeps: bool,
    implementation: str | None,
) -> list[Tensor]:
    """y `[B, T, H, D_v]`, the final states, and what a backward kernel keeps, by whichever implementation is best."""
    settings = (rule, chunk_size, outer_gradient, keeps)
    found, sequences = _plan(given, initial, cu_seqlens, settings, implementation)
    if found.operator is None and keeps:
        # Without kernels of a backward, nothing is kept, and a forward alone may have some.
        return run_attention(given, initial, cu_seqlens, rule, chunk_size, outer_gradient, False, implementation)
    if found.checks_values:
        check_values(rule_of(rule), given, initial)
    if found.operator is not None:
        return launch_rule.attention(found.operator, given, initial, sequences)
    with autocast.off(given[0].device):
        results = eager_attention(given, initial, cu_seqlens, rule, chunk_size, outer_gradient)
    # As torch.compile was told that they are.
    return [x.contiguous() for x in results]


def check_attention(
    given: Sequence[Tensor],
    initial: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    rule: str,
    chunk_size: int,
    outer_gradient: str,
) -> None:
    """Refuse what `run_attention` refuses."""
    family_arguments.attention_request(rule_of(rule), given, initial, cu_seqlens, chunk_size, outer_gradient)
    if cu_seqlens is not None:
        values.check_offsets(cu_seqlens, given[0].shape[1], stall=False)


def eager_attention(
    given: Sequence[Tensor],
    initial: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    rule: str,
    chunk_size: int,
    outer_gradient: str,
) -> list[Tensor]:
    """y and the final states, by torch's own operators."""
    made = rule_of(rule)
    named = {each.name: x for each, x in zip(tensors(made), given, strict=True)}
    first = dict(zip(states(made), initial, strict=True)) if initial else None
    y, finals = eager.attention(
        made, named, first, chunk_size=chunk_size, cu_seqlens=cu_seqlens, outer_gradient=outer_gradient
    )
    return [y, *finals.values()]


attention = transforms.operator("trellis_ops::memory_attention", run_attention, "memory_attention", _ATTENTION)
batching.map_by_calls(attention)


@attention.register_fake
def _(
    given: list[Tensor],
    initial: list[Tensor],
    cu_seqlens: Tensor | None,
    rule: str,
    chunk_size: int,
    outer_gradient: str,
    keeps: bool,
    implementation: str | None,
) -> list[Tensor]:
    made, q = rule_of(rule), given[0]
    request = family_arguments.attention_request(made, given, initial, cu_seqlens, chunk_size, outer_gradient, keeps)
    problem = request.spec.problem
    sizes = {"dim_k": problem.dim_k, "dim_v": problem.dim_v, "slots": problem.slots, "window": made.window - 1}
    dtype = torch.float64 if request.float64 else torch.float32

    def of(count: Any, axes: tuple[str, ...]) -> Tensor:
        return q.new_empty((count, problem.heads, *(sizes[axis] for axis in axes)), dtype=dtype)

    sequences = problem.batch if request.packed is None else request.packed
    y = q.new_empty((*q.shape[:3], problem.dim_v))
    found = [y, *(of(sequences, axes) for axes in states(made).values())]
    if keeps and resolve.usual(request, implementation).schedule is not None:
        count = _count_kept(request, implementation)
        found += [of(count, axes) for axes in kept_states(request.spec).values()]
    return found


def _count_kept(request: Request, implementation: str | None) -> int | torch.SymInt:
    try:
        return torch.library.get_ctx().new_dynamic_size(min=0)
    except DynamicOutputShapeException:
        resolution = resolve.usual(request, implementation)
        schedule = resolve.best_known(resolution, request.spec).schedule
        assert schedule is not None
        problem = request.spec.problem
        return launch.count_chunks(problem.batch, problem.tokens, schedule.segment_tokens(request.spec), request.packed)


def run_backward(
    cotangents: list[Tensor],
    given: list[Tensor],
    initial: list[Tensor],
    cu_seqlens: Tensor | None,
    kept: list[Tensor],
    rule: str,
    chunk_size: int,
    outer_gradient: str,
    keeps: bool,
    implementation: str | None,
) -> list[Tensor]:
    """The gradients of `given` and of `initial`."""
    settings = (rule, chunk_size, outer_gradient)
    with autocast.off(given[0].device):
        if kept:
            found, sequences = _plan(given, initial, cu_seqlens, (*settings, True), implementation, reverse=True)
            # Another operator than that of the forward, as after `make tune`, may need other states than were kept.
            if found.operator is not None and kept[0].shape[0] == sequences.chunks:
                of_given, of_initial = launch_rule.attention_backward(
                    found.operator, given, kept, cotangents, sequences
                )
                return [*of_given, *(of_initial if initial else ())]
        return _by_autograd(cotangents, given, initial, cu_seqlens, settings)


def _by_autograd(
    cotangents: list[Tensor],
    given: list[Tensor],
    initial: list[Tensor],
    cu_seqlens: Tensor | None,
    settings: tuple[str, int, str],
) -> list[Tensor]:
    with with_autograd(), torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (*given, *initial)]
        outputs = eager_attention(leaves[: len(given)], leaves[len(given) :], cu_seqlens, *settings)
        pairs = [(out, ct) for out, ct in zip(outputs, cotangents, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in pairs], leaves, [ct for _, ct in pairs], allow_unused=True, materialize_grads=True
        )
    return [x.clone(memory_format=torch.contiguous_format) for x in found]


backward = transforms.operator("trellis_ops::memory_attention_backward", run_backward, "memory_attention", _BACKWARD)
batching.map_by_calls(backward)


@backward.register_fake
def _(cotangents: list[Tensor], given: list[Tensor], initial: list[Tensor], *rest: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*given, *initial)]


torch.library.register_autograd("trellis_ops::memory_attention_backward", refused_gradient("memory_attention"))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    given, initial, cu_seqlens, *settings = inputs
    count = 1 + len(states(rule_of(settings[0])))
    ctx.counts, ctx.settings = (len(given), len(initial), cu_seqlens is not None), settings
    offsets = () if cu_seqlens is None else (cu_seqlens,)
    ctx.save_for_backward(*given, *initial, *offsets, *output[count:])
    ctx.outputs = [(x.shape, x.dtype, x.device) for x in output[:count]]
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, incoming: list[Tensor | None]) -> tuple[Any, ...]:
    given, initial, packed = ctx.counts
    saved = list(ctx.saved_tensors)
    tensors_, first, rest = saved[:given], saved[given : given + initial], saved[given + initial :]
    cu_seqlens = rest.pop(0) if packed else None
    cotangents = [
        torch.zeros(shape, dtype=dtype, device=device) if ct is None else ct
        for ct, (shape, dtype, device) in zip(incoming, ctx.outputs, strict=False)
    ]
    found = backward(cotangents, tensors_, first, cu_seqlens, rest, *ctx.settings)
    return found[:given], found[given:], None, None, None, None, None, None


torch.library.register_autograd("trellis_ops::memory_attention", _gradient, setup_context=_setup)
