"""What a forward of transformers is given beside tokens: masks of padding, and where packed samples begin."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from codegen.errors import DtypeError, ShapeError
from codegen.scalars import whole_number
from trellis_ops.hf.errors import InputError
from trellis_ops.lm.sequences.arranged import mask_of_bools

_OFFSETS = (torch.int32, torch.int64)


def checked_shape(input_ids: Tensor | None, inputs_embeds: Tensor | None, width: int) -> tuple[int, int]:
    """B and T of `input_ids [B, T]`, int64, or of `inputs_embeds [B, T, width]`.

    Raises:
        InputError: both, or none. ShapeError, DtypeError: something else.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError(name="input_ids", problem="give either input_ids or inputs_embeds")
    if input_ids is None:
        assert inputs_embeds is not None
        if inputs_embeds.ndim != 3 or 0 in inputs_embeds.shape or inputs_embeds.shape[2] != width:
            expected = f"[B, T, {width}] with B >= 1 and T >= 1"
            raise ShapeError(name="inputs_embeds", shape=list(inputs_embeds.shape), expected=expected)
        if not inputs_embeds.is_floating_point():
            raise DtypeError(name="inputs_embeds", dtype=inputs_embeds.dtype, expected="a floating-point type")
        return inputs_embeds.shape[0], inputs_embeds.shape[1]
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ShapeError(name="input_ids", shape=list(input_ids.shape), expected="[B, T] with B >= 1 and T >= 1")
    if input_ids.dtype != torch.int64:
        raise DtypeError(name="input_ids", dtype=input_ids.dtype, expected="torch.int64")
    return input_ids.shape[0], input_ids.shape[1]


def check_kept(labels: Tensor | None, logits_to_keep: int | Tensor, read: Tensor | None) -> None:
    """Raise unless `labels` are those of the logits that are kept of what is read, `[B, T]` or `[B, T, width]`.

    Raises:
        SizeError: a number of logits below 0. ShapeError: other labels.
    """
    if isinstance(logits_to_keep, Tensor):
        return
    count = whole_number("logits_to_keep", logits_to_keep, least=0)
    if labels is None or read is None or read.ndim < 2:
        return
    batch, length = read.shape[:2]
    expected = (batch, min(count or length, length))
    if labels.shape != expected:
        raise ShapeError(name="labels", shape=list(labels.shape), expected=f"{list(expected)}, that of the logits")


def kept(x: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions of `x [B, T, width]` whose logits are wanted: so many last ones, 0 for all, or these."""
    return x[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else x[:, -logits_to_keep:]


def token_mask(attention_mask: Tensor | None, batch: int, length: int, seen: int) -> Tensor | None:
    """Which of the last `length` positions are tokens, `[B, length]` bool; None if all are.

    Args:
        attention_mask: `[B, length]`, or `[B, seen + length]`; None for all.
        batch, length: of the positions that are read now.
        seen: how many positions the cache has read before them.

    Raises:
        ShapeError: another shape. MaskError: other numbers than 0 and 1.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape not in ((batch, length), (batch, seen + length)):
        before = f", or [{batch}, {seen + length}] with those that the cache has read" if seen else ""
        expected = f"[{batch}, {length}], 1 for tokens and 0 for padding{before}"
        raise ShapeError(name="attention_mask", shape=list(attention_mask.shape), expected=expected)
    given = attention_mask[:, -length:]
    return None if bool((given == 1).all()) else mask_of_bools(given)


def check_unpacked(
    position_ids: Tensor | None, others: Mapping[str, Tensor | None], mask: Tensor | None, batch: int, length: int
) -> None:
    """Raise where samples are packed beside padding or a cache, which would read them as one text.

    Args:
        position_ids, batch, length: as in `sample_starts`.
        others: what else says where samples begin, by name; None for nothing.
        mask: which positions are tokens, `[B, length]` bool; None for all.

    Raises:
        ShapeError: another shape. InputError: samples begin within a row.
    """
    packed = [name for name, given in others.items() if given is not None]
    if position_ids is not None and length > 1:
        breaks = _expanded("position_ids", position_ids, batch, length).diff(dim=1) != 1
        if mask is not None:
            breaks &= mask[:, 1:] & mask[:, :-1]
        packed += ["position_ids"] if bool(breaks.any()) else []
    if packed:
        problem = "samples begin within a row, and packed samples have no padding and no cache"
        raise InputError(name=", ".join(packed), problem=problem)


def sample_starts(
    position_ids: Tensor | None, seq_idx: Tensor | None, cu_seq_lens: Tensor | None, batch: int, length: int
) -> Tensor | None:
    """Where samples begin that were packed into rows, `[samples + 1]` int64 over the rows laid end to end, or None.

    Any of the three says it, as `DataCollatorWithFlattening` gives them; every row begins a sample. One that says that
    a row is one sample says nothing.

    Args:
        position_ids: `[B or 1, length]`; a sample begins where it does not rise by 1.
        seq_idx: `[B or 1, length]`; a sample begins where it changes.
        cu_seq_lens: `[samples + 1]`, the starts and the end of one row.

    Raises:
        ShapeError, DtypeError: another shape or type.
        InputError: starts that do not rise from 0 to the end, or two that differ.
    """
    said: dict[str, Tensor | None] = {}
    if cu_seq_lens is not None:
        said["cu_seq_lens_q"] = _checked(cu_seq_lens, batch * length)
    if seq_idx is not None:
        said["seq_idx"] = _starts(_expanded("seq_idx", seq_idx, batch, length).diff(dim=1) != 0)
    if position_ids is not None:
        said["position_ids"] = _starts(_expanded("position_ids", position_ids, batch, length).diff(dim=1) != 1)
    found = {name: starts for name, starts in said.items() if starts is not None}
    first = next(iter(found), None)
    if first is None:
        return None
    for name, starts in found.items():
        if name != first and not torch.equal(starts, found[first]):
            raise InputError(name=name, problem=f"samples begin elsewhere than {first} says; leave one of them out")
    return found[first]


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


def _starts(begins: Tensor) -> Tensor | None:
    """Offsets of the samples that begin at these positions behind the first, `[B, T - 1]` bool; None for no such."""
    if not bool(begins.any()):
        return None
    every = torch.cat([torch.ones_like(begins[:, :1]), begins], 1).flatten()
    return torch.cat([every.nonzero()[:, 0], torch.tensor([every.numel()], device=begins.device)])


def _checked(starts: Tensor, total: int) -> Tensor:
    if starts.dtype not in _OFFSETS:
        raise DtypeError(name="cu_seq_lens_q", dtype=starts.dtype, expected="torch.int32 or torch.int64")
    if starts.ndim != 1 or len(starts) < 2:
        raise ShapeError(name="cu_seq_lens_q", shape=list(starts.shape), expected="[samples + 1]")
    if starts[0] != 0 or starts[-1] != total or bool((starts.diff() <= 0).any()):
        raise InputError(name="cu_seq_lens_q", problem=f"must rise from 0 to {total}, the number of tokens")
    return starts.long()
