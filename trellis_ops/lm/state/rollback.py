"""What is left of tokens that were read ahead, as speculative decoding needs it: how many each row keeps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from codegen.errors import DeviceMismatchError, DtypeError, ShapeError, SizeError
from trellis_ops.errors import RollbackError
from trellis_ops.lm.config import TrellisConfig


def require_rollback(config: TrellisConfig) -> None:
    """Raise unless a model of this configuration reads any pieces of a text alike.

    Raises:
        RollbackError: `decode="exact"` beside chunks of several tokens, which begin with each piece.
    """
    if config.decode == "exact" and config.chunk > 1 and replace(config, decode="chunked").keeps_starts:
        raise RollbackError(chunk=config.chunk)


def kept_tokens(tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The first `kept [B]` of `tokens [B, n]` of each row, packed `[1, total]`, and their offsets `[B + 1]`.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError, SizeError, TypeError: what counts no tokens of each row.
    """
    if not isinstance(kept, Tensor):
        raise TypeError(f"kept is {kept!r}, but must be a torch.Tensor")
    if kept.shape != tokens.shape[:1]:
        raise ShapeError(name="kept", shape=list(kept.shape), expected=f"[{tokens.shape[0]}], one count for each row")
    if kept.dtype != torch.int64:
        raise DtypeError(name="kept", dtype=kept.dtype, expected="torch.int64")
    if kept.device != tokens.device:
        raise DeviceMismatchError(name="kept", device=kept.device, expected=tokens.device)
    length = tokens.shape[1]
    wrong = kept[(kept < 0) | (kept > length)]
    if len(wrong):
        raise SizeError(name="kept", value=int(wrong[0]), expected=f"0 to {length}, the tokens of each row")
    inside = torch.arange(length, device=tokens.device) < kept[:, None]
    return tokens[inside][None], torch.cat([kept.new_zeros(1), kept.cumsum(0)])
