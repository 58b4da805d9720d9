"""A run that was killed goes on as if it had not been."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from tests.trellis_ops.train.commands import SMALL, TEXT, finish, start
from trellis_ops.train import checkpoint as checkpoints
from trellis_ops.train.cli import main
from trellis_ops.train.curve import Curve, Row, read

pytestmark = pytest.mark.usefixtures("eager")
RUN = [*SMALL, "--save-every", "4", "--steps", "48"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path / "text.txt"


def rows_in(curve: Path) -> int:
    return len(read(curve)) if curve.exists() else 0


def test_a_killed_run_has_the_curve_of_one_that_was_not(text: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start([str(text), "--folder", str(killed), *RUN])
    while rows_in(killed / "curve.csv") < 10 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    step = checkpoints.load(killed / "checkpoint.safetensors").step
    assert 8 <= step < 48
    printed = finish(start([str(text), "--folder", str(killed), *RUN]))
    assert f"going on after step {step} of 48" in printed
    main([str(text), "--folder", str(whole), *RUN])
    assert (killed / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()
    first, second = (checkpoints.load(folder / "checkpoint.safetensors") for folder in (killed, whole))
    for group in ("weights", "optimizer", "carried", "random"):
        assert getattr(first, group).keys() == getattr(second, group).keys()
        for name, tensor in getattr(first, group).items():
            assert torch.equal(tensor, getattr(second, group)[name]), name
    assert read(whole / "curve.csv")[-1].held_out is not None
    assert (whole / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_another_run_does_not_take_the_checkpoint(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [str(text), "--folder", str(folder), *SMALL, "--steps", "4"]
    main(command)
    before = (folder / "curve.csv").read_bytes()
    with pytest.raises(SystemExit, match=r"another run \(learning_rate=0.5 now, 0.01 before\)"):
        main([*command, "--learning-rate", "0.5"])
    text.write_bytes(TEXT[::-1])
    with pytest.raises(SystemExit, match=r"another run \(text="):
        main(command)
    assert (folder / "curve.csv").read_bytes() == before
    main([*command, "--fresh", "--phi", "identity"])
    assert checkpoints.load(folder / "checkpoint.safetensors").config["phi"] == "identity"


def test_a_damaged_checkpoint_is_named(text: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(SystemExit, match="no checkpoint of this project, or a damaged one"):
        main([str(text), "--folder", str(tmp_path), *SMALL])
    assert path.read_bytes() == b"not safetensors"


def test_rows_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    rows = [Row(step, 1, 0.1, 3.0 / step, 1.5, 2.5 if step == 2 else None) for step in range(1, 5)]
    with Curve(path, 0) as curve:
        for row in rows:
            curve.add(row)
    with path.open("a") as file:
        file.write("5,1,0.1,0.6")
    with Curve(path, 2):
        pass
    assert [row.step for row in read(path)] == [1, 2]
    assert read(path)[1] == rows[1]
