"""One training in a folder at a time, in one process or in several, until the process ends."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.trellis_ops.lm.train.commands import SMALL, TEXT, start
from trellis_ops.lm.train.cli import main
from trellis_ops.lm.train.errors import FolderInUseError
from trellis_ops.lm.train.saving import checkpoint as checkpoints
from trellis_ops.lm.train.saving.exclusive import exclusive

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path / "text.txt"


def test_a_second_training_is_refused_until_the_first_ends(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [str(text), "--folder", str(folder), *SMALL, "--save-every", "1"]
    process = start([*command, "--steps", "1000000"])
    try:
        while not (folder / "checkpoint.safetensors").exists() and process.poll() is None:
            time.sleep(0.005)
        said = f"{folder} is in use by the training of process {process.pid} on '{socket.gethostname()}'; wait for it"
        for options in ([], ["--fresh"]):
            with pytest.raises(SystemExit) as refused:
                main([*command, "--steps", "2", *options])
            assert str(refused.value.code).startswith(f"error: {said}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert checkpoints.load(folder / "checkpoint.safetensors").settings["steps"] == 1_000_000
    (folder / ".checkpoint.safetensors.0123.unfinished").mkdir()
    main([*command, "--steps", "2", "--fresh"])
    assert sorted(os.listdir(folder)) == [
        ".training.lock",
        "checkpoint.safetensors",
        "curve.csv",
        "curve.png",
        "summary.json",
    ]


def test_several_processes_are_refused_with_one_word(text: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path, "training"):
        process = start([str(text), "--folder", str(tmp_path), *SMALL, "--steps", "2"], processes=2)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert printed.count(f"error: {tmp_path} is in use by the training of process {os.getpid()} on") == 1
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_who_holds_a_folder_need_not_be_known(tmp_path: Path) -> None:
    with exclusive(tmp_path, "training"):
        for content in (b"", b"[]", b'{"pid": "x"}', b"\xff", b"[" * 10_000):
            (tmp_path / ".training.holder").write_bytes(content)
            with pytest.raises(FolderInUseError, match="which has not said"), exclusive(tmp_path, "training"):
                pass
        with exclusive(tmp_path, "study"):
            pass
    with exclusive(tmp_path, "training"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".study.lock", ".training.lock"]
