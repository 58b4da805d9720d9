"""The implementations that must obey the laws: one list, to which each new one is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codegen.rule import Rule
from tests.support.inputs import Inputs
from trellis_ops import reference, trellis_attention, trellis_step
from trellis_ops.eager import forward as eager

States = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Implementation:
    """One implementation of attention and its decode step, and how exactly it computes.

    Attributes:
        attention: as `trellis_ops.eager.forward.attention`.
        step: `(*token, state, rule=, gradient_state=)` to y and the new states; changes nothing it was given.
        dtype: type of the inputs it is tested with.
        tolerance: largest relative error between two ways to the same result.
    """

    name: str
    attention: Callable[..., tuple[Tensor, States]]
    step: Callable[..., tuple[Tensor, States]]
    dtype: torch.dtype
    tolerance: float

    def run(self, inputs: Inputs, rule: Rule, chunk_size: int, **options: Any) -> tuple[Tensor, States]:
        return self.attention(
            *inputs.args, rule=rule, chunk_size=chunk_size, initial_state=inputs.initial_state, **options
        )


def eager_step(
    *token: Tensor, state: States, rule: Rule, gradient_state: States | None = None
) -> tuple[Tensor, States]:
    after = (state[0].clone(), state[1].clone())
    if gradient_state is None:
        return eager.step(*token, after, rule=rule), after
    return eager.step(*token, after, rule=rule, gradient_state=gradient_state), after


def reference_step(
    *token: Tensor, state: States, rule: Rule, gradient_state: States | None = None
) -> tuple[Tensor, States]:
    return reference.step(*token, state, rule=rule, gradient_state=gradient_state)


def operator_attention(
    *args: Tensor, rule: Rule, chunk_size: int, initial_state: States | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, States]:
    y, states = trellis_attention(
        *args,
        **_maps(rule),
        chunk_size=chunk_size,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        output_final_state=True,
        implementation="tvm",
    )
    assert states is not None
    return y, states


def operator_step(
    *token: Tensor, state: States, rule: Rule, gradient_state: States | None = None
) -> tuple[Tensor, States]:
    after = (state[0].clone(), state[1].clone())
    y = trellis_step(*token, after, **_maps(rule), gradient_state=gradient_state, implementation="tvm")
    return y, after


def _maps(rule: Rule) -> dict[str, Any]:
    return {"phi": rule.phi, "link": rule.link, "out": rule.out, "phi_eps": rule.phi_eps}


IMPLEMENTATIONS = [
    Implementation("reference", reference.attention, reference_step, torch.float64, 1e-11),
    Implementation("eager", eager.attention, eager_step, torch.float64, 1e-11),
    Implementation("eager-float32", eager.attention, eager_step, torch.float32, 2e-5),
    Implementation("tvm", operator_attention, operator_step, torch.float32, 2e-5),
]
