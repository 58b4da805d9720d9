"""The model's configuration: ranges, presets, and what "auto" means."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codegen.device import Device, cpu
from codegen.errors import SizeError, UnknownMapError
from trellis_ops.errors import BudgetExceededError
from trellis_ops.lm.config import DEFAULT_CHUNK, DEFAULT_SLOTS, PRESETS, MissingRecommendationWarning, TrellisConfig
from trellis_ops.lm.model import TrellisLM
from tuning_db import FOLDER_VARIABLE, FrontRow, Recommendation, Store

AUTO = TrellisConfig(vocab_size=32, layers=1, width=16, heads=2, num_slots="auto", chunk_size="auto")
UNKNOWN = Device("cpu", "a-machine-nobody-has", "x86-64", cores=1)


def recommend(folder: Path, slots: int, chunk: int, device: Device | None = None) -> None:
    point: dict[str, Any] = {
        "slots": slots,
        "chunk": chunk,
        "seconds_per_token": 1e-6,
        "state_bytes": 4096,
        "recall": 0.5,
    }
    key = (device or cpu()).key()
    Store(folder).recommend(
        Recommendation(device=key, **point, front=[FrontRow(**point)], created="2025-01-31T12:00:00Z")
    )


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["125M", "350M", "780M"])
def test_a_preset_has_about_the_parameters_that_its_name_says(name: str) -> None:
    with torch.device("meta"):
        model = TrellisLM(TrellisConfig.preset(name))
    assert model.count_parameters() == pytest.approx(float(name[:-1]) * 1e6, rel=0.15)
    assert model.config.slots == 64


def test_presets_are_made_of_numbers_that_every_machine_agrees_on() -> None:
    for preset in PRESETS.values():
        assert preset.resolved() is preset


def test_a_configuration_survives_json() -> None:
    config = TrellisConfig.preset("tiny", dim_v=8, step_size="token", num_slots="auto")
    assert TrellisConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_slots": 0}, "num_slots=0"),
        ({"num_slots": 257}, "num_slots=257"),
        ({"num_slots": "many"}, "num_slots='many'"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": 2.0}, "chunk_size=2.0"),
        ({"layers": True}, "layers=True"),
        ({"width": 10, "heads": 3}, "width=10"),
        ({"width": 1024, "heads": 2}, "dim_k=512"),
        ({"dim_v": 300}, "dim_v=300"),
        ({"phi_eps": 0.0}, "phi_eps=0.0"),
        ({"init_decay": 1.0}, "init_decay=1.0"),
        ({"init_step_size": float("inf")}, "init_step_size=inf"),
        ({"phi": "relu"}, "phi='relu'"),
        ({"step_size": "layer"}, "step_size='layer'"),
        ({"decode": "fast"}, "decode='fast'"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises((SizeError, UnknownMapError), match=part):
        replace(TrellisConfig(), **changes)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UnknownMapError, match=r"preset='1B'.*125M"):
        TrellisConfig.preset("1B")
    with pytest.raises(UnknownMapError, match=r"field='slots'.*num_slots"):
        TrellisConfig.from_dict({"slots": 3})


def test_auto_takes_the_recommendation_for_the_device(database: Path, eager: None) -> None:
    recommend(database, slots=24, chunk=8)
    recommend(database, slots=48, chunk=32, device=UNKNOWN)
    model = TrellisLM(AUTO)
    assert (model.config.num_slots, model.config.chunk_size) == (24, 8)
    _, state = model(torch.zeros(1, 3, dtype=torch.int64))
    assert state is not None and state.layers[0].S_k.shape == (1, 2, 24, 8)
    elsewhere = AUTO.resolved(UNKNOWN)
    assert (elsewhere.slots, elsewhere.chunk) == (48, 32)


def test_auto_leaves_the_numbers_that_were_given(database: Path) -> None:
    recommend(database, slots=24, chunk=8)
    assert replace(AUTO, num_slots=16).resolved() == replace(AUTO, num_slots=16, chunk_size=8)
    assert replace(AUTO, chunk_size=1).resolved() == replace(AUTO, num_slots=24, chunk_size=1)


def test_auto_without_a_recommendation_says_what_it_takes(database: Path) -> None:
    with pytest.warns(MissingRecommendationWarning, match=r"nobody-has.*num_slots=64, chunk_size=64.*make tune"):
        config = AUTO.resolved(UNKNOWN)
    assert (config.slots, config.chunk) == (DEFAULT_SLOTS, DEFAULT_CHUNK)


def test_auto_does_not_take_a_recommendation_that_no_kernel_supports(database: Path) -> None:
    recommend(database, slots=10**12, chunk=8, device=UNKNOWN)
    with pytest.warns(MissingRecommendationWarning, match=r"slot count 1000000000000 is above 256"):
        assert AUTO.resolved(UNKNOWN).slots == DEFAULT_SLOTS


def row(slots: int, chunk: int, microseconds: float, recall: float) -> FrontRow:
    return FrontRow(
        slots=slots, chunk=chunk, seconds_per_token=microseconds * 1e-6, state_bytes=512 * slots, recall=recall
    )


FRONT = [row(16, 64, 1.0, 0.4), row(32, 64, 2.0, 0.6), row(64, 64, 3.0, 0.7), row(64, 1, 4.0, 0.75)]


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({}, (32, 64)),
        ({"latency_budget_us": 2.0}, (64, 1)),
        ({"latency_budget_us": 1.9}, (64, 64)),
        ({"latency_budget_us": 0.5}, (16, 64)),
        ({"state_budget_bytes": 16 * 2 * 2 * 64 * 4}, (64, 1)),
        ({"state_budget_bytes": 16 * 2 * 2 * 64 * 4 - 1}, (16, 64)),
        ({"state_budget_bytes": 16 * 2 * 2 * 64 * 4, "latency_budget_us": 1.0}, (32, 64)),
    ],
)
def test_auto_takes_the_best_that_fits_into_the_budgets(database: Path, budgets: dict, expected: tuple) -> None:
    knee = FRONT[1]
    point = {"slots": 32, "chunk": 64, "seconds_per_token": knee.seconds_per_token, "state_bytes": 1, "recall": 0.6}
    found = Recommendation(device=UNKNOWN.key(), **point, front=FRONT, created="2025-01-31T12:00:00Z")
    Store(database).recommend(found)
    # Two layers of two heads: half the time of one layer of eight heads. Chunked decoding keeps two states.
    config = replace(AUTO, layers=2, **budgets).resolved(UNKNOWN)
    assert (config.slots, config.chunk) == expected


def test_budgets_that_nothing_fits_into_are_refused_with_the_least_there_is(database: Path) -> None:
    recommend(database, slots=24, chunk=8, device=UNKNOWN)
    with pytest.raises(BudgetExceededError, match=r"latency_budget_us=0\.1 .*the least there is takes 0\.25 us"):
        replace(AUTO, latency_budget_us=0.1).resolved(UNKNOWN)
    for wrong in ({"latency_budget_us": 0.0}, {"state_budget_bytes": 0}):
        with pytest.raises(SizeError):
            replace(AUTO, **wrong)


def test_numbers_never_look_at_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_ops.lm.config.default_store", lambda: pytest.fail("the database was read"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrellisConfig.preset("125M").resolved()


def test_auto_is_no_number_before_it_is_resolved() -> None:
    with pytest.raises(SizeError, match=r"num_slots='auto'.*resolved"):
        _ = AUTO.slots
