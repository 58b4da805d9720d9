"""The rule of a configuration: as data, with its own chunk, and without a setting that contradicts it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from codegen.errors import RuleError, TrellisError, UnknownMapError, UnknownRuleError
from codegen.rule import Rule
from codegen.rules import NAMED
from tests.trellis_ops.lm.rules.models import SMALL, make_model, small_config, some_tokens
from trellis_ops.errors import StateError
from trellis_ops.lm.config import DEFAULT_CHUNK, PRESETS, TrellisConfig
from trellis_ops.lm.model import TrellisLM

pytestmark = pytest.mark.usefixtures("eager")
OWN = Rule(phi="cubic(z) = z ** 3", passes=1, decay="channel")


def test_trellis_by_name_is_the_model_without_a_rule() -> None:
    assert replace(SMALL, rule="trellis") == SMALL and SMALL.rule is None
    assert TrellisConfig.preset("tiny", rule="trellis") == PRESETS["tiny"]
    assert TrellisConfig(chunk_size=None).chunk_size == DEFAULT_CHUNK


def test_trellis_with_other_maps_becomes_settings() -> None:
    rule = Rule(phi="silu", link="softmax", step_size="token")
    assert replace(SMALL, rule=rule) == replace(SMALL, phi="silu", link="softmax", step_size="token", phi_eps=1e-6)


@pytest.mark.parametrize("rule", [*NAMED, OWN, '{"passes": 1, "phi": "hebbian", "link": "identity"}'], ids=str)
def test_a_configuration_with_a_rule_survives_json(rule: str | Rule) -> None:
    config = TrellisConfig.preset("tiny", rule=rule)
    again = TrellisConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.record == config.record
    if isinstance(rule, Rule):
        assert config.record == rule


def test_a_rule_brings_its_chunk_and_keeps_one_that_is_given() -> None:
    assert TrellisConfig.preset("tiny", rule="kda").chunk == TrellisConfig(rule="kda").chunk == 1
    assert TrellisConfig(rule="ttt_linear").chunk == 16
    assert TrellisConfig(rule="deltanet", chunk_size=8).chunk == 8
    assert TrellisConfig(rule="oja", chunk_size="auto", num_slots="auto").resolved().chunk == 1
    with pytest.raises(RuleError, match=r"decay_first.*chunk_size=16 must be 1"):
        replace(PRESETS["tiny"], rule="kda")


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"rule": "deltanetz"}, UnknownRuleError, "'deltanetz' is no known rule"),
        ({"rule": 3}, UnknownRuleError, "rule=3"),
        ({"rule": '{"decay": "never"}'}, RuleError, "decay='never'"),
        ({"rule": "{"}, RuleError, "no JSON"),
        ({"rule": "yaad", "phi": "silu"}, RuleError, "phi='silu': rule='yaad' has 'huber' there"),
        ({"rule": "yaad", "step_size": "token", "phi_eps": 0.5}, RuleError, "phi_eps=0.5"),
        ({"rule": "mesanet", "learned_state": True}, RuleError, "symmetric"),
        ({"link": "solve", "phi": "hebbian"}, RuleError, "rule=Rule"),
        ({"phi": "layer_norm_gain"}, RuleError, "rule=Rule"),
        ({"step_size": "reader_writer"}, UnknownMapError, "head, token"),
    ],
)
def test_what_contradicts_is_refused(changes: dict[str, Any], error: type[TrellisError], part: str) -> None:
    with pytest.raises(error, match=part):
        TrellisConfig(**changes)


def test_a_setting_that_says_the_same_is_taken() -> None:
    assert TrellisConfig(rule="yaad", phi="huber", step_size="token").record == NAMED["yaad"].rule


def test_a_model_with_a_rule_is_saved_and_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    model = TrellisLM(small_config(OWN))
    model.save(tmp_path / "model.pt")
    again = TrellisLM.load(tmp_path / "model.pt")
    tokens = some_tokens()
    assert again.config == model.config and torch.equal(again(tokens)[0], model(tokens)[0])


def test_the_state_of_another_rule_is_refused() -> None:
    tokens = some_tokens()
    for rule in ("titans", "gsa"):
        with pytest.raises(StateError, match="state is that of a model of"):
            make_model(rule)(tokens, make_model("deltanet").first_state(2))
    with pytest.raises(StateError, match=r"model of trellis\(.*computes rule\("):
        make_model("titans")(tokens, TrellisLM(SMALL).double().first_state(2))
    broken = make_model("deltanet").first_state(2)
    broken.layers[1].memories["S"] = "memory"
    with pytest.raises(TypeError, match=r"layers\[1\].S is 'memory'"):
        make_model("deltanet")(tokens, broken)


def test_the_width_of_the_feed_forward_half_is_a_multiple_of_what_is_asked() -> None:
    assert TrellisConfig(width=96, heads=2).mlp_width == 256
    assert TrellisConfig(width=96, heads=2, mlp_ratio=2.5, mlp_multiple=1).mlp_width == 240
