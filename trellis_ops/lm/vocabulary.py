"""Tokens looked up in an embedding, with an error that names the token that is not there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trellis_ops.calls import values
from trellis_ops.errors import TokenError


def embedded(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    """The rows of `embedding` for tokens of any shape, int64.

    On a CPU torch itself compares every token with the vocabulary, so that the check costs nothing until it fails; code
    of torch.compile would end the process, and compares them before. On a GPU tokens are compared only under
    TRELLIS_OPS_CHECK_VALUES=1, because reading stalls it.

    Raises:
        TokenError: a token below 0, or not below the size of the vocabulary.
    """
    vocab = embedding.num_embeddings
    if torch.compiler.is_compiling():
        known = tokens if tokens.is_cuda and not values.enabled() else known_tokens(tokens, vocab)
        rows: Tensor = embedding(known)
        return rows
    if tokens.is_cuda and values.enabled():
        check_tokens(tokens, vocab)
    try:
        rows = embedding(tokens)
    except IndexError:
        check_tokens(tokens, vocab)
        raise
    return rows


def check_tokens(tokens: Tensor, vocab: int) -> None:
    """Raise a TokenError for the first token that is not from 0 to `vocab` - 1."""
    wrong = ((tokens < 0) | (tokens >= vocab)).nonzero()
    if len(wrong):
        index = tuple(wrong[0].tolist())
        raise TokenError(token=int(tokens[index]), index=index, vocab=vocab, last=vocab - 1)


@torch.library.custom_op("trellis_ops::known_tokens", mutates_args=())
def known_tokens(tokens: Tensor, vocab: int) -> Tensor:
    """A copy of `tokens`, which are checked: an operator whose result is used cannot be left out of a graph."""
    check_tokens(tokens, vocab)
    return tokens.clone()


@known_tokens.register_fake
def _like(tokens: Tensor, vocab: int) -> Tensor:
    return torch.empty_like(tokens)
