"""The forms that compute a chunk's tokens at once refuse every field of a rule that they do not know, a new one too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import pytest

from codegen.errors import RuleError
from codegen.recurrence.forms import why_no_chunk_form, why_no_split_form, why_no_stale_form
from codegen.rule import CHOICES, Rule

_OF_ALL = ("phi", "phi_eps", "link", "out", "step_size", "passes", "decay", "decay_first", "read")
"""The fields that every form has in its algebra, or refuses some values of."""

_BESIDE_A_VIEW = {"view_gradient"}
"""Needs a view, which no form has."""

_OTHERS = {"window": (2,), "view": ("softmax",)}
"""Values that are not the default, of fields without choices."""


@dataclass(frozen=True)
class Form:
    """A form, the fields that it has beside those of all, and rules and a chunk that it computes."""

    why_not: Callable[[Rule, int], str | None]
    has: tuple[str, ...]
    chunk: int
    rules: tuple[Rule, ...]


_SQUARED, _HEBBIAN = (Rule(phi=phi, passes=1, step_size="token") for phi in ("identity", "hebbian"))
FORMS = {
    "chunks": Form(why_no_chunk_form, ("probe", "erase"), 1, (_SQUARED, _HEBBIAN)),
    "split": Form(why_no_split_form, (), 16, (replace(_SQUARED, phi="huber"), _HEBBIAN)),
    "stale": Form(why_no_stale_form, ("probe", "momentum", "window"), 16, (replace(_SQUARED, phi="huber"), _HEBBIAN)),
}


def others(rule: Rule, field: str) -> Iterator[Rule]:
    """The rules that differ in this field."""
    for value in CHOICES[field][1:] if field in CHOICES else _OTHERS[field]:
        with contextlib.suppress(RuleError):
            yield replace(rule, **{field: value})


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_field_that_a_form_does_not_know_is_refused(form: Form) -> None:
    assert all(form.why_not(rule, form.chunk) is None for rule in form.rules)
    for field in {each.name for each in fields(Rule)} - {*_OF_ALL, *form.has} - _BESIDE_A_VIEW:
        changed = [rule for base in form.rules for rule in others(base, field)]
        assert changed, field
        assert all(form.why_not(rule, form.chunk) for rule in changed), field
