"""`trellis_attention` where a gradient is wanted: the same results, and the chunk-start states for the reverse pass.

Where there is a backward kernel for the call, its own forward stores the states at the starts of some chunks, which are
all that is kept besides inputs and outputs. Elsewhere nothing is kept, and `trellis_ops.backward` computes the states
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from codegen.rule import Rule
from trellis_ops import backward, dispatch, gradients, launch, operators
from trellis_ops.arguments import Request
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.plan import Plan, plan

_SETTINGS = operators.ATTENTION_SETTINGS.replace("str? implementation", "bool any_length, str? implementation")


def run(*call: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, both final states, and the kept states `[chunks, H, M, D]` of both memories, none if none are kept."""
    tensors, settings, implementation = _parts(call)
    found = _plan(tensors, settings, implementation)
    if found.program is None:
        y, s_k, s_v = operators.run_attention(*_attention_call(call))
        return y, s_k, s_v, s_k.new_empty((0, *s_k.shape[1:])), s_v.new_empty((0, *s_v.shape[1:]))
    sequences = operators.attention_sequences(found, *tensors, chunk_size=found.program.tokens_per_state)
    arguments = (*tensors[:8], sequences)
    return launch.attention_kept(found.program, *arguments)


attention = custom_op(
    "trellis_ops::attention_kept",
    run,
    mutates_args=(),
    schema=(f"({operators.ATTENTION_TENSORS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"),
)


@attention.register_fake
def _(*call: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors, settings, implementation = _parts(call)
    y, s_k, s_v = operators.fake_attention(*_attention_call(call))
    (batch, length), cu_seqlens = tensors[0].shape[:2], tensors[8]
    chunks = 0
    request = _request(*tensors, *settings)
    if dispatch.has_kernel(request, implementation):
        packed = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
        chunks = launch.count_chunks(batch, length, dispatch.tokens_per_state(request, implementation), packed)
    return y, s_k, s_v, s_k.new_empty((chunks, *s_k.shape[1:])), s_v.new_empty((chunks, *s_v.shape[1:]))


def _gradient(*settings_and_implementation: Any) -> gradients.VectorJacobian:
    settings, implementation = settings_and_implementation[:-1], settings_and_implementation[-1]

    def pull_back(
        tensors: Sequence[Tensor | None], wanted: Sequence[int], cotangents: Sequence[Tensor]
    ) -> list[Tensor]:
        inputs: tuple[Any, ...] = tuple(tensors[:9])
        kept: tuple[Any, ...] = tuple(tensors[9:])
        found = _plan(inputs, settings, implementation)
        if found.program is None:
            chunk_size, outer_gradient = settings[4:6]
            options: dict[str, Any] = {
                "rule": Rule(*settings[:4]),
                "chunk_size": chunk_size,
                "outer_gradient": outer_gradient,
            }
            return backward.gradients(inputs, wanted, cotangents, **options)
        sequences = found.sequences
        if inputs[8] is not None:
            sequences = launch.packed_sequences(inputs[8], inputs[0].shape[1], found.program.tokens_per_state)
        computed = launch.attention_backward(found.program, inputs[:6], kept, cotangents, sequences)
        return [computed[i] for i in wanted]

    return pull_back


gradients.register("attention_kept", operators.ATTENTION_TENSORS, _SETTINGS, _gradient, outputs=3, kept=2)


def _parts(call: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...], str | None]:
    """The tensors, the settings (phi, link, out, phi_eps, chunk_size, outer_gradient, any_length), the implementation.

    any_length: see `trellis_ops.arguments.Request`.
    """
    return call[:9], call[9:-1], call[-1]


def _attention_call(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same call of `trellis_ops::attention`."""
    return *call[:-2], call[-1]


def _plan(tensors: tuple[Any, ...], settings: tuple[Any, ...], implementation: str | None) -> Plan:
    return plan(_request, tensors, settings, implementation)


def _request(*call: Any) -> Request:
    *attention_call, any_length = call
    request = operators.attention_request(*attention_call)
    direction = "backward_first_order" if is_first_order(attention_call[-1]) else "backward"
    problem = replace(request.spec.problem, direction=direction)
    symbolic = isinstance(problem.batch, torch.SymInt) or isinstance(problem.tokens, torch.SymInt)
    return replace(request, spec=replace(request.spec, problem=problem), any_length=any_length or symbolic)
