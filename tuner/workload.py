"""The specs to tune: those that are shipped, or one's own from the command line."""

from __future__ import annotations

from pathlib import Path

from codegen.errors import WorkloadError
from trellis_ops.specs.workload import NamedSpec, named_spec
from tuning_db import shortened

DEFAULT_FILE = Path(__file__).with_name("workload.yaml")
"""The workload of `make tune`."""

RULES_FILE = Path(__file__).with_name("workload_of_rules.yaml")
"""Every named rule, which takes too long for every `make tune`."""

_ECHO = 120


def parse_spec(text: str) -> NamedSpec:
    """The spec that `text` describes, written as "name: key=value, key=value"; keys are those of a workload file.

    `rule` is the name of a rule or its text as JSON; fields of a rule beside it change it. Unless they are given, the
    operator of a rule is memory_attention, its C is 1 and T of a step is 1; TRELLIS has those of `Problem`.

    Raises:
        WorkloadError: anything else.

    Example:
        >>> parse_spec("mine: operator=trellis_step, heads=12, tokens=1, chunk=1").spec.problem.heads
        12
        >>> parse_spec("mine: rule=titans, heads=4").spec.problem.operator
        'memory_attention'
    """
    name, colon, body = text.partition(":")
    source = f"--spec {shortened(text, _ECHO)!r}"
    if not colon:
        raise WorkloadError(source=source, problem='expected "name: key=value, key=value"')
    entry: dict[str, str] = {"name": name.strip()}
    for pair in filter(None, (part.strip() for part in _fields(body))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or key in entry:
            problem = f"{key!r} is given twice" if equals else f"{pair!r} is not key=value"
            raise WorkloadError(source=source, problem=problem)
        entry[key] = value
    return named_spec(entry, source, strict=False)


def _fields(body: str) -> list[str]:
    """The parts between commas, but for commas inside of brackets, as those of a map's or a rule's text are."""
    parts, depth = [""], 0
    for character in body:
        depth += (character in "({") - (character in ")}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
