"""What a forward of transformers is given beside tokens: masks of padding, and where packed samples begin."""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.errors import DtypeError, ShapeError
from trellis_ops.hf.errors import InputError


def checked_shape(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int]:
    """B and T of `input_ids [B, T]`, int64, or of `inputs_embeds [B, T, width]`.

    Raises:
        InputError: both, or none. ShapeError, DtypeError: something else.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError(name="input_ids", problem="give either input_ids or inputs_embeds")
    if input_ids is None:
        assert inputs_embeds is not None
        return inputs_embeds.shape[0], inputs_embeds.shape[1]
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ShapeError(name="input_ids", shape=list(input_ids.shape), expected="[B, T] with B >= 1 and T >= 1")
    if input_ids.dtype != torch.int64:
        raise DtypeError(name="input_ids", dtype=input_ids.dtype, expected="torch.int64")
    return input_ids.shape[0], input_ids.shape[1]


def token_mask(attention_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Which of the last `length` positions are tokens, `[B, length]` bool; None if all are.

    Args:
        attention_mask: `[B, S]` with S >= length, of these positions and those before them; None for all.
        batch, length: of the positions that are read now.

    Raises:
        ShapeError: another shape.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
        expected = f"[{batch}, at least {length}], 1 for tokens and 0 for padding"
        raise ShapeError(name="attention_mask", shape=list(attention_mask.shape), expected=expected)
    mask = attention_mask[:, -length:].bool()
    return None if bool(mask.all()) else mask


def sample_starts(
    position_ids: Tensor | None, seq_idx: Tensor | None, cu_seq_lens: Tensor | None, batch: int, length: int
) -> Tensor | None:
    """Where samples begin that were packed into rows, `[samples + 1]` int64 over the rows laid end to end, or None.

    Any of the three says it, as `DataCollatorWithFlattening` gives them; every row begins a sample.

    Args:
        position_ids: `[B or 1, length]`; a sample begins where it does not rise by 1.
        seq_idx: `[B or 1, length]`; a sample begins where it changes.
        cu_seq_lens: `[samples + 1]`, the starts and the end of one row.

    Raises:
        ShapeError: another shape. InputError: starts that do not rise from 0 to the end.
    """
    if cu_seq_lens is not None:
        return _checked(cu_seq_lens.long(), batch * length)
    begins = None
    if seq_idx is not None:
        begins = _expanded("seq_idx", seq_idx, batch, length).diff(dim=1) != 0
    elif position_ids is not None:
        begins = _expanded("position_ids", position_ids, batch, length).diff(dim=1) != 1
    if begins is None or not bool(begins.any()):
        return None
    begins = torch.cat([torch.ones_like(begins[:, :1]), begins], 1).flatten()
    return torch.cat([begins.nonzero()[:, 0], torch.tensor([batch * length], device=begins.device)])


def held(x: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    """`x [B, T, width]` where each position of padding has what the last token before it has.

    Args:
        x: outputs.
        mask: which positions are tokens, `[B, T]` bool; None for all.
        before: what a row has before its first token here, `[B, 1, width]`; None for zeros.
    """
    if mask is None:
        return x
    first = torch.zeros_like(x[:, :1]) if before is None else before
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    last = torch.where(mask, places, 0).cummax(1).values
    return torch.cat([first, x], 1).gather(1, last[..., None].expand(-1, -1, x.shape[2]))


def _expanded(name: str, ids: Tensor, batch: int, length: int) -> Tensor:
    if ids.ndim != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != length:
        raise ShapeError(name=name, shape=list(ids.shape), expected=f"[{batch}, {length}]")
    return ids.expand(batch, length)


def _checked(starts: Tensor, total: int) -> Tensor:
    if starts.ndim != 1 or len(starts) < 2:
        raise ShapeError(name="cu_seq_lens_q", shape=list(starts.shape), expected="[samples + 1]")
    if starts[0] != 0 or starts[-1] != total or bool((starts.diff() <= 0).any()):
        raise InputError(name="cu_seq_lens_q", problem=f"must rise from 0 to {total}, the number of tokens")
    return starts
