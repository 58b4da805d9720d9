"""The demonstration: what it measures is right, and its command runs."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from trellis_ops.lm import demo
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM

pytestmark = pytest.mark.usefixtures("eager")


@torch.no_grad()
def test_bits_per_byte_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig(vocab_size=256, layers=1, width=16, heads=1, num_slots=8, chunk_size=4))
    text = torch.randint(256, (50,))
    logits, _ = model(text[None, :-1])
    expected = F.cross_entropy(logits[0], text[1:]).item() / math.log(2.0)
    for piece in (7, 4096):
        monkeypatch.setattr(demo, "_PIECE", piece)
        assert demo.bits_per_byte(model, text) == pytest.approx(expected, rel=1e-5)


def test_the_command_trains_and_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.md"
    file.write_text("slots and chunks, " * 40)
    demo.main([str(file), "--steps", "30", "--batch", "4", "--length", "48", "--new-bytes", "5", "--prompt", "slot"])
    printed = capsys.readouterr().out
    before, after = (float(bits) for bits in re.findall(r"held out.*: ([\d.]+) bits", printed))
    assert after < before - 2
    assert "\nslot" in printed and "5 bytes in" in printed
    sizes = re.search(r"state: (\d+) bytes after 4 tokens, (\d+) bytes after 9", printed)
    assert sizes is not None and sizes[1] == sizes[2]


def test_a_file_too_short_to_hold_anything_out_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"x", b"nineteen characters"):
        (tmp_path / "text.md").write_bytes(content)
        said = rf"error: length of .*text.md={len(content)} is out of range; expected at least 20 bytes"
        with pytest.raises(SystemExit, match=said):
            demo.main([str(tmp_path / "text.md")])


def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, part in (
        (tmp_path / "missing", "No such file or directory: .*missing"),
        (tmp_path, "is a folder, not a regular file"),
        (tmp_path / "pipe", "is a named pipe, not a regular file"),
        (Path("/dev/zero"), "is a device, not a regular file"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{part}"):
            demo.main([str(path)])


@pytest.mark.parametrize("option", ["--steps=0", "--steps=-1", f"--seed={2**63}", "--seed=x", "--new-bytes=-1"])
def test_numbers_out_of_range_are_refused_by_the_parser(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main(["README.md", option])
    assert f"error: argument {option.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        *(f"--learning-rate={value}" for value in ("nan", "inf", "-1", "0")),
        *(f"--temperature={value}" for value in ("nan", "inf", "-1")),
        *(f"--{name}={value}" for name in ("batch", "length", "chunk-size") for value in ("0", "-1")),
        *(f"--{name}={10**30}" for name in ("batch", "length")),  # A chunk of so many tokens is one of all tokens.
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_trained(option: str, tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("slots and chunks, " * 40)
    name = option[2:].partition("=")[0].replace("-", "_")
    with pytest.raises(SystemExit, match=f"error: {name}=.* is out of range; expected "):
        demo.main([str(tmp_path / "text.md"), option])


def test_the_ends_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.md").write_bytes(bytes(range(256)))
    command = [str(tmp_path / "text.md"), "--steps", "1", "--batch", "1", "--length", "1"]
    demo.main([*command, "--new-bytes", "0", "--prompt", "", "--temperature", "5e-324", "--seed", str(-(2**63))])
    assert "0 bytes in" in capsys.readouterr().out
    demo.main([*command, "--new-bytes", "2", "--prompt", "\udcff", "--seed", str(2**63 - 1)])
    assert "2 bytes in" in capsys.readouterr().out
