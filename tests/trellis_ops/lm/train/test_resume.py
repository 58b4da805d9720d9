"""A run that was killed goes on as if it had not been."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trellis_ops.lm.train.commands import SMALL, TEXT, start
from trellis_ops.lm.train.cli import main
from trellis_ops.lm.train.curve import Curve, Row, read
from trellis_ops.lm.train.loop import Trainer
from trellis_ops.lm.train.saving import checkpoint as checkpoints

pytestmark = pytest.mark.usefixtures("eager")
RUN = [*SMALL, "--save-every", "4", "--steps", "48"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """A function that lets Ctrl-C be pressed some times in the middle of a step, once."""
    advance = Trainer.advance
    # A shell that starts the tests in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press(at: int, times: int) -> None:
        left = [signal.SIGINT] * times

        def interrupted(trainer: Trainer) -> Row:
            while trainer.step == at - 1 and left:
                signal.raise_signal(left.pop())
            return advance(trainer)

        monkeypatch.setattr(Trainer, "advance", interrupted)

    yield press
    signal.signal(signal.SIGINT, before)


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "curve.csv").read_bytes() == (other / "curve.csv").read_bytes()
    first, second = (checkpoints.load(folder / "checkpoint.safetensors") for folder in (one, other))
    for group in ("weights", "optimizer", "carried", "random"):
        assert getattr(first, group).keys() == getattr(second, group).keys()
        for name, tensor in getattr(first, group).items():
            assert torch.equal(tensor, getattr(second, group)[name]), name


def rows_in(curve: Path) -> int:
    return len(read(curve)) if curve.exists() else 0


def test_a_killed_run_has_the_curve_of_one_that_was_not(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start([str(text), "--folder", str(killed), *RUN])
    while rows_in(killed / "curve.csv") < 10 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    step = checkpoints.load(killed / "checkpoint.safetensors").step
    assert 8 <= step < 48
    main([str(text), "--folder", str(killed), *RUN])
    assert f"going on after step {step} of 48" in capsys.readouterr().out
    main([str(text), "--folder", str(whole), *RUN])
    assert_same_run(killed, whole)
    assert read(whole / "curve.csv")[-1].held_out is not None
    assert (whole / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rule", ["trellis", "abc", "ttt_linear", "omeganet", '{"decay": "slot", "momentum": true}'])
def test_an_interrupted_run_keeps_the_step_under_way(
    rule: str, text: Path, tmp_path: Path, ctrl_c: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    rarely = [str(text), *SMALL, "--steps", "12", "--rule", rule]
    main([*rarely, "--folder", str(whole)])
    ctrl_c(7, 1)
    with pytest.raises(SystemExit, match=r"interrupted; the same command goes on from the checkpoint in .*safetensors"):
        main([*rarely, "--folder", str(interrupted)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert checkpoints.load(interrupted / "checkpoint.safetensors").step == 7
    main([*rarely, "--folder", str(interrupted)])
    assert "going on after step 7 of 12" in capsys.readouterr().out
    assert_same_run(interrupted, whole)


def test_a_run_of_a_version_without_rules_goes_on(
    text: Path, tmp_path: Path, ctrl_c: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command, path = [str(text), *SMALL, "--steps", "6", "--folder", str(tmp_path)], tmp_path / "checkpoint.safetensors"
    ctrl_c(3, 1)
    with pytest.raises(SystemExit, match="interrupted"):
        main(command)
    before = checkpoints.load(path)
    older = {name: value for name, value in before.config.items() if name not in ("rule", "mlp_multiple")}
    checkpoints.save(replace(before, config=older), path)
    with pytest.raises(SystemExit, match=r"it is from another run .*rule='yaad' now, None before"):
        main([*command, "--rule", "yaad"])
    main(command)
    assert "going on after step 3 of 6" in capsys.readouterr().out


def test_the_second_interruption_stops_at_once_and_says_what_is_left(
    text: Path, tmp_path: Path, ctrl_c: Callable[[int, int], None]
) -> None:
    ctrl_c(3, 2)
    command = [str(text), "--folder", str(tmp_path), *SMALL, "--steps", "12"]
    with pytest.raises(
        SystemExit, match=r"no checkpoint yet \(one is written every 100 steps, --save-every\); .* anew"
    ):
        main(command)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    ctrl_c(3, 1)
    with pytest.raises(SystemExit, match="the same command without --fresh goes on"):
        main([*command, "--fresh"])


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
