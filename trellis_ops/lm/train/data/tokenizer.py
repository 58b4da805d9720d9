"""Text to tokens: its bytes, or a byte-level BPE that is trained on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from codegen.errors import MissingPackageError
from trellis_ops.lm.train.data.text import Document

TOKENIZERS = ("bytes", "bpe")

_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _SHOWN]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
"""The byte of each character of a byte-level vocabulary: those that print are themselves, others follow from 256 on."""


class Tokenizer(Protocol):
    """What turns text into tokens and knows how many bytes each stands for."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def encode(self, text: bytes) -> Tensor:
        """Tokens `[n]`, int32."""

    def decode(self, token: int) -> bytes:
        """The bytes that a token stands for."""

    def byte_counts(self) -> Tensor:
        """How many bytes each token stands for, `[vocab_size]`, int64."""

    def to_json(self) -> str:
        """Text that `from_json` reads."""


class ByteTokenizer:
    """Every byte is a token."""

    vocab_size = 256

    def encode(self, text: bytes) -> Tensor:
        """The bytes `[n]`, int32."""
        return torch.frombuffer(bytearray(text), dtype=torch.uint8).int()

    def decode(self, token: int) -> bytes:
        """The one byte."""
        return bytes([token])

    def byte_counts(self) -> Tensor:
        """All ones."""
        return torch.ones(256, dtype=torch.int64)

    def to_json(self) -> str:
        """Nothing: bytes have no settings."""
        return ""


class BpeTokenizer:
    """A byte-level BPE of the package `tokenizers`; bytes that are no UTF-8 become the replacement character."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.vocab_size: int = encoder.get_vocab_size()

    @classmethod
    def train(cls, documents: Sequence[Document], vocab_size: int) -> BpeTokenizer:
        """Learn `vocab_size` tokens, 256 of them the bytes, from `documents`; fewer if the text has fewer pairs.

        Raises:
            MissingPackageError: `tokenizers` is not installed.
        """
        library = _library()
        encoder = library.Tokenizer(library.models.BPE())
        encoder.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoder.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
        )
        encoder.train_from_iterator((_decoded(each.text) for each in documents), trainer)
        return cls(encoder)

    def encode(self, text: bytes) -> Tensor:
        """The tokens `[n]`, int32."""
        return torch.tensor(self._encoder.encode(_decoded(text)).ids, dtype=torch.int32)

    def decode(self, token: int) -> bytes:
        """The bytes of a token, which need not be UTF-8 alone."""
        return bytes(_BYTE_OF[character] for character in self._encoder.id_to_token(token))

    def byte_counts(self) -> Tensor:
        """Bytes of each token; in a byte-level vocabulary every character of a token is one byte."""
        return torch.tensor([len(self._encoder.id_to_token(i)) for i in range(self.vocab_size)])

    def to_json(self) -> str:
        """The vocabulary and its merges."""
        text: str = self._encoder.to_str()
        return text


def from_json(text: str) -> Tokenizer:
    """The tokenizer whose `to_json` gave `text`.

    Raises:
        ValueError: another text.
    """
    if not text:
        return ByteTokenizer()
    try:
        encoder = _library().Tokenizer.from_str(text)
    except MissingPackageError:
        raise
    except Exception as error:  # The package raises nothing more precise.
        raise ValueError(f"the package tokenizers cannot read it ({error})") from error
    if sorted(encoder.get_vocab().values()) != list(range(encoder.get_vocab_size())):
        raise ValueError("its tokens are not numbered from 0 on")
    return BpeTokenizer(encoder)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError(package="tokenizers", extra="train") from error
    return tokenizers
