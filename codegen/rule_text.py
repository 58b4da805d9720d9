"""Rules as text that is data: a JSON object of fields, and keys read back. Nothing of a text is ever run."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any, NoReturn

from codegen.errors import MapTextError, NumberTypeError, RuleError, SizeError, UnknownMapError
from codegen.rule import Rule

DEFAULTS: dict[str, object] = {each.name: each.default for each in fields(Rule)}
"""Every field of a rule with its default, whose type the field has."""

LONGEST_TEXT = 1 << 16
"""Of the text of a rule, in characters."""

_KEY = re.compile(r"(?:trellis|rule)\((?P<fields>[^()]*)\)")


def rule_text(rule: Rule) -> str:
    """The fields of a rule that are not those of TRELLIS, as a JSON object; a user's map is its definition.

    Example:
        >>> rule_text(Rule(phi="hebbian", passes=1, decay="channel"))
        '{"phi": "hebbian", "link": "identity", "passes": 1, "decay": "channel"}'
        >>> rule_of_text('{"decay": "slot"}') == Rule(decay="slot")
        True
    """
    return json.dumps({name: value for name, value in vars(rule).items() if value != DEFAULTS[name]})


def rule_of_text(text: str) -> Rule:
    """The rule whose `rule_text` this is; a field that is left out is that of TRELLIS.

    Args:
        text: a JSON object of fields of `Rule`. Maps are names or definitions, such as "cubic(z) = z ** 3".

    Raises:
        RuleError: it is no such object, it names a field that there is not or one twice, a field has another type or a
            value that `Rule` refuses.
    """
    given = _object_of(text)
    for name, value in given.items():
        if name not in DEFAULTS:
            raise RuleError(field=name, value=value, reason=f"there is no such field; there are {', '.join(DEFAULTS)}")
        kinds = (int, float) if name == "phi_eps" else (type(DEFAULTS[name]),)
        if type(value) not in kinds:
            raise RuleError(field=name, value=value, reason=f"expected {kinds[-1].__name__}, as {DEFAULTS[name]!r}")
    return _made(given)


def rule_of_key(key: str) -> Rule:
    """The rule whose `Rule.key()` this is; maps of users are those that are defined in this process.

    Raises:
        RuleError: it is none.

    Example:
        >>> rule_of_key(Rule(phi="identity", passes=1, decay_first=True).key()).decay_first
        True
    """
    found = _KEY.fullmatch(key)
    if found is None:
        raise RuleError(
            field="key", value=key, reason="it is no key of a rule, which looks as 'rule(phi=identity,...)'"
        )
    given = {}
    for part in found["fields"].split(","):
        name, _, value = part.partition("=")
        if name not in DEFAULTS:
            raise RuleError(field=name, value=value, reason=f"there is no such field; there are {', '.join(DEFAULTS)}")
        given[name] = _value(name, value)
    rule = _made(given)
    if rule.key() != key:
        raise RuleError(field="key", value=key, reason=f"it has another form than {rule.key()}")
    return rule


def _value(name: str, text: str) -> object:
    """A field as it stands in a key."""
    kind = type(DEFAULTS[name])
    try:
        if kind is bool:
            return {"True": True, "False": False}[text]
        return {int: int, float: float, str: str}[kind](text)
    except (KeyError, ValueError) as error:
        raise RuleError(field=name, value=text, reason=f"it is no {kind.__name__}") from error


def _object_of(text: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise RuleError(field="text", value=text, reason="the text of a rule is a str")
    if len(text) > LONGEST_TEXT:
        raise RuleError(field="text", value=f"{text[:40]}...", reason=f"it is longer than {LONGEST_TEXT} characters")
    try:
        given = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RuleError):
            raise
        raise RuleError(field="text", value=text, reason=f"it is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise RuleError(field="text", value=text, reason='it is no JSON object, such as {"decay": "slot"}')
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RuleError(field=twice, value=given[twice], reason="it is given twice")
    return given


def _no_constant(text: str) -> NoReturn:
    raise RuleError(field="text", value=text, reason="it is no number of JSON")


def _made(given: dict[str, Any]) -> Rule:
    try:
        return Rule(**given)
    except UnknownMapError as error:
        raise RuleError(field=error.role, value=error.name, reason=str(error)) from error
    except MapTextError as error:
        name = next((each for each in ("phi", "link", "out", "view") if str(error.text) in str(given.get(each))), "phi")
        raise RuleError(field=name, value=given.get(name), reason=str(error)) from error
    except (NumberTypeError, SizeError) as error:
        raise RuleError(field=error.name, value=error.value, reason=str(error)) from error
