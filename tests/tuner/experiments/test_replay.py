from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tuner.cli import main
from tuner.experiments.replay import RECORDED, RecordedSpace, RecordingError, read_spaces, replay, trials_needed
from tuner.space.sampler import default_sampler

NEEDS_SCIPY = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="the sampler gp needs scipy")


@pytest.fixture(scope="module")
def spaces() -> tuple[RecordedSpace, ...]:
    return read_spaces()


def test_the_shipped_recording_holds_whole_spaces(spaces):
    assert sum(len(space.points) for space in spaces) > 2000
    for space in spaces:
        keys = [tuple(point.items()) for point in space.points]
        assert len(set(keys)) == len(keys) >= 270
        assert {name for point in space.points for name in point} == set(space.points[0])
        assert 0.0 < min(space.seconds) < max(space.seconds)
        assert space.allowed == max(40, int(0.15 * len(keys)))


def test_the_default_sampler_keeps_to_what_is_allowed_and_beats_chance(spaces):
    space = spaces[1]
    guided = trials_needed(space, default_sampler(), 0, ahead=2)
    chance = [trials_needed(space, "random", seed) for seed in range(20)]
    assert guided <= space.allowed
    assert guided < sorted(chance)[10]


@pytest.mark.parametrize("sampler", ["random", "tpe", pytest.param("gp", marks=NEEDS_SCIPY)])
def test_a_replay_is_repeatable_and_finds_the_only_good_point(sampler):
    points = tuple({"a": a, "b": b} for a in range(3) for b in range(3))
    space = RecordedSpace("small", points, tuple(1.0 + (p["a"] - 1) ** 2 + (p["b"] - 2) ** 2 for p in points))
    (one,), (two,) = (replay([space], [sampler], 3, lambda done: None) for _ in range(2))
    assert one == two
    assert len(one.trials) == 3
    assert all(1 <= count <= 9 for count in one.trials)


def test_random_search_needs_what_it_must():
    points = tuple({"a": a} for a in range(100))
    space = RecordedSpace("flat", points, (1.0, *(2.0 for _ in points[1:])))
    trials = [trials_needed(space, "random", seed) for seed in range(60)]
    assert 40 < sum(trials) / len(trials) < 61


@pytest.mark.parametrize(
    "text", ["", "space,variant\na,fused\n", "space,a,microseconds\ns,1,fast\n", "space,a,microseconds\ns,1,-1\n"]
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "spaces.csv"
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"spaces\.csv is no recording"):
        read_spaces(path)
    with pytest.raises(RecordingError):
        read_spaces(tmp_path / "missing.csv")


def test_the_command_prints_a_row_for_each_space_and_sampler(tmp_path: Path, capsys):
    lines = RECORDED.read_text().splitlines()
    path = tmp_path / "spaces.csv"
    path.write_text("\n".join([lines[0], *lines[1:40]]) + "\n")
    assert main(["replay", "--file", str(path), "--seeds", "2", "--sampler", "random", "--sampler", "tpe"]) == 0
    said = capsys.readouterr().out
    assert "Trials until within 5% of the best" in said
    assert said.count("39") >= 2
