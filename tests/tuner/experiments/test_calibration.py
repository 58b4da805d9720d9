from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuner.cli import main
from tuner.experiments.calibration import CalibrationError, Correlation, Point, correlation, read_points, verdict


def line(slots: int, accuracy: float, seed: int = 0, task: str = "recall") -> str:
    cell = {"task": task, "phi": "identity", "phi_eps": 1.0, "slots": slots, "chunk": 16, "dim": 8, "seed": seed}
    return json.dumps({"cell": cell, "accuracy": {"4": accuracy, "8": accuracy / 2}})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    lines = [line(4, 0.4), line(8, 0.6, seed=0), line(8, 0.8, seed=1), line(16, 0.2), line(16, 0.9, task="text")]
    path.write_text("\n".join(lines))
    return path


def test_points_are_means_over_pairs_and_seeds_beside_the_probe(results):
    points = read_points(results)
    assert [(point.slots, point.trained) for point in points] == [
        (4, pytest.approx(0.3)),
        (8, pytest.approx(0.525)),
        (16, pytest.approx(0.15)),
    ]
    assert all(point.probe > 0 for point in points)
    assert points[0].probe < points[1].probe < points[2].probe


def test_the_rank_correlation_is_that_of_the_orders():
    def points(trained: list[float]) -> list[Point]:
        return [Point("silu", 4, 1, 8, each, place / 10) for place, each in enumerate(trained)]

    assert correlation(points([0.1, 0.2, 0.3, 0.9])).rho == pytest.approx(1.0)
    assert correlation(points([0.9, 0.3, 0.2, 0.1])).rho == pytest.approx(-1.0)
    assert correlation(points([0.1, 0.3, 0.2, 0.4])).rho == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Correlation(12, 0.9, 0.001), "much as training does"),
        (Correlation(12, 0.6, 0.04), "a rough guide"),
        (Correlation(12, 0.6, 0.06), "do not show"),
        (Correlation(12, -0.9, 0.001), "do not show"),
    ],
)
def test_a_verdict_claims_no_more_than_the_figure(found, said):
    assert said in verdict(found)
    assert f"{found.rho:+.2f} over 12 models" in verdict(found)


@pytest.mark.parametrize("text", ["", "no json", line(4, 0.5), '{"cell": 1}'])
def test_files_without_enough_results_are_refused(text, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(CalibrationError, match="cannot calibrate the probe"):
        read_points(path)


def test_the_command(results, capsys):
    assert main(["calibrate", str(results)]) == 0
    said = capsys.readouterr().out
    assert "all: rank correlation" in said
