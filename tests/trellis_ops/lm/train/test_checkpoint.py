"""A checkpoint is whole or is refused by name, is only data, and outlives a disk that is full."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from codegen.errors import FileWriteError, IrregularFileError
from tests.trellis_ops.limited_files import limited_files
from tests.trellis_ops.lm.train.commands import SMALL, TEXT
from trellis_ops.lm.train import cli
from trellis_ops.lm.train.errors import CheckpointError
from trellis_ops.lm.train.saving import checkpoint as checkpoints

pytestmark = pytest.mark.usefixtures("eager")
NAME = "checkpoint.safetensors"
TAPS = "blocks.0.mixer.conv_q"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run of it that is done."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_bytes(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRELLIS_OPS_IMPLEMENTATION", "eager")
        cli.main([str(folder / "text.txt"), "--folder", str(folder / "run"), *SMALL, "--steps", "2"])
    return folder


@pytest.fixture
def path(trained: Path, tmp_path: Path) -> Path:
    """The checkpoint of a copy of that run."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run" / NAME


def resume(trained: Path, path: Path) -> None:
    cli.main([str(trained / "text.txt"), "--folder", str(path.parent), *SMALL, "--steps", "2"])


def same(found: checkpoints.Checkpoint, expected: checkpoints.Checkpoint) -> bool:
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if name not in ("weights", "optimizer", "carried", "random"):
            assert other == value, name
        else:
            assert all(torch.equal(other[each], tensor) for each, tensor in value.items()), name
    return True


def test_a_flipped_bit_is_found(path: Path) -> None:
    whole, draw, expected = path.read_bytes(), random.Random(0), checkpoints.load(path)
    length = int.from_bytes(whole[:8], "little")
    places = [*range(0, 8 + length, 97), *(draw.randrange(8 + length, len(whole)) for _ in range(100)), len(whole) - 1]
    assert same(checkpoints.load(path), expected)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.load(path)


def test_a_damaged_checkpoint_is_named_and_stays(trained: Path, path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[-1000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SystemExit, match=rf"{NAME}: it is damaged, .* or give --fresh to start anew"):
        resume(trained, path)
    assert path.read_bytes() == damaged


Change = Callable[[checkpoints.Checkpoint], Any]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda run: run.optimizer.pop(f"{TAPS}/exp_avg"), f"optimizer {TAPS}/exp_avg is missing"),
        (lambda run: run.optimizer.clear(), "optimizer .*/exp_avg is missing"),
        (lambda run: run.optimizer.update(more=torch.ones(1)), "optimizer more is not of this run"),
        (lambda run: run.carried.update({"0.S_k": torch.ones(4, 2, 8, 15)}), r"carried 0.S_k is \[4, 2, 8, 15\]"),
        (lambda run: run.carried.update({"0.S_k": torch.ones(3, 2, 8, 16)}), r"expected \[4, 2, 8, 16\]"),
        (lambda run: run.carried.clear(), "carried 0.S_k is missing"),
        (lambda run: run.weights.update({TAPS: run.weights[TAPS].int()}), f"weights {TAPS} is .* of torch.int32"),
        (lambda run: run.weights.update({TAPS: run.weights[TAPS][:-1]}), rf"weights {TAPS} is \[31, 4\]"),
        (lambda run: run.weights.pop(TAPS), f"weights {TAPS} is missing"),
        (lambda run: run.random.pop("cpu"), "random cpu is missing"),
        (lambda run: run.random.update(cpu=run.random["cpu"][1:]), "random cpu is"),
        (lambda run: run.random["cpu"].fill_(255), "random cpu is no state of a generator"),
        (lambda run: dataclasses.replace(run, step=3), "after step 3 of 2"),
        (lambda run: dataclasses.replace(run, step=True), "step is True, expected int"),
        (lambda run: dataclasses.replace(run, seconds=float("nan")), "took nan s"),
        (lambda run: dataclasses.replace(run, config=[]), r"config is \[\], expected dict"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Change, part: str, trained: Path, path: Path) -> None:
    run = checkpoints.load(path)
    changed = change(run)
    checkpoints.save(changed if isinstance(changed, checkpoints.Checkpoint) else run, path)
    with pytest.raises(SystemExit, match=part):
        resume(trained, path)


