"""Long lines of generated code, folded to fit a page."""

from __future__ import annotations

import re

_PAGE = 120
_BREAK = re.compile(r" (?=[-+*] )")


def folded(line: str, indent: int) -> list[str]:
    """An assignment, a return or a call as lines of at most a page, `indent` included."""
    if indent + len(line) <= _PAGE:
        return [line]
    assignment = re.match(r"(\w+ = |return )(?=[^=])", line)
    if assignment:
        return [f"{assignment[1]}(", *_filled(line[assignment.end() :], indent + 4), ")"]
    name, _, rest = line.partition("(")
    lines = [f"{name}("]
    for argument in _arguments(rest.removesuffix(")")):
        *first, last = _filled(argument, indent + 4)
        lines += [*first, f"{last},"]
    return [*lines, ")"]


def _filled(text: str, indent: int) -> list[str]:
    """An expression inside of brackets, broken before operators."""
    lines = [""]
    for part in _BREAK.split(text):
        longer = f"{lines[-1]} {part}" if lines[-1] else part
        if lines[-1] and indent + len(longer) + 1 > _PAGE:
            lines.append(part)
        else:
            lines[-1] = longer
    return [f"    {line}" for line in lines]


def _arguments(text: str) -> list[str]:
    """What commas outside of all brackets part."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [argument.strip() for argument in found]
