"""The table of rules: what it measures, keeps, reads and prints; nothing is timed for its speed here."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from codegen.device import cpu
from codegen.recurrence.tensors import HEAD, tensors
from codegen.rules import NAMED
from codegen.schedules.legality import why_illegal
from tests.benchmarks.rule_table import careful
from tests.benchmarks.rule_table.careful import CAREFUL, careful_calls
from tests.benchmarks.rule_table.forms import as_called, forms_of
from tests.benchmarks.rule_table.parts import PARTS, PEER_OF, Ways, measured, setting_of
from tests.benchmarks.rule_table.row import HEADS, MISSING, NONE, RuleRow
from tests.benchmarks.rule_table.saved_parts import Saved, SavedParts
from tests.benchmarks.rule_table.saved_recall import recalled
from tests.benchmarks.studies.rules import Sizes, chunks, spec_of
from tests.benchmarks.studies.rules_table import has_part, main
from tests.benchmarks.subjects.rule_calls import rule_subject
from tests.support.peers.inputs import Sizes as PeerSizes
from tests.support.peers.table import PEERS
from tests.support.relative_error import relative_error
from trellis_ops.lm.recall.cell import Cell, Result
from tuner.verify.inputs.trellis import make_inputs

SIZES = Sizes(tokens=7, trained=5, checked=5, heads=2, dim=8, seconds=0.0, rounds=1)
WAYS = Ways(SIZES, 0.0, (PeerSizes(tokens=9, dim=12),))
FORWARD = {"form": "chunks", "seconds": 2e-3, "share": 0.7, "eager": 30.0, "careful": 4.0}


def saved(part: str, found: dict[str, float | str]) -> Saved:
    return Saved("linear", part, "here", found, "2026-01-01 00:00", "0.1 0.1 0.1")


@pytest.mark.parametrize("name", ["trellis", "linear", "gsa", "kda", "yaad", "in_place_ttt"])
def test_every_form_is_legal_and_one_is_of_each_variant(name):
    spec = as_called(spec_of(name, chunks()[name], replace(SIZES, tokens=300), "forward"))
    forms = forms_of(spec, cpu())
    assert all(why_illegal(spec, schedule, cpu()) is None for schedule in forms.values())
    assert {form.partition(",")[0] for form in forms} == {schedule.variant for schedule in forms.values()}
    assert ("chunks" in forms) == (name not in ("trellis", "yaad"))


@pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")
@pytest.mark.parametrize("name", CAREFUL)
def test_a_careful_form_computes_its_rule(name, monkeypatch):
    monkeypatch.setattr(careful, "PIECE", careful.CHUNK)
    pytest.importorskip("fla", reason="the references are optional: make .venv/installed-peers")
    # Longer than one piece, so that a state is carried.
    spec = spec_of(name, 1, replace(SIZES, tokens=128), "forward")
    bound = rule_subject(spec, make_inputs(spec, (128,), cpu()))
    rule, given, held = bound.eager.args
    per_head = {each.name for each in tensors(rule) if each.per == HEAD}
    calls = careful_calls(CAREFUL[name], given, held, per_head, limit=0)
    assert (calls.compiled, calls.note) == (None, "not compiled")
    wanted, last = bound.eager()
    assert calls.eager.keys() == {"pieces", "whole"} - ({"whole"} if name == "gdn2" else set())
    for run in calls.eager.values():
        y, states = run()
        assert relative_error(y, wanted) < 1e-5
        assert relative_error(states["S"], last["S"]) < 1e-5


def test_parts_are_measured_and_what_cannot_run_says_why():
    forward = measured("forward", "lattice", 1, WAYS, cpu(), PEERS)
    assert forward["form"] == "recurrence"
    assert {"seconds", "share", "eager"} < forward.keys()
    at_once = measured("chunk form", "ttt_linear", 16, WAYS, cpu(), PEERS)
    assert at_once["form"] == "stale_chunks"
    assert at_once.keys() == {"form", "seconds", "share"}
    oracle = measured("oracle", "ttt_linear", 16, WAYS, cpu(), PEERS)
    assert 0 < oracle["outputs"] < 1e-5
    assert 0 < oracle["gradients"] < 1e-4
    assert str(oracle["gradients_of"]).startswith("recurrence_backward d")
    nothing = replace(WAYS, sizes=replace(SIZES, dim=0))
    assert str(measured("decode", "linear", 1, nothing, cpu(), PEERS)["remark"]).startswith("decode: ")


def test_a_setting_changes_with_all_that_a_part_depends_on():
    def setting(part: str = "forward", ways: Ways = WAYS) -> str:
        return setting_of(part, "linear", 1, ways, cpu())

    assert setting() == setting()
    assert setting() != setting(ways=replace(WAYS, compile_limit=1.0))
    assert setting("oracle") != setting("oracle", replace(WAYS, sizes=replace(SIZES, checked=6)))
    assert setting("decode") == setting("decode", replace(WAYS, sizes=replace(SIZES, tokens=8)))


def test_every_rule_that_has_a_peer_or_a_chunk_form_has_its_part():
    compared = {name for name in NAMED if has_part("peer", name)}
    assert compared == (PEERS.keys() & NAMED.keys()) | PEER_OF.keys()
    # ttt_linear computes its chunk of 16 at once, yaad only where it is given chunks; its row has C = 1.
    assert [has_part("chunk form", name) for name in ("kda", "ttt_linear", "yaad", "mesanet")] == [1, 1, 0, 0]


def test_a_chunk_form_has_a_share_of_its_own_to_reach():
    def shares(name: str, share: float) -> list[str]:
        found = {"form": "chunks", "seconds": 4e-3, "share": share}
        row = RuleRow(
            name, chunks()[name], {"forward": saved("forward", FORWARD), "chunk form": saved("", found)}, None
        )
        assert dict(zip(HEADS, row.cells([]), strict=False))["its time"] == "4.00 ms"
        return [str(each) for each in row.targets() if "chunk form" in each.name and each.reached is False]

    assert shares("linear", 0.6) == shares("kda", 0.45) == []
    assert shares("linear", 0.5) == ["MISSED   linear, chunk form: 50%, at least 60% of the ceiling"]
    assert shares("deltanet", 0.4) == ["MISSED   deltanet, chunk form: 40%, at least 45% of the ceiling"]
    assert dict(zip(HEADS, RuleRow("yaad", 1, {}, None).cells([]), strict=False))["its share"] == NONE


def test_a_file_of_parts_keeps_the_newest_and_survives_a_kill(tmp_path):
    path = tmp_path / "new" / "parts.jsonl"
    kept = SavedParts(path)
    kept.add(saved("forward", {"seconds": 1.0}))
    kept.add(saved("forward", FORWARD))
    with path.open("a") as file:
        file.write('{"rule": "lin')
    again = SavedParts(path)
    assert again.find("linear", "forward", "here").found == FORWARD
    assert again.find("linear", "forward", "elsewhere") is None
    again.add(saved("decode", {"eager": 6.0}))
    assert SavedParts(path).find("linear", "decode", "here").found == {"eager": 6.0}
    path.write_text('{"rule": "linear"}\n')
    with pytest.raises(ValueError, match=r"line 1 of .*parts.jsonl is no measured part"):
        SavedParts(path)


def test_recall_is_the_mean_over_seeds_of_the_newest_sizes(tmp_path):
    assert recalled(tmp_path) == {}
    cells = [(Cell(rule="kda", chunk=1, seed=0), 0.5), (Cell(rule="kda", chunk=1, seed=1), 0.7)]
    results = [Result(cell, {4: share}, diverged=share == 0.7) for cell, share in cells]
    results.insert(0, Result(Cell(rule="kda", chunk=1, dim=16), {4: 0.1}))
    lines = [result.to_line() for result in results]
    (tmp_path / "rules.jsonl").write_text("\n".join([*lines, '{"cell"']))
    found = recalled(tmp_path)["kda"]
    assert (found.accuracy, found.seeds) == ({4: pytest.approx(0.6)}, 2)
    assert found.remark == "1 of 2 models diverged, recall of the newest of several sizes"
    (tmp_path / "rules.jsonl").write_text('{"cell": 1}\n')
    with pytest.raises(ValueError, match="line 1 of"):
        recalled(tmp_path)


def test_a_row_says_what_is_missing_and_what_there_is_not():
    parts = dict.fromkeys(PARTS) | {"forward": saved("forward", FORWARD)}
    parts["decode"] = saved("decode", {"remark": "decode: no kernel"})
    row = RuleRow("linear", 1, parts, None)
    cells = dict(zip([*HEADS, "4 pairs", "remark"], row.cells([4]), strict=True))
    assert (cells["form"], cells["forward"], cells["to eager"], cells["to careful"]) == (
        "chunks",
        "2.00 ms",
        "30.0x",
        "4.0x",
    )
    assert (cells["to compiled"], cells["decode"], cells["backward"]) == (NONE, "not run", MISSING)
    assert (cells["error"], cells["4 pairs"], cells["remark"]) == (MISSING, MISSING, "decode: no kernel")
    assert not row.is_complete
    assert [str(target) for target in row.targets() if target.reached is False] == [
        "MISSED   linear, forward: 4.00x, at least 5.00x careful"
    ]
    without = RuleRow("yaad", 1, {part: None for part in PARTS if part != "peer"}, None)
    assert without.cells([])[HEADS.index("beside peer")] == NONE
    assert list(without.remarks()) == ["fla has no reference of it"]


def test_a_row_says_why_it_has_no_form_or_baseline_and_misses_each_that_it_has():
    def row(name: str, **found: float | str) -> RuleRow:
        chunk = chunks()[name]
        return RuleRow(name, chunk, dict.fromkeys(PARTS) | {"forward": saved("forward", FORWARD | found)}, None)

    assert next(row("mesanet", form="recurrence").remarks()).startswith("token by token: ")
    assert "the form has no normaliser='both'" in next(row("infini", form="recurrence").remarks())
    assert next(row("ttt_linear", form="recurrence").remarks()) == "token by token is faster here than its other forms"
    assert list(row("linear", form="recurrence").remarks()) == ["token by token is faster here than its other forms"]
    assert list(row("gla").remarks()) == ["fla has no chunk form of it"]
    assert "products of a chunk's momenta" in next(row("titans").remarks())
    compiled = row("linear", compiled=3.0, careful=6.0)
    assert [str(target) for target in compiled.targets() if target.reached is False] == [
        "MISSED   linear, forward: 3.00x, at least 5.00x compiled"
    ]


@pytest.fixture
def own_threads():
    """The command takes all cores for its process, which here goes on with other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
def test_the_command_reads_what_was_saved_and_names_what_is_missing(tmp_path, capsys):
    sizes = ["--tokens=7", "--trained=5", "--checked=5", "--heads=2", "--dim=8", "--rules=linear,yaad"]
    setting = setting_of("forward", "linear", 1, replace(WAYS, compile_limit=300.0), cpu())
    line = json.dumps(asdict(replace(saved("forward", FORWARD), setting=setting)))
    (tmp_path / "parts.jsonl").write_text(f"{line}\n")
    folders = [f"--folder={tmp_path}", f"--recall={tmp_path / 'none'}"]
    assert main([*sizes, *folders, "--parts"]) == 0
    printed = capsys.readouterr().out
    assert "| linear | 1 | chunks | 2.00 ms | 30.0x | 4.0x |" in printed
    assert "| yaad | 1 | missing | missing |" in printed
    assert "missing, forward: yaad\n" in printed
    assert f"missing, recall in {tmp_path / 'none'}: linear, yaad\n" in printed
    assert main([*sizes, *folders, "--parts", "--enforce"]) == 1
