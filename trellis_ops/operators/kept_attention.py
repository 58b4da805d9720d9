"""`trellis_attention` where a gradient is wanted: the same results, and the chunk-start states for the reverse pass.

Where there is a backward kernel for the call, its own forward stores the states at the starts of chunks, or of every
n-th (the schedule's `checkpoint_spacing`), which are all that is kept besides inputs and outputs. Elsewhere nothing is
kept, and `trellis_ops.eager.backward` computes the states again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.library import custom_op

from codegen.rule import Rule
from trellis_ops.arguments import Request
from trellis_ops.dispatch import launch
from trellis_ops.dispatch import resolve as dispatch
from trellis_ops.eager import backward
from trellis_ops.operators import batching, gradients
from trellis_ops.operators import registered as operators
from trellis_ops.operators.plan import Plan, plan
from trellis_ops.outer_gradient import is_first_order


def run(*call: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, both final states, and the kept states `[kept, H, M, D]` of both memories, none if none are kept."""
    tensors, settings, implementation = _parts(call)
    found = _plan(tensors, settings, implementation)
    if found.operator is None:
        y, s_k, s_v = operators.run_attention(*call)
        return y, s_k, s_v, s_k.new_empty((0, *s_k.shape[1:])), s_v.new_empty((0, *s_v.shape[1:]))
    sequences = operators.attention_sequences(found, *tensors)
    q, k, v, target, log_decay, step_size, s_k, s_v, _ = tensors
    return launch.attention_kept(found.operator, q, k, v, target, log_decay, step_size, s_k, s_v, sequences)


attention = custom_op(
    "trellis_ops::attention_kept",
    run,
    mutates_args=(),
    schema=(
        f"({operators.ATTENTION_TENSORS}, {operators.ATTENTION_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)


@attention.register_fake
def _(*call: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors, settings, implementation = _parts(call)
    y, s_k, s_v = operators.fake_attention(*call)
    kept = _count_kept(tensors, settings, implementation)
    return y, s_k, s_v, s_k.new_empty((kept, *s_k.shape[1:])), s_v.new_empty((kept, *s_v.shape[1:]))


def _count_kept(tensors: tuple[Any, ...], settings: tuple[Any, ...], implementation: str | None) -> int | torch.SymInt:
    request = _request(*tensors, *settings)
    resolution = dispatch.usual(request, implementation)
    if resolution.schedule is None:
        return 0
    try:
        # What is compiled now may run after `make tune` has found another spacing.
        return torch.library.get_ctx().new_dynamic_size(min=0)
    except DynamicOutputShapeException:
        schedule = dispatch.best_known(resolution, request.spec).schedule
        assert schedule is not None
        (batch, length), cu_seqlens = tensors[0].shape[:2], tensors[8]
        packed = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
        return launch.count_chunks(batch, length, schedule.segment_tokens(request.spec), packed)


def _gradient(*settings_and_implementation: Any) -> gradients.VectorJacobian:
    settings, implementation = settings_and_implementation[:-1], settings_and_implementation[-1]

    def pull_back(
        tensors: Sequence[Tensor | None], wanted: Sequence[int], cotangents: Sequence[Tensor]
    ) -> list[Tensor]:
        *inputs, kept_k, kept_v = tensors
        assert kept_k is not None and kept_v is not None
        named = dict(zip(operators.ATTENTION_NAMES, inputs, strict=True))
        found = _plan(tuple(inputs), settings, implementation, reverse=True)
        sequences, cu_seqlens, q = found.sequences, named["cu_seqlens"], named["q"]
        if cu_seqlens is not None and q is not None and found.operator is not None:
            sequences = launch.packed_sequences(cu_seqlens, q.shape[1], found.chunk_tokens)
        # Another operator than that of the forward, as after `make tune`, may need other states than were kept.
        if found.operator is None or sequences.chunks != kept_k.shape[0]:
            phi, link, out, phi_eps, chunk_size, outer_gradient = settings
            rule = Rule(phi, link, out, phi_eps)
            return backward.gradients(
                inputs, wanted, cotangents, rule=rule, chunk_size=chunk_size, outer_gradient=outer_gradient
            )
        given = {name: tensor for name, tensor in named.items() if tensor is not None}
        names = [operators.ATTENTION_NAMES[i] for i in wanted]
        computed = launch.attention_backward(found.operator, given, (kept_k, kept_v), cotangents, sequences, names)
        return list(computed.values())

    return pull_back


batching.map_by_calls(attention)
gradients.register(
    "attention_kept", operators.ATTENTION_TENSORS, operators.ATTENTION_SETTINGS, _gradient, outputs=3, kept=2
)


def _parts(call: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...], str | None]:
    """The tensors, the settings (phi, link, out, phi_eps, chunk_size, outer_gradient) and the implementation."""
    count = len(operators.ATTENTION_NAMES)
    return call[:count], call[count:-1], call[-1]


def _plan(
    tensors: tuple[Any, ...], settings: tuple[Any, ...], implementation: str | None, *, reverse: bool = False
) -> Plan:
    return plan(_request, tensors, settings, implementation, reverse=reverse)


def _request(*call: Any) -> Request:
    request = operators.attention_request(*call)
    direction = "backward_first_order" if is_first_order(call[-1]) else "backward"
    spec = replace(request.spec, problem=replace(request.spec.problem, direction=direction))
    return replace(request, spec=spec)
