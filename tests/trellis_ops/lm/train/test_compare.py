"""The comparison trains three models, goes on with them, and names those that fail."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest

from codegen.errors import IrregularFileError
from tests.trellis_ops.lm.train.commands import SMALL, TEXT
from trellis_ops.lm.train.compare import _train, main

pytestmark = pytest.mark.usefixtures("eager")


def test_three_models_are_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    folder = tmp_path / "runs"
    command = [
        str(tmp_path / "text.txt"),
        "--folder",
        str(folder),
        *SMALL,
        "--seeds",
        "1",
        "--seed",
        "4",
        "--workers",
        "1",
    ]
    main([*command, "--steps", "3"])
    printed = capsys.readouterr().out
    assert "1 of 3: trellis-4: " in printed and "3 of 3: softmax-4: " in printed
    for name in ("phi = ln_silu, M = 8, C = 8", "phi = identity, M = 8, C = 8", "softmax attention"):
        assert f"\n| {name} | " in printed
    assert "step 3 of 3" in (folder / "identity-4" / "log.txt").read_text()
    (folder / "softmax-4" / "checkpoint.safetensors").unlink()
    with pytest.raises(SystemExit, match="2 of 3 runs failed"):
        main([*command, "--steps", "4"])
    printed = capsys.readouterr().out
    assert "trellis-4: error: " in printed and "it is from another run (steps=4 now, 3 before)" in printed
    assert "\n| softmax attention | " in printed and "\n| phi" not in printed


def test_rules_are_compared_in_the_place_of_the_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    folder = tmp_path / "runs"
    command = [str(tmp_path / "text.txt"), "--folder", str(folder), *SMALL, "--steps", "2", "--seeds", "1"]
    main([*command, "--workers", "1", "--rules", "gsa", "yaad"])
    printed = capsys.readouterr().out
    assert "\n| gsa, M = 8, C = 8 | " in printed and "\n| yaad, C = 8 | " in printed
    assert {path.name for path in folder.iterdir()} == {"gsa-0", "yaad-0"}


def test_a_pipe_in_the_place_of_a_log_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(IrregularFileError, match=r"log.txt is a named pipe"):
        _train(Namespace(folder=tmp_path))
