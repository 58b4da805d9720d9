"""Named rules."""

from __future__ import annotations

import dataclasses
import re

import pytest

from codegen.errors import UnknownRuleError
from codegen.maps import define
from codegen.maps.acceptance import check_expression
from codegen.maps.registry import Map
from codegen.rule import Rule
from codegen.rules import LAYER_NORM, NAMED, UNIT_ROW, rule_named

NAMES = (
    "trellis linear gla gsa abc deltanet gated_deltanet delta_product comba kda gdn2 rwkv7 oja ttt_linear titans yaad "
    "moneta omeganet infini mesanet lattice memora in_place_ttt"
)


def test_the_names() -> None:
    assert list(NAMED) == NAMES.split()
    assert all(each.name == name for name, each in NAMED.items())


@pytest.mark.parametrize("name", NAMED)
def test_every_rule_has_its_equation_and_source(name: str) -> None:
    each = NAMED[name]
    assert "\n" not in each.equation
    assert re.search(r"arXiv \d{4}\.\d{5}|fla/ops/", each.source)
    assert rule_named(name) is each.rule is rule_named(each.rule)


def test_trellis_is_the_rule_of_all_defaults() -> None:
    assert rule_named("trellis") == Rule()


def test_a_rule_stays_when_a_user_takes_the_name_of_its_map() -> None:
    before = rule_named("lattice").key()
    define("unit_row", lambda z: z)
    assert rule_named("lattice").key() == before


@pytest.mark.parametrize("made", [LAYER_NORM, UNIT_ROW], ids=lambda made: made.name)
def test_a_map_that_is_not_checked_on_import_would_be_accepted(made: Map) -> None:
    check_expression(made.name, made.expression, made.is_loss)


def test_a_named_rule_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NAMED["gla"].rule = Rule()


@pytest.mark.parametrize("name", ["delta", "TRELLIS", "", " trellis", None, 3, ["gla"], b"gla"], ids=repr)
def test_a_name_that_no_rule_has(name: object) -> None:
    with pytest.raises(UnknownRuleError, match=r"choose one of: trellis, linear, gla, .*, in_place_ttt") as caught:
        rule_named(name)
    assert caught.value.name == name
