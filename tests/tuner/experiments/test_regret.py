from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tuner.conftest import UPDATE
from tuner.budget import Budget
from tuner.cli import main
from tuner.experiments.regret import regret


@pytest.fixture(autouse=True)
def short_finals(monkeypatch):
    monkeypatch.setattr("tuner.experiments.regret._SECONDS_EACH", 0.1)


def test_the_regret_of_each_winner_is_against_the_best_of_all(session):
    ended = []
    found = regret(UPDATE, replace(session, budget=Budget(trials=3)), 3, ended.append)
    assert [tuning.seed for tuning in found.tunings] == [0, 1, 2]
    assert list(found.tunings) == ended
    assert found.best == min(found.seconds, key=lambda key: found.seconds[key])
    for tuning in found.tunings:
        assert tuning.trials == 3
        assert tuning.winner in tuning.finalists
        assert {each.key() for each in tuning.finalists} <= found.seconds.keys()
        assert found.of(tuning) >= 0.0
    assert 0.0 <= found.mean <= max(found.of(tuning) for tuning in found.tunings)
    assert session.store.records() == (), "an experiment commits nothing"


@pytest.mark.usefixtures("shared_workers")
def test_the_command_prints_each_tuning_and_the_mean(capsys):
    text = "step: operator=trellis_step, tokens=1, heads=2, dim=8, slots=8, chunk=1"
    assert main(["regret", "--spec", text, "--runs", "2", "--budget", "2"]) == 0
    said = capsys.readouterr().out
    assert "step: 2 tunings, 2 trials each" in said
    assert "seed 1: 2 tried" in said
    assert "mean regret" in said
