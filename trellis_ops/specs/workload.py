"""Workloads: files of named specs, which `make tune` tunes and `trellis_ops.warm_up` compiles."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import msgspec.yaml

from codegen.errors import MissingPackageError, TrellisError, WorkloadError
from codegen.input_maps import InputMaps, input_maps_of_key
from codegen.kernels.signatures import MOVES_STATES
from codegen.layer import Layer, layer_of_key
from codegen.rule import SOLVE, Rule
from codegen.rules import rule_named
from codegen.spec import FAMILY_OPERATORS, Problem, Spec, of_rows
from tuning_db import shortened
from tuning_db.regular_file import UNREADABLE, read_regular

MAX_BYTES = 2**20
MAX_DEPTH = 16

_SAID, _MOST = 500, 2**40

_OF_KEYS: dict[str, Callable[[str], object]] = {"layer": layer_of_key, "inputs": input_maps_of_key}
"""Fields that an entry has as keys."""

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
        members += [(field.name, _type(types[field.name]), field.default) for field in fields(kind)]
    return msgspec.defstruct("Entry", members, frozen=True, kw_only=True, forbid_unknown_fields=True)


def _type(of_field: Any) -> Any:
    """That of an entry: a layer, and maps of inputs, are written as their key."""
    return str | None if of_field in (Layer | None, InputMaps | None) else of_field


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
        raise MissingPackageError(package="PyYAML", extra="tune") from error
    except FileNotFoundError as error:
        raise WorkloadError(source=path, problem="the file does not exist") from error
    except OSError as error:
        # Its own text names the file once more.
        raise WorkloadError(source=path, problem=error.strerror or error) from error
    except UNREADABLE as error:
        raise WorkloadError(source=path, problem=shortened(str(error), _SAID)) from error
    section = section_of(kind)
    entries = content.get(section) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise WorkloadError(source=path, problem=f"expected a list of specs under {section!r}")
    sources = [f"{path}, {section} entry {number}" for number in range(1, len(entries) + 1)]
    named = tuple(named_spec(entry, source, strict=True) for entry, source in zip(entries, sources, strict=True))
    return require_distinct(named, str(path))


def section_of(kind: str) -> str:
    """The section of a workload that lists the specs for devices of `kind`."""
    return "cuda" if kind == "hip" else kind


def _decoded(data: bytes) -> object:
    """The content of a file of JSON, as a recorded one is, or of YAML.

    Raises:
        ValueError, RecursionError, msgspec.MsgspecError: it is too large, nested too deeply, or neither of the two.
        ImportError: it is no JSON, and PyYAML is not installed.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoded_yaml(data)


def _decoded_yaml(data: bytes) -> object:
    """Its nesting is counted before it is followed: the parser's own recursion knows no end."""
    import yaml

    depth = 0
    try:
        for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep; a workload is two deep")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return msgspec.yaml.decode(data)


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


def named_spec(entry: object, source: str, *, strict: bool) -> NamedSpec:
    """The spec of an entry, by the names of the fields of a workload file.

    Args:
        entry: as it was decoded.
        source: where it stands, for errors.
        strict: whether a number has to be one; else a text that reads as one is taken for it.

    Raises:
        WorkloadError: it describes no spec.
    """
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
        for field, of_key in _OF_KEYS.items():
            values[field] = None if values[field] is None else of_key(values[field])
        rule = replace(rule_named(base or Rule()), **{name: changes[name] for name in changes.keys() & given})
        usual = _usual(rule, values["operator"], given)
        spec = Spec(rule, Problem(**values | {name: usual[name] for name in usual.keys() - given}))
    except (TrellisError, ValueError) as error:
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
        WorkloadError: `given` has another number of slots, or the rule is none of the operator's, or states lie in
            pools, where what is known of those in rows serves.
    """
    rule, problem = spec.rule, spec.problem
    if problem != (rows := of_rows(problem)):
        assert rows.layer is not None
        said = f"blocks whose states lie in pools take the winner of layer {rows.layer.key()}; list that one"
        raise WorkloadError(source=source, problem=said)
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
