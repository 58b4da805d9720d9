"""What the benchmarks and studies make of their numbers: targets, exponents, kernels cut short. Nothing is timed."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from codegen.device import NAMED
from codegen.render import Source, render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.benchmarks.results.comparison import TUNED, Comparison
from tests.benchmarks.results.summary import Overhead, Results
from tests.benchmarks.results.targets import Target
from tests.benchmarks.studies.growth.decode_memory import Held, points
from tests.benchmarks.studies.growth.power_law import fit
from tests.benchmarks.studies.growth.scaling import Growth, axes, targets_of
from tests.benchmarks.studies.growth.scaling_page import draw, page
from tests.benchmarks.studies.kernels.breakdown import lines_of, pieces_of
from tests.benchmarks.studies.kernels.kernel_parts import parts_of
from tests.benchmarks.subjects.cases import LEAST, Case, Least, cases
from tests.benchmarks.subjects.relations import Relation
from tests.benchmarks.subjects.rivals import CEILING, COMPILE, EAGER
from tuner.measure.timed import Timing

DEVICE = NAMED["x86-64-v4"]


def comparison(seconds: dict[str, float], share: float) -> Comparison:
    case = Case("prefill", Spec(Rule(), Problem()), Least(to_eager=8.0, to_compile=2.5, share=0.65))
    floor = {CEILING: share * seconds.get(TUNED, 0.01)}
    return Comparison(case, {}, {name: Timing((value, value)) for name, value in (seconds | floor).items()})


def test_every_target_that_is_reached_missed_or_open_says_so() -> None:
    found = comparison({EAGER: 0.08, COMPILE: 0.02, TUNED: 0.01}, share=0.7).targets()
    assert [target.reached for target in found] == [True, False, True]
    assert str(found[1]) == "MISSED   prefill: 2.0x, at least 2.5x torch.compile (2.9x at the ceiling)"
    left_out = comparison({EAGER: 0.08, TUNED: 0.01}, share=0.6).targets()
    assert [target.reached for target in left_out] == [True, None, False]
    assert str(left_out[1]).startswith("open     prefill: not measured")


def test_a_tuned_operator_that_did_not_run_misses_its_targets() -> None:
    assert [target.reached for target in comparison({EAGER: 0.08, COMPILE: 0.02}, share=0.7).targets()] == [False] * 3


def test_what_is_missed_is_collected_from_everywhere() -> None:
    results = Results()
    results.comparisons["prefill"] = comparison({EAGER: 0.01, COMPILE: 0.03, TUNED: 0.01}, share=0.7)
    results.overheads.append(Overhead("a call", (2e-5, 3e-5, 4e-5), 2.5e-5, ""))
    results.targets.append(Target("growth", 1.0, 1.05, False))
    assert [target.name for target in results.missed()] == ["prefill", "a call"]


def test_a_relation_is_the_median_of_the_rounds() -> None:
    timings = {"a": Timing((2.0, 30.0, 2.2)), "b": Timing((1.0, 10.0, 2.0))}
    relation = Relation("a to b", "a", "b", 1.3, False, timings)
    assert relation.target().found == 2.0
    assert relation.target().reached is False


def test_every_target_is_on_a_spec_of_the_workload() -> None:
    assert {case.spec.problem for case in cases(DEVICE) if case.least != Least()} == set(LEAST)


def test_the_exponent_of_a_power_law_is_found() -> None:
    xs = [1.0, 2.0, 4.0, 8.0, 16.0]
    law = fit(xs, [3.0 * x**1.5 for x in xs])
    assert (law.factor, law.exponent) == (pytest.approx(3.0), pytest.approx(1.5))
    assert law.standard_error == pytest.approx(0.0, abs=1e-6)


def test_the_standard_error_is_that_of_least_squares() -> None:
    # Residuals +-d about the line in a pattern that leaves its slope at 1: their squares sum to 4 d^2 over 2 degrees.
    d, xs = 0.1, [0.0, 1.0, 2.0, 3.0]
    ys = [x + sign * d for x, sign in zip(xs, (1, -1, -1, 1), strict=True)]
    law = fit([math.exp(x) for x in xs], [math.exp(y) for y in ys])
    assert law.exponent == pytest.approx(1.0)
    assert law.standard_error == pytest.approx(math.sqrt(4 * d**2 / 2 / 5.0))


@pytest.mark.parametrize(("xs", "ys"), [([2.0, 2.0], [1.0, 3.0]), ([1.0, 2.0], [1.0])])
def test_an_exponent_of_too_little_is_refused(xs: list[float], ys: list[float]) -> None:
    with pytest.raises(ValueError, match="two points"):
        fit(xs, ys)


def study(exponent: float) -> list[Growth]:
    growths = []
    for axis in axes(cores=2):
        timings = {value: Timing((1e-3 * value**exponent,) * 2) for value in axis.problems}
        law = fit(list(timings), [timing.seconds for timing in timings.values()])
        growths.append(Growth(axis, timings, law, law, law))
    return growths


@pytest.mark.parametrize(
    ("exponent", "state", "peak", "reached"),
    [
        (1.02, 100, 1000, [True, True, True]),
        (1.04, 100, 1000, [False, True, True]),
        (0.96, 101, 1000, [False, False, True]),
        (1.0, 100, 1100, [True, True, False]),
    ],
)
def test_growth_is_held_against_its_targets(exponent: float, state: int, peak: int, reached: list[bool]) -> None:
    held = [Held(500, 100, 1000, 1e-3), Held(1000, state, peak, 1e-3)]
    assert [target.reached for target in targets_of(study(exponent), held)] == reached


def test_the_study_grows_one_size_at_a_time_over_at_least_five_points() -> None:
    for axis in axes(cores=2):
        assert len(axis.problems) >= 5
        values = [(p.batch * p.heads, p.tokens, p.slots, (p.dim_k, p.dim_v)) for p in axis.problems.values()]
        assert sum(len(set(sizes)) > 1 for sizes in zip(*values, strict=True)) == 1


def test_the_page_and_the_picture_are_written(tmp_path: Path) -> None:
    held = [Held(500, 100, 1000, 1e-3), Held(1000, 100, 1000, 1e-3)]
    text = page(study(1.0), held, targets_of(study(1.0), held), "0.0")
    assert "T         512   8192     1.000" in text
    assert text.count("reached  ") == 3
    draw(study(1.0), held, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_decode_reports_at_points_that_double() -> None:
    assert points(3000) == [500, 1000, 2000, 3000]
    assert points(2000) == [500, 1000, 2000]


def fused(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path))
    spec = Spec(Rule(), Problem(chunk=chunk))
    return render("trellis_fused", spec, default("tvm", spec, DEVICE), DEVICE)


@pytest.mark.parametrize("chunk", [64, 5])
def test_the_last_part_of_a_kernel_is_the_kernel(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fused(chunk, tmp_path, monkeypatch)
    parts = parts_of(source)
    assert ast.dump(ast.parse(parts[-1].source.text)) == ast.dump(ast.parse(source.text))
    assert len({part.source.digest for part in parts}) == len(parts)
    assert all(part.source.path.read_text() == part.source.text for part in parts)
    assert {"gates", "loads", "transposes", "products", "maps", "stores"} <= {part.kind for part in parts}


def test_a_map_is_told_apart_from_the_product_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [(part.label.split()[0], part.kind) for part in parts_of(fused(64, tmp_path, monkeypatch))]
    assert labels.count(("memory.project", "products")) == labels.count(("codes_of", "maps")) == 2
    assert "other" not in [kind for _, kind in labels[1:]]


def test_pieces_sum_to_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(fused(64, tmp_path, monkeypatch))
    pieces = pieces_of(parts, [1e-3 * (number + 1) for number in range(len(parts))])
    assert [piece.seconds for piece in pieces] == pytest.approx([1e-3] * len(parts))
    assert list(lines_of(pieces))[-1].split() == ["all", f"{len(parts)}.0", "ms", "100.0%"]
