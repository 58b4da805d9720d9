"""What taking back tokens needs: a state from before them, and the inputs since, which are then read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trellis_ops.hf.errors import CacheUseError
from trellis_ops.lm.state import TrellisState


@dataclass(frozen=True)
class Piece:
    """Inputs that were read one after the other.

    Attributes:
        before: the state before the first of them; None at the start of the sequences.
        x: embeddings, `[B, t, width]`.
        mask: which of them are tokens, `[B, t]` bool.
    """

    before: TrellisState | None
    x: Tensor
    mask: Tensor

    @property
    def length(self) -> int:
        """t."""
        return self.x.shape[1]


class Past:
    """The pieces of a recording; the state and inputs kept do not grow with the text.

    Attributes:
        replayed: how many of the last positions can be taken back at least.
    """

    def __init__(self, replayed: int) -> None:
        self.replayed = replayed
        self._pieces: list[Piece] = []
        self._again: Piece | None = None

    def copy(self) -> Past:
        """The same recording, for going back to it."""
        made = Past(self.replayed)
        made._pieces, made._again = list(self._pieces), self._again
        return made

    def begin(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
        """Inputs behind those that are to be read again, and how many positions those are."""
        again = self._again
        if again is None:
            return x, mask, 0
        joined = torch.cat([again.mask, _full(x, mask)], 1)
        return torch.cat([again.x, x], 1), None if joined.all() else joined, again.length

    def record(self, before: TrellisState | None, x: Tensor, mask: Tensor | None) -> None:
        """Say that a forward reads `x` from the state `before`, which it may then move in place."""
        self._again = None
        mask = _full(x, mask)
        if self._pieces and self._pieces[-1].length < self.replayed:
            last = self._pieces[-1]
            self._pieces[-1] = replace(last, x=torch.cat([last.x, x], 1), mask=torch.cat([last.mask, mask], 1))
        else:
            self._pieces.append(Piece(None if before is None else before.clone(), x, mask))
        while sum(each.length for each in self._pieces[1:]) >= self.replayed:
            del self._pieces[0]

    def crop(self, count: int) -> TrellisState | None:
        """Take back the last `count` positions: the state to go on from; the rest of its piece is read again.

        Raises:
            CacheUseError: there are fewer.
        """
        if self._again is not None and not self._pieces:
            self._pieces = [self._again]
        recorded = sum(each.length for each in self._pieces)
        if count > recorded:
            advice = f"call crop after every {self.replayed} positions, or read the text again"
            problem = f"{count} positions cannot be taken back, {recorded} are recorded"
            raise CacheUseError(problem=problem, advice=advice)
        while count > self._pieces[-1].length:
            count -= self._pieces.pop().length
        last = self._pieces[-1]
        kept = last.length - count
        self._again = replace(last, x=last.x[:, :kept], mask=last.mask[:, :kept]) if kept else None
        self.forget()
        return last.before

    def forget(self) -> None:
        """Say that no position so far will be taken back."""
        self._pieces = []

    def rows(self, of_state: Callable[[TrellisState], TrellisState], of_tensor: Callable[[Tensor], Tensor]) -> None:
        """Move rows as the cache does."""

        def moved(piece: Piece) -> Piece:
            before = None if piece.before is None else of_state(piece.before)
            return Piece(before, of_tensor(piece.x), of_tensor(piece.mask))

        self._pieces = [moved(each) for each in self._pieces]
        self._again = None if self._again is None else moved(self._again)


def _full(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
