"""From the tokens of a call as they are given to the layout in which blocks read them, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import DtypeError, ShapeError
from trellis_ops.calls import checks, values
from trellis_ops.errors import MaskError
from trellis_ops.lm.sequences.packed import Packed
from trellis_ops.lm.sequences.rows import Rows
from trellis_ops.lm.state.place import Place

_MASK_TYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Arranged:
    """How the tokens of a call were given.

    Attributes:
        batch, length: B and T.
        device: of the tokens.
        cu_seqlens: offsets of packed sequences, or of the tokens of padded rows without their padding; None for rows.
        places: the tokens among `[B T]` places of padded rows; None if nothing is padded.
    """

    batch: int
    length: int
    device: torch.device
    cu_seqlens: Tensor | None = None
    places: Tensor | None = None

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self.batch if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def layout(self, place: Place, period: int) -> Rows | Packed:
        """How blocks read them, from `place` on: rows at different places are packed."""
        if self.cu_seqlens is not None:
            total = self.batch * self.length if self.places is None else len(self.places)
            return Packed(self.cu_seqlens, total, place, period)
        if isinstance(place, Tensor):
            offsets = torch.arange(self.batch + 1, device=self.device) * self.length
            return Packed(offsets, self.batch * self.length, place, period)
        return Rows(self.batch, self.length, place, period)

    def taken(self, x: Tensor, layout: Rows | Packed) -> Tensor:
        """x `[B, T, width]` as the layout has it."""
        if isinstance(layout, Rows):
            return x
        flat = x.reshape(1, self.batch * self.length, x.shape[-1])
        return flat if self.places is None else flat.index_select(1, self.places)

    def put_back(self, x: Tensor, layout: Rows | Packed) -> Tensor:
        """`[B, T, width]` of x as the layout has it; zero at padding."""
        if isinstance(layout, Rows):
            return x
        if self.places is not None:
            x = x.new_zeros(1, self.batch * self.length, x.shape[-1]).index_copy(1, self.places, x)
        return x.view(self.batch, self.length, x.shape[-1])


def arranged(x: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None, *, stall: bool) -> Arranged:
    """How x `[B, T, ...]` was given, by the mask or the offsets that belong to it; raises as `features` does.

    Offsets on a GPU are read only if `stall` allows to wait for it.
    """
    batch, length = x.shape[:2]
    if attention_mask is not None and cu_seqlens is not None:
        raise MaskError(problem="is given beside cu_seqlens; packed sequences have no padding")
    if cu_seqlens is not None:
        checks.offsets(cu_seqlens, x)
        if not torch.compiler.is_compiling():
            values.check_offsets(cu_seqlens, length, stall=stall)
        return Arranged(batch, length, x.device, cu_seqlens)
    if attention_mask is None:
        return Arranged(batch, length, x.device)
    mask = checked_mask(attention_mask, batch, length)
    if mask.all():
        return Arranged(batch, length, x.device)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), mask.sum(1).cumsum(0)])
    places = mask.flatten().nonzero()[:, 0]
    return Arranged(batch, length, x.device, offsets.to(x.device), places.to(x.device))


def checked_mask(attention_mask: Tensor, batch: int, length: int) -> Tensor:
    """The mask as bools `[B, T]` on the CPU; raises as `features` does."""
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask is {attention_mask!r}, but must be a torch.Tensor")
    if attention_mask.shape != (batch, length):
        shape = list(attention_mask.shape)
        raise ShapeError(name="attention_mask", shape=shape, expected=f"[{batch}, {length}], that of the tokens")
    if attention_mask.dtype not in _MASK_TYPES:
        raise DtypeError(name="attention_mask", dtype=attention_mask.dtype, expected="bool or an integer type")
    mask = mask_of_bools(attention_mask.cpu())
    empty = (~mask.any(1)).nonzero()
    if len(empty):
        raise MaskError(problem=f"has no token in row {int(empty[0])}; leave that row out")
    # A row of one run of ones goes up once at most, counted with a 0 before it.
    rises = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    holes = (rises > 1).nonzero()
    if len(holes):
        problem = (
            f"has a hole in row {int(holes[0])}; padding may be on the left and on the right of a row's tokens only"
        )
        raise MaskError(problem=problem)
    return mask


def mask_of_bools(given: Tensor) -> Tensor:
    """A mask `[B, T]` of ones and zeros of any type, as bools.

    Raises:
        MaskError: another number.
    """
    mask = given != 0
    wrong = (mask & (given != 1)).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise MaskError(problem=f"holds {given[row, place].item()} at ({row}, {place}); give 1 for tokens, else 0")
    return mask


def last_tokens(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """What x `[B, T, ...]` has at the last token of each row, `[B, ...]`; of a mask that was checked."""
    if attention_mask is None:
        return x[:, -1]
    places = torch.arange(x.shape[1], device=x.device)
    last = torch.where(attention_mask.to(x.device) != 0, places, -1).amax(1)
    return x[torch.arange(x.shape[0], device=x.device), last]
