"""Studies: cells learn, results survive a kill, and tables show what there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codegen.errors import FileWriteError
from tests.trellis_ops.limited_files import limited_files
from tests.trellis_ops.lm.train.commands import ROOT, TEXT, environment
from trellis_ops.lm.recall import grids
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.cli import main
from trellis_ops.lm.recall.learning import learn
from trellis_ops.lm.recall.ledger import Ledger
from trellis_ops.lm.recall.one_change import one_change_table, said
from trellis_ops.lm.recall.report.page import beyond, fits, write_page
from trellis_ops.lm.recall.report.pages import MARK
from trellis_ops.lm.recall.report.tables import curve_table
from trellis_ops.lm.train.errors import CheckpointError
from trellis_ops.lm.train.saving.exclusive import exclusive

pytestmark = pytest.mark.usefixtures("eager")
SMALL = Cell(layers=1, heads=2, dim=16, vocab=16, pairs=(4,), slots=16, chunk=4, batch=32, steps=3)
SIZES = ["--layers", "1", "--heads", "2", "--dim", "4", "--vocab", "16", "--pairs", "2", "4", "--batch", "4"]
ABLATION = [
    "ablation",
    *SIZES,
    "--slots",
    "2",
    "--chunk",
    "4",
    "1",
    "--phi-eps",
    "0.01",
    "1",
    "--seed",
    "0",
    "--init-step-size",
    "0.1",
]


def test_a_model_learns_to_recall() -> None:
    result = learn(Cell(**{**vars(SMALL), "steps": 150, "learning_rate": 0.01, "phi": "identity"}))
    assert result.accuracy[4] > 0.5
    assert learn(SMALL).accuracy == learn(SMALL).accuracy
    assert learn(SMALL).accuracy[4] < 0.4


def test_a_loss_that_is_no_number_is_a_result() -> None:
    result = learn(Cell(**{**vars(SMALL), "steps": 20, "learning_rate": 1e30}))
    assert result.diverged and result.accuracy == {4: 0.0} and result.steps < 20


def test_a_grid_holds_no_cell_twice() -> None:
    cells = grids.cells(grids.ABLATION, Cell())
    assert len(cells) == len({cell.key() for cell in cells}) == 3 * 3 * (3 + 4) * 2 * 2 * 2 * 3
    assert {cell.chunk for cell in cells[-len(cells) // 3 :]} == {1}
    assert len(grids.cells(grids.CURVE, Cell())) == 18


def test_a_grid_is_trained_from_its_middle() -> None:
    axes = {"seed": (0, 1), "phi": ("ln_silu", "silu"), "phi_eps": (1.0, 0.01, 1e-6), "slots": (4,)}
    found = grids.from_the_middle(grids.cells(axes, Cell()), axes)
    assert grids.middle(axes) == Cell(slots=4)
    assert [each.phi_eps for each in found] == [1.0, 1.0, 0.01, 1e-6, 1.0, 0.01, 1e-6, 1.0]
    assert [grids.changes(each, axes) for each in found[:2]] == [(), ()]
    # Where phi_eps has no effect it is no change, whatever its value.
    assert [grids.changes(each, axes) for each in found if each.phi == "silu"] == [("phi",)] * 2
    assert grids.from_the_middle(found, axes, most=0) == found[:2]
    assert said(found[3], axes) == "phi_eps 1e-06"


def test_one_change_at_a_time_has_its_spread() -> None:
    middle = [Result(Cell(seed=seed), {4: share, 16: 0.5}) for seed, share in enumerate((0.25, 0.75))]
    changed = [Result(Cell(learned_state=True), {4: 1.0, 16: 0.25}), Result(Cell(task="text"), bits_per_byte=2.5)]
    lost = [Result(Cell(phi="silu", chunk=1), {4: 0.0, 16: 0.0}, diverged=True), Result(Cell(chunk=1), {4: 0.5})]
    lines = one_change_table([*changed, *middle, *lost]).splitlines()
    assert lines[0] == "| change | 4 pairs | 16 pairs | text | seeds |"
    assert lines[2] == "| none | 0.50 ± 0.35 | 0.50 ± 0.00 | 2.500 | 2, 1 |"
    assert lines[3:] == ["| first state learned | 1.00 | 0.25 |  | 1 |", "| C 1 | 0.50 |  |  | 1 |"]


def test_a_curve_has_its_spread_and_its_seeds() -> None:
    twice = [Result(Cell(seed=seed), {4: share}) for seed, share in enumerate((0.25, 0.75))]
    lines = curve_table([*twice, Result(Cell(phi="identity"), {4: 1.0, 8: 0.5})]).splitlines()
    assert lines[0] == "| C | phi | M | 4 pairs | 8 pairs | seeds |"
    assert lines[2:] == ["| 16 | identity | 8 | 1.00 | 0.50 | 1 |", "| 16 | ln_silu | 8 | 0.50 ± 0.35 |  | 2 |"]


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results = [Result(Cell(seed=seed), {4: 0.5, 8: 0.25}, steps=7, seconds=1.5) for seed in range(2)]
    for result in results:
        Ledger(path).add(result)
    with path.open("a") as file:
        file.write(results[0].to_line()[:30])
    ledger = Ledger(path)
    assert ledger.results() == results
    assert Cell(seed=1) in ledger and Cell(seed=2) not in ledger
    ledger.add(Result(Cell(seed=2)))
    assert len(Ledger(path).results()) == 3


def test_a_last_line_without_its_end_is_kept_if_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [Result(Cell(seed=seed), {4: 0.5}).to_line() for seed in range(2)]
    path.write_text("\n".join(lines))
    assert len(Ledger(path).results()) == 2
    Ledger(path).add(Result(Cell(seed=2)))
    assert path.read_text().splitlines()[:2] == lines and len(Ledger(path).results()) == 3


def test_a_result_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Ledger(path).add(Result(Cell()))
    before = path.read_bytes()
    ledger = Ledger(path)
    with limited_files(len(before) + 20), pytest.raises(FileWriteError, match=r"results.jsonl: File too large"):
        ledger.add(Result(Cell(seed=1)))
    assert path.read_bytes() == before and Cell(seed=1) not in ledger
    ledger.add(Result(Cell(seed=2)))
    assert len(Ledger(path).results()) == 2


WHOLE = json.loads(Result(Cell(), {4: 0.5}).to_line())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b'{"cell": {}}',
        b"[]",
        b"\xff",
        b"[" * 10_000,
        *(
            json.dumps({**WHOLE, **change}).encode()
            for change in (
                {"accuracy": []},
                {"seconds": "1"},
                {"diverged": 1},
                *({"cell": {**WHOLE["cell"], **cell}} for cell in ({"slots": "8"}, {"steps": True}, {"phi": "relu"})),
            )
        ),
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_a_line_that_is_no_result_is_named_and_stays(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps(WHOLE).encode() + b"\n" + line + b"\n")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"results.jsonl: line 2 is no result of this version"):
        Ledger(path)
    assert path.read_bytes() == before


def test_one_process_at_a_time_works_on_a_study(tmp_path: Path) -> None:
    command = [*ABLATION, "--folder", str(tmp_path), "--minutes", "0", "--workers", "0"]
    with exclusive(tmp_path, "study-ablation"):
        with pytest.raises(SystemExit, match=f"in use by the study-ablation of process {os.getpid()} on"):
            main(command)
        main([*SIZES, "--folder", str(tmp_path), "--minutes", "0", "--workers", "0"])
    main(command)


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    axes = ["--slots", "2", "--chunk", "4", "--phi", "identity", "--workers", "0", "--steps", "1"]
    command = [*SIZES, *axes, "--folder", str(tmp_path)]
    main(command)
    for name in ("pairs.jsonl", "pairs.csv", "pairs.md", "pairs.png"):
        (tmp_path / name).rename(tmp_path / "away")
        os.mkfifo(tmp_path / name)
        with pytest.raises(SystemExit, match=f"{name} is a named pipe, not a regular file"):
            main(command)
        (tmp_path / "away").replace(tmp_path / name)


def test_a_page_of_a_person_is_not_written_over(tmp_path: Path) -> None:
    axes = ["--slots", "2", "--chunk", "4", "--phi", "identity", "--workers", "0", "--steps", "1"]
    page = tmp_path / "README.md"
    for content in (b"# Mine\n", b"\xff"):
        page.write_bytes(content)
        with pytest.raises(SystemExit, match="name another page"):
            main([*SIZES, *axes, "--folder", str(tmp_path), "--page", str(page)])
        assert page.read_bytes() == content


@pytest.mark.parametrize(
    "option", ["--minutes=nan", "--minutes=-1", "--workers=-1", "--workers=100000", "--changes=-1"]
)
def test_numbers_out_of_range_are_refused_by_the_parser(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*ABLATION, "--folder", str(tmp_path), option])
    assert f"error: argument {option.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("study", ["pairs", "ablation"])
def test_numbers_out_of_range_are_refused_before_anything_is_trained(study: str, tmp_path: Path) -> None:
    big = "1" + "0" * 30
    for option in (
        *(f"--{name}={value}" for name in ("layers", "heads", "dim", "vocab", "batch") for value in ("0", "-1", big)),
        *(f"--{name}={value}" for name in ("steps", "slots", "pairs") for value in ("0", "-1", big)),
        *(f"--chunk={value}" for value in ("0", "-1")),
        *(f"--{name}={value}" for name in ("phi-eps", "init-step-size") for value in ("nan", "inf", "-1", "0")),
        *(f"--learning-rate={value}" for value in ("nan", "inf", "-1", "0")),
        f"--seed={2**63}",
        "--pairs=9",
    ):
        name = {"slots": "num_slots", "chunk": "chunk_size"}.get(
            option[2:].partition("=")[0], option[2:].partition("=")[0]
        )
        with pytest.raises(SystemExit, match=f"error: {name.replace('-', '_')}=.* is out of range; expected "):
            main([study, *SIZES, "--folder", str(tmp_path / "study"), "--workers", "0", option])
    assert not (tmp_path / "study").exists()


def alive_in_group(group: int) -> bool:
    """Whether a process of a session of its own is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_study_keeps_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*ABLATION, "--folder", str(tmp_path), "--phi", "ln_silu", "--steps", "6", "--normalize-qkv", "yes"]
    ledger = tmp_path / "ablation.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "trellis_ops.lm.recall", *command, "--workers", "1"],
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 2):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while alive_in_group(process.pid):
        time.sleep(0.005)
    kept = Ledger(ledger).results()
    assert len(kept) >= 2
    main([*command, "--workers", "0"])
    results = Ledger(ledger).results()
    assert results[: len(kept)] == kept
    assert len(results) == 2 * 2 * 2 * 2
    assert f"{len(kept) + 1} of 16: " in capsys.readouterr().out
    page = (tmp_path / "learning.md").read_text()
    assert "from 16 results of 16" in page
    assert page.count("| ln_silu | 0.01 | learned | unit |") == 2
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_text_is_learned_beside_recall(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    command = [*ABLATION, "--folder", str(tmp_path), "--phi", "identity", "silu", "--steps", "2", "--workers", "0"]
    main([*command, "--learned-state", "no", "--outer-gradient", "bilevel", "--text", str(tmp_path / "text.txt")])
    results = Ledger(tmp_path / "ablation.jsonl").results()
    assert [each.cell.task for each in results[:2]] == ["recall", "text"]
    assert all(each.bits_per_byte is not None and 2 < each.bits_per_byte < 9 for each in results[1::2])
    assert "| silu | - | zero | unit |" in (tmp_path / "learning.md").read_text()


def test_the_curve_is_a_table_and_pictures_and_stops_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = ["--slots", "2", "4", "--chunk", "4", "--phi", "identity", "ln_silu", "--workers", "0", "--steps", "2"]
    command = [*SIZES, *axes, "--folder", str(tmp_path)]
    main([*command, "--minutes", "0"])
    assert "0 of 4 cells have a result" in capsys.readouterr().out
    main(command)
    printed = capsys.readouterr().out
    assert "| C | phi | M | 2 pairs | 4 pairs |" in printed and "| 4 | identity | 2 |" in printed
    page = (tmp_path / "pairs.md").read_text()
    assert "from 4 results of 4" in page and "![accuracy against pairs per slot](pairs-per-slot.png)" in page
    # When and beside what it ran does not make the results.
    assert f"--steps 2 --folder {tmp_path}\n" in page and "--workers" not in page
    assert (tmp_path / "pairs.csv").read_text().count("\n") == 1 + 4 * 2
    for name in ("pairs.png", "pairs-per-slot.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_fits_is_told_from_what_does_not(tmp_path: Path) -> None:
    found = Result(Cell(slots=8), {4: 1.0, 8: 0.5, 16: 0.25})
    assert fits(found) == 0.75 and beyond(found) == 0.25
    lost = Result(Cell(slots=8, seed=1), {4: 0.0, 8: 0.0, 16: 0.0}, diverged=True)
    write_page([found, lost], 9, tmp_path / "page.md", "the command")
    page = (tmp_path / "page.md").read_text()
    assert "| 0.38 | 0.12 |  | 2 (1 of 2 diverged) |" in page
    assert "from 2 results of 9" in page


def test_what_a_person_wrote_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"# Mine\n\nI wrote this.\n\n{MARK}\n\nold\n")
    for _ in range(2):
        write_page([Result(Cell(), {4: 1.0})], 1, path, "the command")
    page = path.read_text()
    assert page.startswith(f"# Mine\n\nI wrote this.\n\n{MARK}\n\n## What was trained\n")
    assert page.count(MARK) == 1 and "old" not in page
