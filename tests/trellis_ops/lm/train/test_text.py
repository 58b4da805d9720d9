"""Files and folders to documents; what is held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from trellis_ops.lm.train.data.text import Document, hold_out, read_documents
from trellis_ops.lm.train.data.tokenizer import BpeTokenizer, ByteTokenizer, from_json
from trellis_ops.lm.train.errors import TextError


def test_folders_are_read_recursively_and_in_order(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.md", "a/y.py", ".git/x.py", "site-packages/x.py", "tests/x.py", "b.bin", "empty.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if name == "empty.py" else name)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    found = read_documents([tmp_path, tmp_path / "b.bin"], [".py", ".md"], ["site-packages", "tests"])
    assert [each.text for each in found] == [b"b.py", b"a/y.py", b"a/z.md", b"b.bin"]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_text("bytes")
    with pytest.raises(TextError, match=r"only \.py are read"):
        read_documents([tmp_path], [".py"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_documents([tmp_path / "nowhere"])


def test_few_documents_lose_their_ends() -> None:
    fit, held = hold_out([Document("a", b"0123456789" * 2), Document("b", b"abc")], 0.2)
    assert [each.text for each in fit] == [b"0123456789012345", b"abc"]
    assert [each.text for each in held] == [b"6789"]
    with pytest.raises(TextError, match="too little to hold out"):
        hold_out([Document("b", b"abc")], 0.2)


def test_many_documents_are_held_out_whole() -> None:
    documents = [Document(str(i), b"%d" % (i + 10)) for i in range(40)]
    fit, held = hold_out(documents, 0.1)
    assert len(held) == 4
    assert {each.name for each in fit}.isdisjoint(each.name for each in held)
    assert sorted([*fit, *held], key=lambda each: int(each.name)) == documents


def test_a_bpe_knows_its_bytes() -> None:
    text = "slots and chunks, chunks and slots: déjà vu. " * 20
    learned = BpeTokenizer.train([Document("a", text.encode())], 300)
    assert 256 < learned.vocab_size <= 300
    for tokenizer in (learned, from_json(learned.to_json()), ByteTokenizer(), from_json("")):
        tokens = tokenizer.encode(text.encode())
        assert int(tokenizer.byte_counts()[tokens].sum()) == len(text.encode())
        assert int(tokens.max()) < tokenizer.vocab_size
    assert len(learned.encode(text.encode())) < len(text) / 2
