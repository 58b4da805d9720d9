"""A case as calls on the same inputs: the public operator, and the eager implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codegen.spec import Spec
from tests.support.inputs import Inputs, make_inputs
from trellis_ops import trellis_attention, trellis_step
from trellis_ops.eager import forward as eager

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Call:
    """A function with its arguments; `y` picks the readout from what it returns."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def y(self) -> Tensor:
        result = self()
        return result if isinstance(result, Tensor) else result[0]


@dataclass(frozen=True)
class Subject:
    """The inputs of a case, bound.

    Attributes:
        operator: the public operator; takes `implementation=` on top.
        eager: the eager implementation, without anything around it.
        reset: puts back the states that a step moves.
    """

    spec: Spec
    inputs: Inputs
    operator: Call
    eager: Call
    reset: Callable[[], None]


def subject(spec: Spec, where: torch.device, gradients: bool = False) -> Subject:
    """Seeded inputs of `spec` on `where`, from random states; with `gradients` they require them."""
    p = spec.problem
    made = make_inputs(p.batch, p.tokens, p.heads, p.dim_k, p.dim_v, p.slots, step_size=spec.rule.step_size)
    # Gates stay float32, as in the model and under autocast.
    typed = replace(made.to(_DTYPES[p.dtype]), log_decay=made.log_decay, step_size=made.step_size)
    inputs = typed.map(lambda x: x.to(where))
    inputs = inputs.leaves() if gradients else inputs
    return _step(spec, inputs) if p.operator.startswith("trellis_step") else _attention(spec, inputs)


def training_step(bound: Subject, call: Call) -> Callable[[], object]:
    """Forward of one of the subject's calls and, from a seeded cotangent of y, backward into all of its inputs."""
    v = bound.inputs.v
    cotangent = torch.randn(v.shape, generator=torch.Generator().manual_seed(1)).to(v)

    def step() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(call.y(), bound.inputs.tensors, cotangent)

    return step


def _attention(spec: Spec, inputs: Inputs) -> Subject:
    common = {"chunk_size": spec.problem.chunk, "initial_state": inputs.initial_state}
    return Subject(
        spec,
        inputs,
        Call(trellis_attention, inputs.args, {**_maps(spec), **common}),
        Call(eager.attention, inputs.args, {"rule": spec.rule, **common}),
        reset=lambda: None,
    )


def _step(spec: Spec, inputs: Inputs) -> Subject:
    first = inputs.initial_state
    assert first is not None
    state = tuple(s.clone() for s in first)
    chunked = spec.problem.operator == "trellis_step_chunked"
    common = {"gradient_state": tuple(s.clone() for s in first) if chunked else None}
    args = (*inputs.token(0), state)

    def reset() -> None:
        for moved, given in zip(state, first, strict=True):
            moved.copy_(given)

    return Subject(
        spec,
        inputs,
        Call(trellis_step, args, {**_maps(spec), **common}),
        Call(eager.step, args, {"rule": spec.rule, **common}),
        reset,
    )


def _maps(spec: Spec) -> dict[str, Any]:
    rule = spec.rule
    return {"phi": rule.phi, "link": rule.link, "out": rule.out, "phi_eps": rule.phi_eps}
