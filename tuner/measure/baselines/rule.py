"""The eager implementation of any rule, as a call to time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from codegen.kernels.pool.arguments import FIRST, is_of_pool, pooled
from codegen.kernels.signatures import MOVES_STATES
from codegen.recurrence.tensors import chunk_states, states, tensors
from codegen.spec import Spec
from trellis_ops.eager import pool as eager_pool
from trellis_ops.eager import recurrence as eager
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import Inputs


def rule_call(spec: Spec, inputs: Inputs, batched: Mapping[str, Tensor], made: Callable[[Any], Any]) -> Timed:
    """The eager walk of `spec`, or of a backward autograd of it; `made` is what makes it, such as `torch.compile`.

    Args:
        spec, inputs: whose.
        batched: the inputs with the batch axis of the public operators.
        made: makes the function that is timed.
    """
    if is_of_pool(spec):
        return _pool(spec, inputs)
    if spec.problem.operator in MOVES_STATES:
        return _step(spec, inputs, made)
    rule, chunk = spec.rule, spec.problem.chunk
    attention = made(eager.attention)
    given = {each.name: batched[each.name] for each in tensors(rule)}
    first = {name: batched[name] for name in states(rule)}
    if spec.problem.direction == "forward":
        return Timed(lambda: attention(rule, given, first, chunk_size=chunk), lambda: None)
    given = {name: x.detach().requires_grad_() for name, x in given.items()}
    first = {name: x.detach().requires_grad_() for name, x in first.items()}
    outer = "first_order" if spec.problem.direction == "backward_first_order" else "bilevel"
    incoming = [batched[f"d{name}"] for name in ("y", *first)]

    def run() -> object:
        y, finals = attention(rule, given, first, chunk_size=chunk, outer_gradient=outer)
        leaves = [*given.values(), *first.values()]
        return torch.autograd.grad((y, *finals.values()), leaves, incoming, allow_unused=True)

    return Timed(run, lambda: None)


def _pool(spec: Spec, inputs: Inputs) -> Timed:
    """The eager form on a pool, which reads slots back: nothing that `torch.compile` takes whole."""
    rule = spec.rule
    given = {each.name: inputs[each.name] for each in tensors(rule)}
    pools = {name: inputs[name].clone() for name in pooled(spec)}
    carried = states(rule)
    pool = eager_pool.Pool(
        {name: pools[name] for name in carried},
        {name: x for name, x in pools.items() if name not in carried},
        {name: inputs[f"{FIRST}{name}"] for name in carried},
    )
    rows = (inputs["state_indices"], inputs["positions"])

    def reset() -> None:
        for name, x in pools.items():
            x.copy_(inputs[name])

    def run() -> object:
        if set(inputs.lengths) == {1}:
            return eager_pool.step(rule, given, pool, *rows, spec.problem.chunk)
        return eager_pool.attention(rule, given, pool, *rows, inputs.lengths, spec.problem.chunk)

    return Timed(run, reset)


def _step(spec: Spec, inputs: Inputs, made: Callable[[Any], Any]) -> Timed:
    rule, step = spec.rule, made(eager.step)
    given = {each.name: inputs[each.name] for each in tensors(rule)}
    state = {name: inputs[name].clone() for name in states(rule)}
    starts = {name: inputs[name].clone() for name in chunk_states(rule) if name in inputs.tensors}
    chunked = spec.problem.operator == "memory_step_chunked"

    def reset() -> None:
        for name, x in (*state.items(), *starts.items()):
            x.copy_(inputs[name])

    return Timed(lambda: step(rule, given, state, starts if chunked else None), reset)
