"""Eager PyTorch where one head holds a number that is not finite, as docs/non-finite.md promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from codegen.kernels.sequences import Sequences
from codegen.rule import MAPS, Rule
from codegen.spec import Spec
from tests.support.cases import non_finite
from tests.support.cases.kernels import Case
from tests.support.cases.non_finite import LENGTHS, batch, packed
from trellis_ops import memory_readout, memory_update, trellis_attention, trellis_step
from trellis_ops.tokens import Tokens

# The norm of l2_silu has a floor, which NaN must pass.
RULE = Rule("l2_silu", link="l2_silu", out="l2_silu", phi_eps=1e-2, step_size="token")
STATES = ("S_k", "S_v")
SIZES = {"heads": 2, "dim_k": 5, "dim_v": 3, "slots": 6}


@dataclass(frozen=True)
class Eager:
    """The public operators by "eager", called as a compiled operator is."""

    spec: Spec

    @property
    def segment_tokens(self) -> int:
        return self.spec.problem.chunk

    def forward(self, tensors: Mapping[str, Tensor], sequences: Sequences) -> None:
        rule, problem = self.spec.rule, self.spec.problem
        maps = {"phi": rule.phi, "link": rule.link, "out": rule.out, "phi_eps": rule.phi_eps}
        gates = ("log_decay", "step_size")
        states = tuple(tensors[name] for name in STATES if name in tensors)
        chunk = {"chunk_size": problem.chunk, "implementation": "eager"}
        of_batch = {name: in_batch(x, sequences) for name, x in tensors.items()}
        if problem.operator == "trellis_attention":
            y, moved = self._attend(tensors, sequences)
            # The reverse pass begins where the forward did.
            fill(tensors, y=y, **(dict(zip(STATES, moved, strict=True)) if problem.direction == "forward" else {}))
        elif problem.operator == "memory_update":
            written = (of_batch[name] for name in ("w", "target", *gates))
            found = memory_update(*written, initial_state=tensors["S"], phi=rule.phi, phi_eps=rule.phi_eps, **chunk)
            fill(tensors, **dict(zip(("chunk_states", "codes", "S"), found, strict=True)))
        elif problem.operator.startswith("memory_readout"):
            read = [of_batch[name] for name in ("read", "w", "chunk_states", "codes", *gates)]
            transpose = problem.operator == "memory_readout_transposed"
            fill(tensors, y=memory_readout(*read, transpose=transpose, **chunk))
        else:
            gradient_state = (tensors["G_k"], tensors["G_v"]) if "G_k" in tensors else None
            token = (tensors[name] for name in Tokens._fields)
            y = trellis_step(*token, states, gradient_state=gradient_state, implementation="eager", **maps)
            fill(tensors, y=y)

    def backward(self, tensors: Mapping[str, Tensor], sequences: Sequences, wanted: tuple[str, ...]) -> None:
        names = (*Tokens._fields, *STATES)
        leaves = dict(tensors) | {name: tensors[name].clone().requires_grad_() for name in names}
        y, states = self._attend(leaves, sequences)
        incoming = [tensors["dy"].view(y.shape), tensors["dS_k"].clone(), tensors["dS_v"].clone()]
        gradients = torch.autograd.grad((y, *states), [leaves[name] for name in names], incoming)
        fill(tensors, **{f"d{name}": x for name, x in zip(names, gradients, strict=True)})

    def _attend(self, tensors: Mapping[str, Tensor], sequences: Sequences) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rule, problem = self.spec.rule, self.spec.problem
        together = len(set(sequences.cu_seqlens.diff().tolist())) == 1
        tokens = [tensors[name] for name in Tokens._fields]
        rows = [in_batch(x, sequences) if together else x if x.dim() == 1 else x[None] for x in tokens]
        return trellis_attention(
            *rows,
            phi=rule.phi,
            link=rule.link,
            out=rule.out,
            phi_eps=rule.phi_eps,
            chunk_size=problem.chunk,
            initial_state=(tensors["S_k"], tensors["S_v"]),
            output_final_state=True,
            cu_seqlens=None if together else sequences.cu_seqlens,
            outer_gradient="first_order" if problem.direction == "backward_first_order" else "bilevel",
            implementation="eager",
        )


def in_batch(x: Tensor, sequences: Sequences) -> Tensor:
    """A tensor of rows as one with an axis for sequences of equal length."""
    return x if x.dim() == 1 or len(x) % sequences.count else x.unflatten(0, (sequences.count, -1))


def fill(tensors: Mapping[str, Tensor], **results: Tensor) -> None:
    for name, x in results.items():
        tensors[name].copy_(x.detach().reshape(tensors[name].shape))


@pytest.mark.parametrize(("where", "chunk"), [(batch, 64), (packed, 1), (packed, 8)])
def test_attention(where, chunk):
    non_finite.check_attention(Eager, where(Case(chunk=chunk, rule=RULE, **SIZES)))


@pytest.mark.parametrize("phi", MAPS)
def test_every_map_in_every_place(phi):
    rule = Rule(phi, link=phi, out=phi, phi_eps=1e-2, step_size="token")
    non_finite.check_attention(Eager, batch(Case(chunk=8, rule=rule, **SIZES)), ("k",))
    non_finite.check_backward(Eager, batch(Case(chunk=8, rule=rule, **SIZES)), names=("v",))


@pytest.mark.parametrize("operator", ["memory_update", "memory_readout", "memory_readout_transposed"])
def test_parts(operator):
    check = non_finite.check_update if operator == "memory_update" else non_finite.check_readout
    check(Eager, batch(Case(operator, chunk=8, rule=RULE, **SIZES | {"dim_v": 5})))


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator):
    non_finite.check_step(Eager, Case(operator, lengths=(1,) * len(LENGTHS), rule=RULE, **SIZES))


@pytest.mark.parametrize(
    ("where", "chunk", "outer_gradient"), [(batch, 1, "bilevel"), (packed, 8, "bilevel"), (packed, 8, "first_order")]
)
def test_backward(where, chunk, outer_gradient):
    case = where(Case(chunk=chunk, rule=RULE, **SIZES))
    non_finite.check_backward(Eager, case, outer_gradient, ("k", "log_decay", "S_v", "dy"))
