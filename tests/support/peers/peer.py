"""A rule beside its peer: both are given the same tensors, and give an output, final states and gradients."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.recurrence.tensors import states, tensors
from tests.support.peers.inputs import Drawing, Sizes
from tests.support.peers.rules import RULES
from tests.support.relative_error import relative_error
from trellis_ops.calls.called_rule import called
from trellis_ops.eager import recurrence
from trellis_ops.operators import family

Named = dict[str, Tensor]
Results = tuple[Tensor, Named]
"""The output, and the final states by name."""


@dataclass(frozen=True)
class Peer:
    """A reference of another project, and a rule of this one.

    Attributes:
        name: of the rule in `RULES`.
        reference: "module:function".
        draw: the tensors that both are given, initial states among them.
        theirs: the results of the reference.
        ours: the results of the rule.
        remark: what sets the two apart, or what is left out.
        float64: largest relative error where both compute in float64.
    """

    name: str
    reference: str
    draw: Callable[[Sizes, Drawing], Named]
    theirs: Callable[[Callable[..., object], Named], Results]
    ours: Callable[[Named], Results]
    remark: str = ""
    float64: float = 1e-11

    def function(self) -> Callable[..., object]:
        """The reference, imported."""
        module, _, name = self.reference.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Errors:
    """Relative errors of a rule against its peer; None where the peer gives no final state."""

    output: float
    states: float | None
    gradient: float
    worst: str

    @property
    def largest(self) -> float:
        """Of all."""
        return max(self.output, self.states or 0.0, self.gradient)


_implementation: str | None = None


@contextlib.contextmanager
def kernels_of(implementation: str) -> Iterator[None]:
    """The rules by the kernels of a backend, and not by the eager walk."""
    global _implementation
    before, _implementation = _implementation, implementation
    try:
        yield
    finally:
        _implementation = before


def walked(name: str, given: Named, initial: Named | None = None, chunk_size: int = 1) -> Results:
    """A rule of `RULES` by the eager walk, or by `kernels_of`; a step size that is not given is one."""
    rule = RULES[name]
    batch, tokens, heads, _ = given["q"].shape
    ones = given["q"].new_ones((heads,) if rule.step_size == "head" else (batch, tokens, heads))
    given = {"step_size": ones} | given
    if _implementation is None:
        return recurrence.attention(rule, given, initial, chunk_size=chunk_size)
    text = called(rule, given["step_size"].ndim).text
    ordered = [given[each.name] for each in tensors(rule)]
    first = [] if initial is None else [initial[each] for each in states(rule)]
    y, *rest = family.attention(ordered, first, None, text, chunk_size, "bilevel", True, _implementation)
    return y, dict(zip(states(rule), rest, strict=False))


def compare(peer: Peer, drawn: Named) -> Errors:
    """Outputs, final states and gradients of one random sum of both, of a rule against its peer.

    The gradients are taken with respect to every tensor that is given, initial states included.
    """
    function = peer.function()
    (our_y, ours), our_gradients = _with_gradients(peer.ours, drawn)
    (their_y, theirs), their_gradients = _with_gradients(lambda given: peer.theirs(function, given), drawn)
    assert ours.keys() == theirs.keys(), f"states {sorted(ours)} instead of {sorted(theirs)}"
    states = [relative_error(ours[name], state) for name, state in theirs.items()]
    errors = {name: relative_error(our_gradients[name], x) for name, x in their_gradients.items()}
    worst = max(errors, key=lambda name: errors[name])
    return Errors(relative_error(our_y, their_y), max(states, default=None), errors[worst], worst)


def _with_gradients(run: Callable[[Named], Results], drawn: Named) -> tuple[Results, Named]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in drawn.items()}
    y, states = run(leaves)
    weights = Drawing(seed=1)
    total = (y * weights.normal(*y.shape).to(y.dtype)).sum()
    for name in sorted(states):
        total = total + (states[name] * weights.normal(*states[name].shape).to(y.dtype)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return (y, states), dict(zip(leaves, gradients, strict=True))
