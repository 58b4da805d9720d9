"""Runs of a rule by the oracle and by the eager form, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import Rule
from tests.trellis_ops.family.cases import Case, Named, inputs
from trellis_ops import family_reference
from trellis_ops.eager import recurrence

Attention = Callable[..., tuple[Tensor, Named]]
FORMS: dict[str, Attention] = {"oracle": family_reference.memory_attention, "eager": recurrence.attention}

every_form = pytest.mark.parametrize("attention", FORMS.values(), ids=FORMS)


def examples(count: int) -> settings:
    """The same random cases in every run."""
    return settings(deadline=None, max_examples=count, derandomize=True)


def assert_same(found: Tensor, expected: Tensor, name: str, tolerance: float = 1e-10) -> None:
    """Their difference is small beside the expected, or beside 1: what is smaller than the inputs has cancelled."""
    assert found.shape == expected.shape, name
    assert found.dtype == expected.dtype, name
    error, size = (found - expected).norm().item(), expected.norm().item()
    assert error <= tolerance * max(size, 1.0), f"{name}: an error of {error:.3g} beside {size:.3g}"


def assert_all_same(found: Named, expected: Named, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert_same(found[name], x, name, tolerance)


def leaves(*groups: Named) -> tuple[Named, ...]:
    """The tensors, as those that gradients are taken of."""
    return tuple({name: x.detach().clone().requires_grad_() for name, x in group.items()} for group in groups)


def gradients(y: Tensor, finals: Named, given: Named, initial: Named) -> Named:
    """The gradients of all that is given for fixed random cotangents of all results; zeros where nothing arrives."""
    draw = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x) for x in (y, *finals.values())]
    total = sum((x * each).sum() for x, each in zip((y, *finals.values()), cotangents, strict=True))
    of = {f"of {name}": x for group in (given, initial) for name, x in group.items()}
    found = torch.autograd.grad(total, list(of.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(of, found, strict=True))


def per_token(rule: Rule) -> set[str]:
    return {each.name for each in tensors(rule) if each.per != HEAD}


def cut(rule: Rule, given: Named, begin: int, end: int | None) -> Named:
    """Some tokens of a call."""
    names = per_token(rule)
    return {name: x[:, begin:end] if name in names else x for name, x in given.items()}


def at_token(rule: Rule, given: Named, t: int) -> Named:
    names = per_token(rule)
    return {name: x[:, t] if name in names else x for name, x in given.items()}


def axes_of(rule: Rule) -> dict[str, tuple[str, ...]]:
    """The last axes of every tensor and state, by name."""
    return {each.name: each.axes for each in tensors(rule)} | states(rule)


def along(names: Iterable[str], rule: Rule, axis: str, group: Named, change: Callable[[Tensor, int], Tensor]) -> Named:
    """Those tensors, changed along the axis that they have; the others as they are."""
    axes, changed = axes_of(rule), dict(group)
    for name in names:
        for place in [axes[name].index(axis)] if axis in axes[name] else []:
            changed[name] = change(group[name], place - len(axes[name]))
    return changed


def both(case: Case, **changes: object) -> tuple[Case, Named, Named]:
    """The case with fields of its rule changed, and its tensors."""
    case = replace(case, rule=replace(case.rule, **changes))
    return case, *inputs(case)
