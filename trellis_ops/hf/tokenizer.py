"""The tokenizers of training as those of transformers, token for token."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trellis_ops.lm.train.data.tokenizer import ByteTokenizer

_END_OF_TEXT = "<0x00>"
"""The byte 0, which text does not hold: padding, and what stands before and after a text."""

_PADDING = "<|pad|>"
"""A token behind the vocabulary, which the model never sees: padding is taken out before the embedding."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte of UTF-8 is a token, whose number is the byte; the byte 0 is padding, and the end of a text.

    Example:
        >>> byte_tokenizer()("Slots")["input_ids"]
        [83, 108, 111, 116, 115]
    """
    # The byte 0 has no character of its own in the vocabulary, so that no text but itself is read as the special token.
    characters = {_END_OF_TEXT: 0} | {_character(byte): byte for byte in range(1, ByteTokenizer.vocab_size)}
    encoder = Tokenizer(models.BPE(characters, [], unk_token=_END_OF_TEXT))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    return _wrapped(encoder, pad_token=_END_OF_TEXT, bos_token=_END_OF_TEXT, eos_token=_END_OF_TEXT)


def bpe_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """The byte-level BPE whose `trellis_ops.lm.train.data.tokenizer.BpeTokenizer.to_json` gave `text`.

    Padding is a token behind its vocabulary; there is no other special token.
    """
    return _wrapped(Tokenizer.from_str(text), pad_token=_PADDING)


def training_text(tokenizer: Any) -> str:
    """What `trellis_ops.lm.train.data.tokenizer.from_json` reads, of a tokenizer that was made here."""
    if tokenizer.pad_token == _END_OF_TEXT:
        return ByteTokenizer().to_json()
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain["added_tokens"] = [each for each in plain["added_tokens"] if each["content"] != _PADDING]
    return json.dumps(plain)


def _character(byte: int) -> str:
    """How a byte-level vocabulary writes a byte: itself where it is printable, and one of the characters behind 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(256) if each not in printable]
    return chr(byte if byte in printable else 256 + others.index(byte))


def _wrapped(encoder: Any, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=encoder, model_input_names=["input_ids", "attention_mask"], padding_side="left", **special
    )
