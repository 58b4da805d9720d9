"""docs/peers.md has a row for every rule that is compared, and explains every column; its command goes on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.benchmarks.studies.errors import peers
from tests.benchmarks.studies.errors.peers import HEADS
from tests.support.peers.inputs import CROSS, SIZES, Sizes
from tests.support.peers.table import PEERS

LINES = (Path(__file__).parents[4] / "docs/peers.md").read_text().splitlines()
CELLS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line.startswith("|")]


def test_every_rule_has_a_row():
    rows = CELLS[CELLS.index(list(HEADS)) + 2 :]
    assert [row[0] for row in rows] == list(PEERS)
    assert [row[-1] for row in rows] == [peer.remark for peer in PEERS.values()]


def test_every_column_is_explained():
    explained = CELLS[CELLS.index(["column", "meaning"]) + 2 :]
    assert [row[0] for row in explained[: len(HEADS)]] == list(HEADS)


@pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")
def test_the_command_keeps_every_size_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    pytest.importorskip("fla", reason="the references are optional: make .venv/installed-peers")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # Of this process, which goes on with other tests.
    monkeypatch.setattr(peers, "CROSS", (Sizes(tokens=9, dim=12), Sizes(tokens=9, dim=12, gate=0.1)))
    command = ["gla", "--folder", str(tmp_path)]
    peers.main([*command, "--minutes", "0"])
    assert "missing: 2 of 2 sizes of gla" in capsys.readouterr().out
    peers.main(command)
    cells = capsys.readouterr().out.splitlines()[2].split("|")
    output, _, gradient, double, *of_kernels = (float(cell.split()[0]) for cell in cells[3:9])
    assert max(output, gradient, *of_kernels) < 1e-5 and double < 1e-11
    assert min(of_kernels) > 0
    kept = (tmp_path / "peers.jsonl").read_bytes()
    peers.main(command)
    assert (tmp_path / "peers.jsonl").read_bytes() == kept and kept.count(b"\n") == 2


def test_the_full_cross_has_all_combinations_of_the_recipe():
    assert {(each.tokens, each.dim, each.gate) for each in CROSS} == set(
        itertools.product((63, 500), (60, 64, 128), (0.1, 1.0, 10.0))
    )
    assert set(SIZES) <= set(CROSS)
