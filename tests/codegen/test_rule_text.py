"""Rules as text and back; texts that are none, and texts that would run something if they were code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from codegen.errors import RuleError, SpecKeyError
from codegen.maps import abs, define, define_loss, max, min, where
from codegen.rule import Rule
from codegen.rule_text import DEFAULTS, LONGEST_TEXT, rule_of_key, rule_of_text, rule_text
from codegen.rules import NAMED
from codegen.spec import Problem, Spec, bucket, spec_of_key
from tests.trellis_ops.family.cases import rules
from tests.trellis_ops.family.runs import examples

CLIPPED = define("clipped", lambda z: min(max(z, -1), 1))
WEIGHED = define_loss("weighed", lambda z, a, g: where(abs(z - a) <= g * g, (z - a) ** 2, 2 * abs(z - a)))


@examples(100)
@drawn(rule=rules())
def test_any_rule_is_read_back(rule: Rule) -> None:
    assert rule_of_text(rule_text(rule)) == rule
    assert rule_of_key(rule.key()) == rule
    spec = Spec(rule, Problem(chunk=1))
    assert spec_of_key(spec.key()) == spec
    assert json.loads(rule_text(rule)).keys() <= DEFAULTS.keys()


@pytest.mark.parametrize("rule", [each.rule for each in NAMED.values()], ids=NAMED)
def test_named_rules_are_read_back(rule: Rule) -> None:
    assert rule_of_text(rule_text(rule)) == rule
    spec = Spec(rule, Problem(chunk=1))
    assert spec_of_key(spec.key()) == spec
    assert spec_of_key(bucket(spec).key()) == bucket(spec)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(phi=CLIPPED, link=CLIPPED, out=CLIPPED, view=CLIPPED, view_gradient=True),
        Rule(phi=WEIGHED, passes=1, erase=True, read="before"),
        Rule(phi="ln_silu", link=CLIPPED),
    ],
    ids=str,
)
def test_maps_of_users(rule: Rule) -> None:
    """A text holds definitions, commas and parentheses in them; a key holds a name and a digest."""
    assert "clipped(z) = " in rule_text(rule) or "weighed(z, a, g) = " in rule_text(rule)
    assert rule_of_text(rule_text(rule)) == rule
    assert rule.key().count("(") == 1
    assert rule_of_key(rule.key()) == rule
    spec = Spec(rule, Problem(chunk=1))
    assert spec_of_key(spec.key()) == spec


def test_trellis_is_an_empty_object() -> None:
    assert rule_text(Rule()) == "{}"
    assert rule_of_text(" {} ") == Rule()


def test_a_whole_number_is_an_epsilon() -> None:
    assert rule_of_text('{"phi_eps": 1}') == Rule(phi_eps=1.0)


def test_a_bucket_keeps_a_step_of_reader_and_writer() -> None:
    rule = NAMED["ttt_linear"].rule
    assert bucket(Spec(rule, Problem())).rule.step_size == "reader_writer"


HOSTILE = [
    ("", "text", "no JSON"),
    ("trellis", "text", "no JSON"),
    ("Rule()", "text", "no JSON"),
    ("null", "text", "no JSON object"),
    ("[]", "text", "no JSON object"),
    ('"yaad"', "text", "no JSON object"),
    ("{'passes': 1}", "text", "no JSON"),
    ('{"passes": 1} {}', "text", "no JSON"),
    ("[" * 50_000, "text", "no JSON"),
    (f'{{"phi": "{"z" * LONGEST_TEXT}"}}', "text", "longer"),
    ('{"phi_eps": NaN}', "text", "no number of JSON"),
    ('{"phi_eps": Infinity}', "text", "no number of JSON"),
    ('{"phi_eps": 1e999}', "phi_eps", "expected a positive finite number"),
    ('{"phi_eps": -1}', "phi_eps", "expected a positive finite number"),
    ('{"phi_eps": true}', "phi_eps", "expected float"),
    ('{"phi_eps": "1e-6"}', "phi_eps", "expected float"),
    ('{"window": 2.0}', "window", "expected int"),
    ('{"window": 0}', "window", "from 1 to 64"),
    ('{"window": ' + "9" * 5000 + "}", "text", "no JSON"),
    ('{"passes": true}', "passes", "expected int"),
    ('{"passes": 3}', "passes", "choose one of"),
    ('{"erase": 1}', "erase", "expected bool"),
    ('{"erase": "True"}', "erase", "expected bool"),
    ('{"decay": null}', "decay", "expected str"),
    ('{"decay": ["slot"]}', "decay", "expected str"),
    ('{"decay": {"slot": 1}}', "decay", "expected str"),
    ('{"decay": "slot", "decay": "none"}', "decay", "given twice"),
    ('{"probe": "own"}', "probe", "passes=2"),
    ('{"__class__": "os.system"}', "__class__", "no such field"),
    ('{"__init__": 1}', "__init__", "no such field"),
    ('{"PHI": "identity"}', "PHI", "no such field"),
    ('{"phi": "nothing"}', "phi", "no known map"),
    ('{"out": "hebbian"}', "out", "no known map"),
    ('{"phi": "f(z) = z.__class__"}', "phi", "no map"),
    ('{"phi": "f(z) = z ** 1000000000"}', "phi", "no map"),
    ('{"phi": "f(z) = (lambda: z)()"}', "phi", "no map"),
    ('{"view": "f(z) = [z for z in z]"}', "view", "no map"),
    ('{"link": "f(z) = open(1)"}', "link", "no map"),
    ('{"phi": "f(z) = ' + "(" * 5000 + '"}', "phi", "no map"),
    ('{"phi": "silu(z) = z"}', "phi", "no map"),
]


@pytest.mark.parametrize(("text", "field", "reason"), HOSTILE, ids=[each[0][:40] for each in HOSTILE])
def test_texts_that_are_no_rules(text: str, field: str, reason: str) -> None:
    with pytest.raises(RuleError) as caught:
        rule_of_text(text)
    assert caught.value.field == field
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", [None, 3, b"{}", {}, Rule()], ids=repr)
def test_what_is_no_text(text: object) -> None:
    with pytest.raises(RuleError, match="a str"):
        rule_of_text(text)


@pytest.mark.parametrize("role", ["phi", "link", "out", "view"])
def test_nothing_of_a_text_is_run(role: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for call in (
        f"__import__('os').system('touch {proof}')",
        f"open('{proof}', 'w')",
        f"exec(\"open('{proof}', 'w')\")",
    ):
        with pytest.raises(RuleError):
            rule_of_text(json.dumps({role: f"f(z) = {call}"}))
        with pytest.raises(RuleError):
            rule_of_text(json.dumps({role: call}))
        with pytest.raises(SpecKeyError):
            spec_of_key(f"{Problem().key()}/rule({role}={call})")
    assert not proof.exists()


@examples(200)
@drawn(
    text=st.text()
    | st.recursive(
        st.none() | st.booleans() | st.text(), lambda x: st.dictionaries(st.sampled_from([*DEFAULTS, "x"]), x)
    ).map(json.dumps)
)
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    try:
        rule = rule_of_text(text)
    except RuleError:
        return
    assert rule_of_text(rule_text(rule)) == rule


KEY = NAMED["kda"].rule.key()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rule(", "trellis("),
        ("rule(", "Rule("),
        ("rule(", "rule(("),
        (")", ",decay=slot)"),
        (")", ",erase=False)"),
        (")", ",unknown=1)"),
        (")", ",)"),
        ("decay_first=True", "decay_first=1"),
        ("decay_first=True", "decay_first=true"),
        ("passes=1", "passes=01"),
        ("passes=1", "passes=1.0"),
        ("passes=1", "passes"),
        ("passes=1,decay=channel", "decay=channel,passes=1"),
        ("1e-06", "0.000001"),
        ("1e-06", "nan"),
        ("phi=identity", "phi=identity@0123456789"),
    ],
)
def test_keys_that_are_none(old: str, new: str) -> None:
    key = KEY.replace(old, new)
    assert key != KEY
    with pytest.raises(RuleError):
        rule_of_key(key)
    with pytest.raises(SpecKeyError):
        spec_of_key(f"{Problem().key()}/{key}")
