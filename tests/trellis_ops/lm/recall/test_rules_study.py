"""The study of rules: equal cost, one table, going on where it was stopped."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codegen.rule_text import rule_of_text
from codegen.rules import NAMED
from tests.trellis_ops.lm.train.commands import TEXT
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.recall import grids
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.cli import main
from trellis_ops.lm.recall.equal_sizes import of_equal_cost
from trellis_ops.lm.recall.learning import learn
from trellis_ops.lm.recall.ledger import Ledger
from trellis_ops.lm.recall.report.rules_page import rules_table

pytestmark = pytest.mark.usefixtures("eager")
SIZES = ["--layers", "1", "--heads", "2", "--dim", "8", "--vocab", "16", "--pairs", "2", "4", "--batch", "4"]


def cost(cell: Cell) -> tuple[int, int]:
    with torch.device("meta"):
        model = TrellisLM(cell.config())
        return model.count_parameters(), model.first_state(1).nbytes()


@pytest.mark.parametrize("name", NAMED)
def test_every_rule_costs_what_trellis_does(name: str) -> None:
    parameters, state_bytes = cost(grids.OF_RULES)
    found = cost(of_equal_cost(grids.OF_RULES, name))
    assert found == (pytest.approx(parameters, rel=0.01), pytest.approx(state_bytes, rel=0.05))


def test_the_sizes_are_those_of_every_seed_and_task() -> None:
    one = of_equal_cost(Cell(seed=3, task="text", text="a text", pairs=(), batch=8), "titans")
    other = of_equal_cost(Cell(), "titans")
    assert (one.dim_k, one.dim_v, one.chunk, one.mlp) == (other.dim_k, other.dim_v, other.chunk, other.mlp)
    assert (one.seed, one.task, one.text, one.batch) == (3, "text", "a text", 8)


def test_windows_of_a_text_are_apart_where_the_memory_does_not_forget(tmp_path: Path) -> None:
    text = replace(grids.OF_RULES, task="text", text="a text", pairs=())
    apart = {name for name in NAMED if not of_equal_cost(text, name).carry}
    assert apart == {"abc", "deltanet", "ttt_linear", "infini", "lattice", "in_place_ttt"}
    assert all(of_equal_cost(grids.OF_RULES, name).carry for name in NAMED)
    (tmp_path / "text.txt").write_bytes(TEXT)
    cell = Cell(task="text", text="a text", pairs=(), rule="titans", heads=1, dim=8, batch=2, steps=2)
    joined, separate = (learn(replace(cell, carry=carry), [tmp_path]) for carry in (True, False))
    assert joined.bits_per_byte != separate.bits_per_byte


def test_a_study_of_rules_is_one_table_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    command = ["rules", *SIZES, "--slots", "4", "--chunk", "4", "--folder", str(tmp_path), "--workers", "0"]
    command += ["--steps", "2", "--rule", "trellis", "gated_deltanet", "--seed", "0", "1"]
    main([*command, "--minutes", "0"])
    assert "0 of 4 cells have a result" in capsys.readouterr().out
    main(command)
    results = Ledger(tmp_path / "rules.jsonl").results()
    assert [(each.cell.rule, each.cell.seed) for each in results] == [
        ("trellis", 0),
        ("gated_deltanet", 0),
        ("trellis", 1),
        ("gated_deltanet", 1),
    ]
    assert all((each.parameters, each.state_bytes) == cost(each.cell) and each.decode_us > 0 for each in results)
    main([*command, "--text", str(tmp_path / "text.txt")])
    printed = capsys.readouterr().out
    assert "5 of 8: " in printed and "| gated_deltanet | D = " in printed
    page = (tmp_path / "rules.md").read_text()
    assert "from 8 results of 8" in page and page.count("| gated_deltanet | ") == 1
    assert (tmp_path / "rules.csv").read_text().count("\n") == 1 + 4 * 2 + 4
    (tmp_path / "rules.md").unlink()
    main([*command, "--times"])
    page = (tmp_path / "rules.md").read_text()
    assert "from 4 results of 4" in page and "--times" not in page
    assert len(Ledger(tmp_path / "rules.jsonl").results()) == 8
    with pytest.raises(SystemExit):
        main([*command, "--times", "--minutes", "1"])
    assert "--minutes: not allowed with argument --times" in capsys.readouterr().err


def test_a_rule_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'deltanetz' is no known rule"):
        main(["rules", "--rule", "deltanetz", "--folder", str(tmp_path)])


def test_a_row_has_what_there_is() -> None:
    cell = Cell(rule="gated_deltanet", chunk=1)
    lost = Result(cell, {4: 0.0}, steps=1, diverged=True)
    found = Result(cell, {4: 0.5}, parameters=1234, state_bytes=5678, decode_us=9.0)
    text = Result(replace(cell, task="text"), bits_per_byte=2.5)
    row = rules_table([lost, found, text]).splitlines()[-1]
    learned, costs = "0.25 ± 0.35 | 2.500 | carried", "1,234 | 5,678 | 9"
    assert row == f"| gated_deltanet | D = 32, 32, C = 1 | {learned} | {costs} | 2, 1 (1 of 3 diverged) |"


def test_the_study_of_ones_own_rule_in_the_documents_trains_that_rule(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs/rules.md").read_text()
    first, *lines = page[page.index("RULE='") :].partition("```")[0].splitlines()
    (own,) = (word.removeprefix("RULE=") for word in shlex.split(first))
    (words,) = (shlex.split(line) for line in lines if "trellis_ops.lm.recall" in line)
    options = [own if word == "$RULE" else word for word in words[words.index("trellis_ops.lm.recall") + 1 :]]
    options[options.index("--folder") + 1] = str(tmp_path)
    main([*options, *SIZES, "--slots", "4", "--chunk", "4", "--steps", "2", "--workers", "0"])
    trained = [each.cell for each in Ledger(tmp_path / "rules.jsonl").results()]
    assert [cell.rule for cell in trained] == ["trellis", own]
    assert trained[1].config().record == rule_of_text(own)


def test_times_are_taken_again_of_what_was_trained_and_nothing_is_trained(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rules.jsonl"
    cell = Cell(rule="gla", layers=1, heads=1, dim=8, vocab=16, pairs=(4,))
    known = Result(cell, {4: 0.5}, steps=7, parameters=3, state_bytes=5, decode_us=1e9)
    text = replace(known, cell=replace(cell, task="text", text="a text", pairs=()), accuracy={}, decode_us=None)
    for each in (known, text):
        Ledger(path).add(each)
    main(["rules", "--folder", str(tmp_path), "--times"])
    again, unchanged = Ledger(path).results()
    assert 0 < again.decode_us < 1e9
    assert (replace(again, decode_us=1e9), unchanged) == (known, text)
    assert capsys.readouterr().out.count("1 of 1: gla") == 1
