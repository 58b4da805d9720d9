"""`trellis_attention` where a gradient is wanted: the same results, and the chunk-start states for the reverse pass.

Where there is a backward kernel for the call, its own forward stores the states at the starts of chunks, or of every
n-th (the schedule's `checkpoint_spacing`), which are all that is kept besides inputs and outputs. Elsewhere nothing is
kept, and `trellis_ops.eager.backward` computes the states again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import launch, resolve
from trellis_ops.operators import batching, fakes, gradients, registered, transforms
from trellis_ops.operators.gradients import Reverse
from trellis_ops.operators.plan import Plan, plan
from trellis_ops.operators.schemas import ATTENTION_KEPT, Call
from trellis_ops.outer_gradient import is_first_order


def run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, both final states, and the kept states `[kept, H, M, D]` of both memories, none if none are kept."""
    call = ATTENTION_KEPT.call_of(arguments)
    found = _plan(call)
    if found.operator is None:
        y, s_k, s_v = registered.run_attention(*arguments)
        return y, s_k, s_v, s_k.new_empty((0, *s_k.shape[1:])), s_v.new_empty((0, *s_v.shape[1:]))
    sequences = registered.attention_sequences(found, **call.tensors)
    tensors = {name: tensor for name, tensor in call.tensors.items() if name != "cu_seqlens"}
    return launch.attention_kept(found.operator, **tensors, sequences=sequences)


attention = transforms.operator("trellis_ops::attention_kept", run, ATTENTION_KEPT.function, ATTENTION_KEPT.schema)


@attention.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    call = ATTENTION_KEPT.call_of(arguments)
    request = _request(*call.tensors.values(), *call.settings.values())
    return fakes.results(ATTENTION_KEPT, request, call.tensors, _count_kept(request, call.implementation))


def _count_kept(request: Request, implementation: str | None) -> int | torch.SymInt:
    resolution = resolve.usual(request, implementation)
    if resolution.schedule is None:
        return 0
    try:
        # What is compiled now may run after `make tune` has found another spacing.
        return torch.library.get_ctx().new_dynamic_size(min=0)
    except DynamicOutputShapeException:
        schedule = resolve.best_known(resolution, request.spec).schedule
        assert schedule is not None
        problem, kept = request.spec.problem, schedule.segment_tokens(request.spec)
        return launch.count_chunks(problem.batch, problem.tokens, kept, request.packed)


def _gradient(reverse: Reverse) -> Mapping[str, Tensor]:
    call = reverse.call
    found = _plan(call, reverse=True)
    sequences, cu_seqlens = found.sequences, call.tensors["cu_seqlens"]
    if cu_seqlens is not None and found.operator is not None:
        sequences = launch.packed_sequences(cu_seqlens, call.tensors["q"].shape[1], found.chunk_tokens)
    # Another operator than that of the forward, as after `make tune`, may need other states than were kept.
    if found.operator is None or any(sequences.chunks != states.shape[0] for states in reverse.kept.values()):
        return registered.attention_gradient(reverse)
    return launch.attention_backward(
        found.operator, call.tensors, reverse.kept, reverse.cotangents, sequences, reverse.wanted
    )


batching.map_by_calls(attention)
gradients.register(ATTENTION_KEPT, _gradient)


def _plan(call: Call, *, reverse: bool = False) -> Plan:
    tensors, settings = tuple(call.tensors.values()), tuple(call.settings.values())
    return plan(_request, tensors, settings, call.implementation, reverse=reverse)


def _request(*arguments: Any) -> Request:
    request = registered.attention_request(*arguments)
    outer_gradient = ATTENTION_KEPT.call_of((*arguments, None)).settings["outer_gradient"]
    direction = "backward_first_order" if is_first_order(outer_gradient) else "backward"
    spec = replace(request.spec, problem=replace(request.spec.problem, direction=direction))
    return replace(request, spec=spec)
