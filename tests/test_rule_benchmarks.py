"""What the study of rules times and prints; nothing is timed here."""

from __future__ import annotations

import pytest
import torch

from codegen.device import cpu
from codegen.rules import NAMED
from tests.benchmarks.studies.rules import Beside, Row, Sizes, chunks, errors_of, head_line, line_of, main, spec_of
from tests.benchmarks.subjects.rule_calls import rule_subject, training_step
from tuner.measure.timed import Timing
from tuner.verify.inputs.trellis import make_inputs

SIZES = Sizes(tokens=7, trained=5, checked=5, heads=2, dim=8, seconds=0.0, rounds=1)


@pytest.mark.parametrize("column", ["forward", "decode"])
@pytest.mark.parametrize("name", NAMED)
def test_both_calls_compute_the_same(name, column):
    spec = spec_of(name, chunks()[name], SIZES, column)
    bound = rule_subject(spec, make_inputs(spec, (spec.problem.tokens,), cpu()))
    y = bound.operator.y()
    bound.reset()
    assert (y - bound.eager.y()).norm() <= 1e-5 * y.norm()


@pytest.mark.parametrize("name", ["ttt_linear", "mesanet", "rwkv7"])
def test_both_training_steps_compute_the_same(name):
    spec = spec_of(name, chunks()[name], SIZES, "backward")
    bound = rule_subject(spec, make_inputs(spec, (5,), cpu()), gradients=True)
    ours, theirs = training_step(bound, bound.operator)(), training_step(bound, bound.eager)()
    for one, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(one) if other is None else other
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7


def test_chunks_are_those_of_the_workload():
    assert chunks().keys() == NAMED.keys()
    assert (chunks()["ttt_linear"], chunks()["titans"], chunks()["abc"]) == (16, 1, 1)


def test_errors_are_small_and_of_both_kinds():
    found = errors_of("ttt_linear", 16, SIZES, cpu())
    assert found.keys() == {"outputs", "gradients"}
    assert all(0 < error < 1e-4 for error in found.values())


def test_a_row_says_what_is_missing_and_misses_its_targets():
    timed = {"forward": Beside(Timing((1e-3, 2e-3)), Timing((3e-2, 8e-2)), 0.25)}
    row = Row("titans", 1, timed, {"outputs": 1e-7, "gradients": 2e-7}, "decode: no kernel")
    line = line_of(row)
    assert line.startswith("titans           1   1.50 ms  55.0 ms    35x   25%")
    assert line.endswith("    1e-07    2e-07  decode: no kernel")
    assert head_line().split()[:6] == ["rule", "C", "forward", "eager", "ratio", "share"]
    assert [target.reached for target in row.targets()] == [True, False]
    assert [target.reached for target in Row("titans", 1, timed, {}).targets()] == [True, None]


def test_the_command_prints_a_row_for_each_rule(capsys):
    sizes = [f"--{name}=3" for name in ("tokens", "trained", "checked")] + ["--heads=1", "--dim=4", "--seconds=0"]
    assert main(["--rules", "linear,infini", "--columns", "decode", *sizes]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith(("linear", "infini"))] == [
        ["linear", "1"],
        ["infini", "64"],
    ]


def test_a_rule_that_has_no_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--rules", "linear,delta"])
    assert "'delta' is no named rule; there are trellis, linear," in capsys.readouterr().err
