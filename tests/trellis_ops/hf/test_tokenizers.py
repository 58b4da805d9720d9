"""Tokenizers of training in transformers: the same tokens, and padding that no text is taken for."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trellis_ops.hf.tokenizer import bpe_tokenizer, byte_tokenizer, training_text
from trellis_ops.lm.train.data.text import Document
from trellis_ops.lm.train.data.tokenizer import BpeTokenizer, from_json

TEXTS = ["Slots of a memory.", "Ā naïve 漢字 \n\t  x ", "it 's , x .", "a\0b", "<|pad|> e\u0301 ﬁ"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_their_own_numbers(text: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert isinstance(each, PreTrainedTokenizerFast) and len(each) == 256
        ids = each(text)["input_ids"]
        assert ids == list(text.encode())
        assert each.decode(ids, skip_special_tokens=True) == text.replace("\0", "")


def test_bytes_that_are_no_utf8_spoil_only_themselves() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode([255, 65, 0xC3, 66]) == "\ufffdA\ufffdB"
    assert tokenizer(["a", "abc"], padding=True)["input_ids"] == [[0, 0, 97], [97, 98, 99]]


@pytest.mark.parametrize("text", TEXTS[:3])
def test_a_bpe_gives_the_tokens_of_training(text: str, tmp_path: Path) -> None:
    trained = BpeTokenizer.train([Document("text", "\n".join(TEXTS * 3).encode())], 300)
    made = bpe_tokenizer(trained.to_json())
    made.save_pretrained(tmp_path)
    for each in (made, AutoTokenizer.from_pretrained(tmp_path)):
        ids = each(text)["input_ids"]
        assert ids == trained.encode(text.encode()).tolist() and max(ids) < trained.vocab_size == each.pad_token_id
        assert each.decode(ids) == text
        back = from_json(training_text(each))
        assert back.vocab_size == trained.vocab_size and back.encode(text.encode()).tolist() == ids
    assert from_json(training_text(byte_tokenizer())).vocab_size == 256