def test_a_tokenizer_that_cannot_be_read_is_named(path: Path, trained: Path) -> None:
    run = checkpoints.load(path)
    sparse = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 7}, "merges": []}}
    for text in ("{", "[]", json.dumps(sparse)):
        checkpoints.save(dataclasses.replace(run, tokenizer=text), path)
        with pytest.raises(SystemExit, match=f"{NAME}: its tokenizer is none of this project"):
            cli.main([str(trained / "text.txt"), "--folder", str(path.parent), *SMALL, "--tokenizer", "bpe"])


def test_a_model_is_made_only_of_weights_that_fit(path: Path) -> None:
    run = checkpoints.load(path)
    for changed, part in (
        (dataclasses.replace(run, weights={**run.weights, TAPS: run.weights[TAPS].int()}), f"weights {TAPS} is"),
        (dataclasses.replace(run, config={**run.config, "width": 31}), "unknown .*width=31"),
        (dataclasses.replace(run, settings={**run.settings, "speed": 3}), "unknown .*speed"),
    ):
        checkpoints.save(changed, path)
        with pytest.raises(CheckpointError, match=part):
            checkpoints.load_model(path)


def test_a_run_without_a_digest_goes_on(trained: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["trellis_ops"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"trellis_ops": json.dumps({**text, "format": 1})})
    resume(trained, path)
    assert "going on after step 2 of 2" in capsys.readouterr().out
    save_file(tensors, path, metadata={"trellis_ops": json.dumps(text)})
    with pytest.raises(CheckpointError, match="digest"):
        checkpoints.load(path)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("planted",)


def test_nothing_in_a_checkpoint_is_executed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(pickle.dumps(Planted()))
    with pytest.raises(CheckpointError, match="no checkpoint of this project"):
        checkpoints.load(path)
    torch.save({"weights": Planted()}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of this project"):
        checkpoints.load(path)
    assert not Path("planted").exists()


@pytest.mark.parametrize("name", [NAME, "curve.csv", "curve.png", "summary.json"])
@pytest.mark.parametrize("fresh", [[], ["--fresh"]], ids=["", "fresh"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(
    name: str, fresh: list[str], trained: Path, path: Path
) -> None:
    (path.parent / name).unlink()
    os.mkfifo(path.parent / name)
    with pytest.raises(SystemExit, match=f"{name} is a named pipe, not a regular file"):
        cli.main([str(trained / "text.txt"), "--folder", str(path.parent), *SMALL, "--steps", "2", *fresh])
    assert (path.parent / name).is_fifo()


def test_a_checkpoint_that_is_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("/dev/zero")
    with pytest.raises(IrregularFileError, match="a device"):
        checkpoints.load(tmp_path / NAME)


def test_a_full_disk_leaves_the_old_checkpoint(trained: Path, path: Path) -> None:
    before, run = path.read_bytes(), checkpoints.load(path)
    with (
        limited_files(len(before) // 2),
        pytest.raises(FileWriteError, match=rf"cannot write .*{NAME}: .*what stood there is kept. Free space"),
    ):
        checkpoints.save(dataclasses.replace(run, step=1), path)
    assert path.read_bytes() == before
    names = sorted(os.listdir(path.parent))
    assert names == [".training.lock", NAME, "curve.csv", "curve.png", "summary.json"]
    command = [str(trained / "text.txt"), "--folder", str(path.parent), *SMALL, "--steps", "2", "--fresh"]
    with limited_files(len(before) // 2), pytest.raises(SystemExit, match=rf"error: cannot write .*{NAME}"):
        cli.main(command)
    assert path.read_bytes() == before


def test_a_full_disk_under_the_curve_is_named(trained: Path, path: Path) -> None:
    command = [str(trained / "text.txt"), "--folder", str(path.parent), *SMALL, "--steps", "2", "--fresh"]
    with limited_files(100), pytest.raises(SystemExit, match=r"error: cannot write .*curve.csv: File too large"):
        cli.main(command)


@pytest.mark.parametrize("line", [b"x,1,0.1,3,1,", b"1,1,0.1,3,1", b"\xff", "²,1,0.1,3,1,".encode(), b""])
def test_a_curve_that_is_damaged_is_named(line: bytes, trained: Path, path: Path) -> None:
    curve = path.with_name("curve.csv")
    rows = curve.read_bytes().split(b"\n")
    curve.write_bytes(b"\n".join([rows[0], line, *rows[1:]]))
    before = curve.read_bytes()
    with pytest.raises(SystemExit, match=r"curve.csv: line 2 is no row of a curve"):
        resume(trained, path)
    assert curve.read_bytes() == before
