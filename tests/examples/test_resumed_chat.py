from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch

from examples import resumed_chat
from trellis_ops.lm.shipped import load_shipped

ROOT = Path(__file__).parents[2]


def test_the_commands_of_the_page_go_on_from_the_stored_state(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/prefix-store.md").read_text()
    commands = re.findall(r"^\.venv/bin/python examples/resumed_chat\.py (.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        resumed_chat.main(shlex.split(command))
    first, second = re.findall(r"\[(\d+) of (\d+) bytes", capsys.readouterr().out)
    assert first == ("0", "29")
    assert second == ("64", "104")


def test_the_answers_are_those_of_the_whole_conversation(tmp_path, capsys):
    for said in ("one " * 20, "two " * 20, "three " * 20):
        resumed_chat.main(["--folder", str(tmp_path), said])
    conversation = (tmp_path / "conversation").read_bytes()
    model = load_shipped()
    prompt = conversation[: -resumed_chat.ANSWER_BYTES - 1]
    expected = model.generate(torch.tensor([list(prompt)]), resumed_chat.ANSWER_BYTES, temperature=0)
    assert bytes(expected[0].tolist()) + b"\n" == conversation
    assert re.findall(r"\[(\d+) of", capsys.readouterr().out)[2] != "0"
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
