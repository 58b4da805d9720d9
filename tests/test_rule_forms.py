"""The table of errors by rule and form: a cell for every form, an error or the number of a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codegen.device import cpu
from codegen.rules import NAMED
from tests.benchmarks.rule_table.errors_by_form import EAGER, FormCall, errors_by_form, why_none
from tests.benchmarks.studies.errors import rule_forms
from tests.benchmarks.studies.errors.rule_forms import main, tables_of

TOKENS, DIM = 9, 8
PAGE = (Path(__file__).parents[1] / "docs/rules-errors.md").read_text()


def call(name: str, direction: str = "forward") -> FormCall:
    return FormCall(NAMED[name].rule, "memory_attention", direction, TOKENS, DIM)


@pytest.mark.parametrize("name", ["gla", "mesanet", "infini"])
def test_the_eager_walk_has_the_gradients_of_the_oracle(name):
    assert 0 < errors_by_form(call(name, "backward"), EAGER, cpu())[EAGER] < 1e-5


def test_a_form_that_does_not_compute_a_rule_says_why():
    found = errors_by_form(call("oja"), "tvm", cpu())
    assert 0 < found.pop("recurrence") < 1e-5
    assert found["chunks"].startswith("a decay of each slot has the form in two passes only")
    assert found["split_one_pass"].startswith("with decay_first z is beta S w")
    assert found["stale_chunks"] == "the form has no transposed=True"
    spec = next(call("gated_deltanet").specs())
    # Most of its schedules lack something else too, which others have.
    assert why_none(replace(spec, problem=replace(spec.problem, chunk=16)), "triton", "stale_chunks", cpu()) == (
        "variant 'stale_chunks' takes z at the memory as it was, not decayed first, on Triton"
    )


def test_a_form_that_needs_chunks_is_judged_with_some():
    found = errors_by_form(call("titans"), "tvm", cpu())
    assert {variant for variant, error in found.items() if isinstance(error, float)} == {"recurrence", "stale_chunks"}
    assert found["stale_chunks"] < 1e-5


def options(folder, *backends: str) -> list[str]:
    sizes = [f"--tokens={TOKENS}", f"--dim={DIM}"]
    return [f"--folder={folder}", "--rules=trellis,titans", *sizes, "--backends", *backends]


def test_the_command_keeps_what_it_computes_and_interprets_triton_in_a_process_of_its_own(tmp_path, capsys):
    assert main(options(tmp_path, EAGER, "triton")) == 0
    lines = capsys.readouterr().out.splitlines()
    gradients = lines[lines.index("### Gradients") :]
    cells = [cell.strip() for cell in gradients[5].split("|")[1:-1]]
    assert (cells[0], cells[2:4]) == ("titans", ["missing", "missing"])
    assert 0 < float(cells[1]) < 1e-5
    assert 0 < float(cells[4]) < 1e-5
    assert f"{cells[5].strip('[]')}. the form has no momentum=True" in lines
    assert "### TRELLIS by its own operators, gradients" in lines
    kept = (tmp_path / "errors.jsonl").read_text()
    assert main(options(tmp_path, EAGER)) == 0
    assert (tmp_path / "errors.jsonl").read_text() == kept
    assert capsys.readouterr().out.splitlines() == lines


def test_an_error_that_is_too_large_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rule_forms, "errors_by_form", lambda *_: {EAGER: 2e-5})
    assert main(options(tmp_path, EAGER)) == 0
    missed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSED")]
    assert missed == [
        f"MISSED   {name}, Outputs and final states, eager: 2.0e-05, at most 1.0e-05" for name in ("trellis", "titans")
    ]


def test_the_page_has_a_row_of_every_rule_and_a_column_of_every_form():
    for table in tables_of(list(NAMED)):
        _, _, text = PAGE.partition(f"### {table.title}\n")
        assert text, table.title
        head, _, *rows = [line for line in text.partition("\n### ")[0].splitlines() if line.startswith("|")]
        assert head.count("|") - 2 == len(table.columns())
        assert [row.split("|")[1].strip() for row in rows] == list(table.rules)
    assert "missing |" not in PAGE
