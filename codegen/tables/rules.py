"""The tables of docs/rules.md: what each field of a rule may be, and every named rule."""

from __future__ import annotations

from dataclasses import fields

from codegen.recurrence.tensors import states, tensors
from codegen.rule import CHOICES, LONGEST_WINDOW, SOLVE, Rule
from codegen.rule_text import rule_text
from codegen.rules import NAMED

_FREE = {
    "phi": "a map, for 1/2 \\|\\|phi(z) - a\\|\\|^2, or a loss of z and a",
    "link": f'a map, or "{SOLVE}"',
    "out": "a map",
    "phi_eps": "a positive number",
    "window": f"1 to {LONGEST_WINDOW}",
    "view": "a map",
}


def named_table() -> str:
    """A line for each named rule: equation, fields, tensors, states, source and note."""
    lines = ["| rule | equation | record | tensors | states | source | note |", "|---|---|---|---|---|---|---|"]
    for each in NAMED.values():
        taken = ", ".join(_keywords(each.rule))
        cells = (
            f"`{each.name}`",
            each.equation,
            f"`{rule_text(each.rule)}`",
            taken,
            ", ".join(states(each.rule)),
            each.source,
            each.note,
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _keywords(rule: Rule) -> list[str]:
    """The tensors of a call as its keywords are called; a target that is k is not given."""
    given = [x for x in tensors(rule) if x.name != "target" or rule.link != SOLVE]
    names = ["erase" if x.name.startswith("erase") else x.name + "?" * x.optional for x in given]
    return list(dict.fromkeys(names))


def field_table() -> str:
    """A line for each field: its default and what it may be."""
    lines = ["| field | default | choices |", "|---|---|---|"]
    for each in fields(Rule):
        choices = _FREE.get(each.name) or ", ".join(f"`{choice!r}`" for choice in CHOICES[each.name])
        lines.append(f"| `{each.name}` | `{each.default!r}` | {choices} |")
    return "\n".join(lines)
