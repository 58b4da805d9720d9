"""The specs to tune: a readable file of named ones, or one's own from the command line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import msgspec.yaml

from codegen.errors import TrellisError
from codegen.kernels.signatures import MOVES_STATES
from codegen.rule import SOLVE, Rule
from codegen.rules import rule_named
from codegen.spec import FAMILY_OPERATORS, Problem, Spec
from tuner.errors import MissingPackageError, WorkloadError
from tuning_db import shortened
from tuning_db.regular_file import UNREADABLE, read_regular

DEFAULT_FILE = Path(__file__).with_name("workload.yaml")
"""The workload of `make tune`."""

RULES_FILE = Path(__file__).with_name("workload_of_rules.yaml")
"""Every named rule, which takes too long for every `make tune`."""

MAX_BYTES = 2**20
MAX_DEPTH = 16

_SAID, _ECHO, _MOST = 500, 120, 2**40

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}\Z")]


@dataclass(frozen=True)
class NamedSpec:
    """A spec, and what the person who listed it calls it."""

    name: str
    spec: Spec


def _entry_type() -> type[msgspec.Struct]:
    """The fields of Problem and of Rule with their own types and defaults, plus `name` and the shorthands."""
    members: list[Any] = [("name", Name), ("dim", int | None, None), ("rule", str | None, None)]
    for kind in (Problem, Rule):
        types = get_type_hints(kind)
        members += [(field.name, types[field.name], field.default) for field in fields(kind)]
    return msgspec.defstruct("Entry", members, frozen=True, kw_only=True, forbid_unknown_fields=True)


_Entry = _entry_type()


def load_workload(path: Path, kind: str) -> tuple[NamedSpec, ...]:
    """The specs that the file at `path` lists for devices of `kind` ("cpu", "cuda" or "hip"; hip takes cuda's).

    Raises:
        WorkloadError: the file cannot be read, or an entry is wrong; the message names the file and the entry.
        MissingPackageError: PyYAML is not installed.
    """
    try:
        content = _decoded(read_regular(path, MAX_BYTES))
    except ImportError as error:
        raise MissingPackageError(package="PyYAML") from error
    except FileNotFoundError as error:
        raise WorkloadError(source=path, problem="the file does not exist") from error
    except OSError as error:
        # Its own text names the file once more.
        raise WorkloadError(source=path, problem=error.strerror or error) from error
    except UNREADABLE as error:
        raise WorkloadError(source=path, problem=shortened(str(error), _SAID)) from error
    section = "cuda" if kind == "hip" else kind
    entries = content.get(section) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise WorkloadError(source=path, problem=f"expected a list of specs under {section!r}")
    sources = [f"{path}, {section} entry {number}" for number in range(1, len(entries) + 1)]
    named = tuple(_named(entry, source, strict=True) for entry, source in zip(entries, sources, strict=True))
    return require_distinct(named, str(path))


def _decoded(data: bytes) -> object:
    """The content of a YAML file, its nesting counted before it is followed: the parser's own recursion knows no end.

    Raises:
        ValueError, msgspec.MsgspecError: it is too large, nested too deeply, or no YAML.
        ImportError: PyYAML is not installed.
    """
    import yaml

    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    depth = 0
    try:
        for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep; a workload is two deep")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return msgspec.yaml.decode(data)


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
    return _named(entry, source, strict=False)


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


def require_distinct(named: tuple[NamedSpec, ...], source: str) -> tuple[NamedSpec, ...]:
    """`named` itself.

    Raises:
        WorkloadError: two of them have one name.
    """
    names = [each.name for each in named]
    for name in names:
        if names.count(name) > 1:
            raise WorkloadError(source=source, problem=f"the name {name!r} is given to two specs")
    return named


def _named(entry: object, source: str, *, strict: bool) -> NamedSpec:
    try:
        values = msgspec.to_builtins(msgspec.convert(entry, _Entry, strict=strict))
    except msgspec.ValidationError as error:
        known = ", ".join(_Entry.__struct_fields__)
        hint = f"; the fields are: {known}" if "unknown field" in str(error) else ""
        raise WorkloadError(source=source, problem=shortened(f"{error}{hint}", _SAID)) from error
    for field, value in values.items():
        if type(value) is int and abs(value) > _MOST:
            raise WorkloadError(source=source, problem=f"{field} is out of range; expected at most {_MOST}")
    name, dim = values.pop("name"), values.pop("dim")
    if dim is not None:
        values |= {"dim_k": dim, "dim_v": dim}
    base = values.pop("rule")
    changes = {field.name: values.pop(field.name) for field in fields(Rule)}
    given = set(entry) if isinstance(entry, dict) else set()
    try:
        rule = replace(rule_named(base or Rule()), **{name: changes[name] for name in changes.keys() & given})
        usual = _usual(rule, values["operator"], given)
        spec = Spec(rule, Problem(**values | {name: usual[name] for name in usual.keys() - given}))
    except TrellisError as error:
        raise WorkloadError(source=source, problem=shortened(str(error), _SAID)) from error
    return NamedSpec(name, _checked(spec, given, source))


def _usual(rule: Rule, operator: str, given: Collection[str]) -> dict[str, Any]:
    """What stands for fields of a problem that are not given, where a rule is not TRELLIS."""
    if rule.is_trellis and operator not in FAMILY_OPERATORS:
        return {}
    operator = operator if "operator" in given else FAMILY_OPERATORS[0]
    one_token = {"tokens": 1} if operator in MOVES_STATES else {}
    return {"operator": operator, "chunk": 1} | one_token


def _checked(spec: Spec, given: Collection[str], source: str) -> Spec:
    """The spec, of any rule with as many slots as its states have.

    Raises:
        WorkloadError: `given` has another number of slots, or the rule is none of the operator's.
    """
    rule, problem = spec.rule, spec.problem
    if problem.operator not in FAMILY_OPERATORS:
        if rule.is_trellis:
            return spec
        said = f"{problem.operator} takes rules that are TRELLIS but for maps; for others {', '.join(FAMILY_OPERATORS)}"
        raise WorkloadError(source=source, problem=said)
    wanted = {"dim_v": rule.passes == 1, "dim_k": rule.link == SOLVE}
    for width, holds in wanted.items():
        if holds and problem.slots != getattr(problem, width):
            slots = getattr(problem, width)
            if "slots" in given:
                said = f"slots={problem.slots}, but this rule has as many slots as {width}, {slots}; leave it out"
                raise WorkloadError(source=source, problem=said)
            return replace(spec, problem=replace(problem, slots=slots))
    return spec
