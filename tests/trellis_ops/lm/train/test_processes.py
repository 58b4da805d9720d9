"""Two processes on one batch are one process: replicated, and in pieces."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codegen.errors import SizeError
from tests.trellis_ops.lm.train.commands import SMALL, TEXT, finish, start
from trellis_ops.lm.train.cli import main
from trellis_ops.lm.train.curve import Row, read
from trellis_ops.lm.train.processes.ranks import Processes
from trellis_ops.lm.train.saving import checkpoint as checkpoints

pytestmark = pytest.mark.usefixtures("eager")

# With phi = identity rounding is not amplified from window to window, so that a tight tolerance means something.
STEPS = [*SMALL, "--save-every", "6", "--steps", "12"]
RUN = [*STEPS, "--phi", "identity"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(TEXT)
    return path


def numbers(row: Row) -> list[float]:
    return [row.step, row.epoch, row.learning_rate, row.bits_per_byte, row.gradient_norm, row.held_out or 0.0]


def assert_same_curve(found: Path, expected: Path) -> None:
    pairs = list(zip(read(found / "curve.csv"), read(expected / "curve.csv"), strict=True))
    assert len(pairs) == 12
    for mine, other in pairs:
        assert (mine.held_out is None) == (other.held_out is None)
        assert numbers(mine) == pytest.approx(numbers(other), rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [("--phi", "identity"), ("--phi", "identity", "--fsdp", "--learned-state"), ("--rule", "in_place_ttt", "--fsdp")],
    ids=" ".join,
)
def test_two_processes_train_as_one(options: tuple[str, ...], text: Path, tmp_path: Path) -> None:
    model = [each for each in options if each != "--fsdp"]
    main([str(text), "--folder", str(tmp_path / "one"), *STEPS, *model])
    printed = finish(start([str(text), "--folder", str(tmp_path / "two"), *STEPS, *options], processes=2))
    assert "on 2 x cpu" in printed
    assert printed.count("held out:") == 1
    assert_same_curve(tmp_path / "two", tmp_path / "one")
    one, two = (checkpoints.load(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    for group in ("weights", "optimizer", "carried"):
        mine, other = getattr(two, group), getattr(one, group)
        assert {name: tensor.shape for name, tensor in mine.items()} == {n: tensor.shape for n, tensor in other.items()}
        for name, tensor in mine.items():
            assert (tensor - other[name]).norm() <= 1e-3 * other[name].norm() + 1e-6, name


def test_two_processes_go_on_from_a_checkpoint_of_one(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save = checkpoints.save

    def save_and_keep(state: checkpoints.Checkpoint, path: Path) -> None:
        save(state, path)
        if state.step == 6:
            shutil.copytree(one, two)

    monkeypatch.setattr(checkpoints, "save", save_and_keep)
    main([str(text), "--folder", str(one), *RUN])
    printed = finish(start([str(text), "--folder", str(two), *RUN, "--fsdp"], processes=2))
    assert "going on after step 6 of 12" in printed
    assert_same_curve(two, one)


def test_pieces_without_processes_are_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--fsdp shares a model between processes; start it as: torchrun"):
        main([str(text), "--folder", str(tmp_path), *RUN, "--fsdp"])


def test_lanes_that_cannot_be_shared_are_refused() -> None:
    processes = Processes(rank=0, count=2, device=torch.device("cpu"))
    processes.check_batch(4)
    with pytest.raises(SizeError, match="batch=3 is out of range; expected a multiple of the 2 processes"):
        processes.check_batch(3)
