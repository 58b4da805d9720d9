"""docs/peers.md has a row for every rule that is compared, and explains every column."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.studies.errors.peers import HEADS
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
