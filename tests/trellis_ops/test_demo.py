"""The demonstration: what it measures is right, and its command runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from codegen.errors import SizeError
from trellis_ops import demo
from trellis_ops.config import TrellisConfig
from trellis_ops.model import TrellisLM

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
    (tmp_path / "text.md").write_text("short")
    with pytest.raises(SizeError, match="at least 20 bytes"):
        demo.main([str(tmp_path / "text.md")])
