"""Tokens looked up in an embedding, with an error that names the token that is not there."""

from __future__ import annotations

from torch import Tensor, nn

from codegen.errors import TokenError
from trellis_ops import values


def embedded(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    """The rows of `embedding` for tokens of any shape, int64.

    On a CPU torch itself compares every token with the vocabulary, so that the check costs nothing until it fails. On a
    GPU tokens are read first only under TRELLIS_OPS_CHECK_VALUES=1, because reading stalls it.

    Raises:
        TokenError: a token below 0, or not below the size of the vocabulary.
    """
    if tokens.is_cuda and values.enabled():
        _check(embedding, tokens)
    try:
        rows: Tensor = embedding(tokens)
    except IndexError:
        _check(embedding, tokens)
        raise
    return rows


def _check(embedding: nn.Embedding, tokens: Tensor) -> None:
    vocab = embedding.num_embeddings
    wrong = ((tokens < 0) | (tokens >= vocab)).nonzero()
    if len(wrong):
        index = tuple(wrong[0].tolist())
        raise TokenError(token=int(tokens[index]), index=index, vocab=vocab, last=vocab - 1)
