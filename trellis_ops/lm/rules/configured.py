"""The rule of a configuration: as data, and without a setting that contradicts it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from codegen.errors import RuleError, UnknownMapError
from codegen.rule import SOLVE, STEP_SIZES, Rule
from codegen.rule_text import rule_text
from codegen.rules import NAMED, rule_named

OF_THE_RULE: dict[str, Any] = {
    "phi": "ln_silu",
    "link": "ln_silu",
    "out": "identity",
    "phi_eps": 1.0,
    "step_size": "head",
}
"""The settings that say what TRELLIS computes, with their defaults; any other rule says it itself."""


def record_of(rule: str | Rule | None, settings: Mapping[str, Any]) -> Rule:
    """The rule of a configuration; None and "trellis" are TRELLIS with the `settings` of `OF_THE_RULE`.

    Raises:
        UnknownRuleError, RuleError: a rule that there is not.
    """
    if rule is None or rule == "trellis":
        return Rule(**settings)
    return _named(rule) if isinstance(rule, str | Rule) else rule_named(rule)


def configured(
    rule: str | Rule | None, settings: Mapping[str, Any], learned_state: bool
) -> tuple[str | None, dict[str, Any]]:
    """A rule as it is kept, a name or a text, and the settings; TRELLIS with other maps is None and its settings.

    Raises:
        UnknownRuleError: a rule that there is not.
        UnknownMapError: a layout of the step size that TRELLIS has not.
        RuleError: a text of no rule, a setting that the rule contradicts, or one that makes TRELLIS another rule.
    """
    own = rule is None or rule == "trellis"
    if own and settings["step_size"] not in STEP_SIZES:
        raise UnknownMapError(role="step_size", name=settings["step_size"], known=", ".join(STEP_SIZES))
    record = record_of(rule, settings)
    if own:
        _check_trellis(record)
        return None, dict(settings)
    for name, value in settings.items():
        if value not in (OF_THE_RULE[name], getattr(record, name)):
            reason = f"rule={rule!r} has {getattr(record, name)!r} there; leave one of the two out"
            raise RuleError(field=name, value=value, reason=reason)
    if record.is_trellis:
        return None, {name: getattr(record, name) for name in OF_THE_RULE}
    if record.link == SOLVE and learned_state:
        reason = "its first S_k must be symmetric, which a learned one is not; give learned_state=False"
        raise RuleError(field="link", value=SOLVE, reason=reason)
    if record.normaliser != "none" and learned_state:
        reason = "a learned first S would be divided by a normaliser of zero; give learned_state=False"
        raise RuleError(field="normaliser", value=record.normaliser, reason=reason)
    # A text may name a map of this process; another one needs its definition.
    return rule if isinstance(rule, str) and rule in NAMED else rule_text(record), dict(settings)


def check_chunk(rule: Rule, chunk_size: object) -> None:
    """Raise unless a rule may have that chunk size.

    Raises:
        RuleError: chunks of several tokens where z is taken at the decayed memory before each token.
    """
    if rule.decay_first and chunk_size not in (1, "auto"):
        reason = f"z is taken at the memory before each token, so chunk_size={chunk_size!r} must be 1; or give None"
        raise RuleError(field="decay_first", value=True, reason=reason)


def _check_trellis(record: Rule) -> None:
    if not record.is_trellis:
        field = "link" if record.link == SOLVE else "phi"
        reason = "it makes a rule beside TRELLIS, which the model takes as rule=Rule(...)"
        raise RuleError(field=field, value=getattr(record, field), reason=reason)


@functools.cache
def _named(rule: str | Rule) -> Rule:
    return rule_named(rule)
