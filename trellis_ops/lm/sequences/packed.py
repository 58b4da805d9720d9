"""Sequences of any lengths packed one after the other into one row, each at its own position in its chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trellis_ops.lm.sequences.parts import Part, Piece, Steps
from trellis_ops.lm.state.place import Place, moved


@dataclass(frozen=True)
class Packed:
    """N sequences in `[1, total]` tokens.

    Attributes:
        cu_seqlens: their offsets, `[N + 1]`, on the device of the tokens.
        total: of all tokens.
        place: tokens of the chunk under way that each read before.
        period: tokens after which chunks begin, 1 where none are kept.
    """

    cu_seqlens: Tensor
    total: int
    place: Place
    period: int

    @property
    def batch(self) -> int:
        """N."""
        return self.cu_seqlens.shape[0] - 1

    @cached_property
    def offsets(self) -> Tensor:
        """`cu_seqlens` on the CPU, int64."""
        return self.cu_seqlens.cpu().long()

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, `[N]`, on the CPU."""
        return self.offsets.diff()

    def after(self) -> Place:
        """Where the sequences are after their tokens."""
        return moved(self.place, self.lengths, self.period)

    def window(self, tails: Tensor | None, x: Tensor, kept: int) -> Tensor:
        """`[1, total + N kept, channels]`: each sequence of x behind the inputs before it, or behind zeros.

        Args:
            tails: `[N, kept, channels]`.
            x: `[1, total, channels]`.
            kept: inputs that a convolution sees beside the current one.
        """
        window = x.new_zeros(1, self.total + self.batch * kept, x.shape[-1])
        if tails is not None:
            flat = tails.to(x.dtype).reshape(1, self.batch * kept, x.shape[-1])
            window = window.index_copy(1, self._tail_places(self.cu_seqlens[:-1], kept), flat)
        return window.index_copy(1, self._token_places(kept) + kept, x)

    def at_tokens(self, convolved: Tensor) -> Tensor:
        """What belongs to the tokens, `[1, total, ...]`, of a convolution of `window`."""
        if self.batch == 1:
            return convolved
        kept = (convolved.shape[1] - self.total) // (self.batch - 1)
        return convolved.index_select(1, self._token_places(kept))

    def tails(self, window: Tensor) -> Tensor:
        """The inputs that the tokens after these see, `[N, kept, channels]`; they share no memory with `window`."""
        kept = (window.shape[1] - self.total) // self.batch
        found = window.index_select(1, self._tail_places(self.cu_seqlens[1:], kept))
        return found.view(self.batch, kept, window.shape[-1])

    def parts(self, stepwise: bool = False) -> Sequence[Part]:
        """The tokens in the order in which they are read; `stepwise` reads those of last chunks one by one."""
        return self._stepwise_parts if stepwise else self._parts

    def as_tokens(self, y: Tensor) -> Tensor:
        """What a step gave, `[n, ...]`, as `[1, n, ...]`."""
        return y[None]

    def joined(self, found: Sequence[Tensor], stepwise: bool = False) -> Tensor:
        """`[1, total, ...]` of what was found for the tokens of `parts`, in their order."""
        y = found[0] if len(found) == 1 else torch.cat(list(found), 1)
        order = self._stepwise_order if stepwise else self._order
        return y if order is None else y.index_select(1, order)

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        return tuple(self._made_parts(stepwise=False))

    @cached_property
    def _stepwise_parts(self) -> tuple[Part, ...]:
        return tuple(self._made_parts(stepwise=True))

    @cached_property
    def _order(self) -> Tensor | None:
        return self._back(self._parts)

    @cached_property
    def _stepwise_order(self) -> Tensor | None:
        return self._back(self._stepwise_parts)

    def _made_parts(self, stepwise: bool) -> Iterator[Part]:
        first, lengths = self.offsets[:-1], self.lengths
        ragged = torch.minimum(lengths, torch.as_tensor(-self.place % self.period, device="cpu"))
        rest = (lengths - ragged) % self.period
        whole = lengths - ragged - rest
        yield from self._steps(first, ragged, begins=False)
        if whole.any():
            yield self._piece(first + ragged, whole, begins=False)
        if stepwise:
            yield from self._steps(first + ragged + whole, rest, begins=True)
        elif rest.any():
            mask = rest > 0
            begins = True if mask.all() else mask.to(self.cu_seqlens.device)
            yield self._piece(first + ragged + whole, rest, begins)

    def _steps(self, first: Tensor, counts: Tensor, begins: bool) -> Iterator[Steps]:
        """`counts [N]` tokens of each sequence from `first [N]` on, those of rows that have as many left at once."""
        device, done = self.cu_seqlens.device, 0
        for until in sorted(set(counts.tolist()) - {0}):
            rows = (counts > done).nonzero()[:, 0]
            tokens = tuple((0, (first[rows] + t).to(device)) for t in range(done, until))
            yield Steps(tokens, None if len(rows) == self.batch else rows.to(device), begins and done == 0)
            done = until

    def _piece(self, first: Tensor, counts: Tensor, begins: bool | Tensor) -> Piece:
        device = self.cu_seqlens.device
        if counts.sum() == self.total:
            return Piece((slice(None),), self.cu_seqlens, begins)
        ends = counts.cumsum(0)
        tokens = (first - ends + counts).repeat_interleave(counts) + torch.arange(int(ends[-1]), device="cpu")
        offsets = torch.cat([ends.new_zeros(1), ends])
        return Piece((slice(None), tokens.to(device)), offsets.to(device, self.cu_seqlens.dtype), begins)

    def _back(self, parts: tuple[Part, ...]) -> Tensor | None:
        """Where each token is among those of the parts; None if they are in order."""
        found: list[Tensor] = []
        for part in parts:
            indices = part.tokens if isinstance(part, Steps) else (part.tokens,)
            found += [each for index in indices for each in index if isinstance(each, Tensor)]
        return torch.cat(found).argsort() if found else None

    def _token_places(self, kept: int) -> Tensor:
        """Where tokens are in `window` less `kept`: one more tail lies before those of each next sequence."""
        if kept not in self._known_token_places:
            tokens = torch.arange(self.total, device=self.cu_seqlens.device)
            before = kept * torch.bucketize(tokens, self.cu_seqlens[1:].long(), right=True)
            self._known_token_places[kept] = tokens + before
        return self._known_token_places[kept]

    @cached_property
    def _known_token_places(self) -> dict[int, Tensor]:
        """What `_token_places` has found: all layers of a model ask for the same."""
        return {}

    def _tail_places(self, places: Tensor, kept: int) -> Tensor:
        """Where in `window` the `kept` inputs lie before each of `places [N]` of the packed tokens."""
        device = places.device
        before = places + kept * torch.arange(self.batch, device=device)
        return (before[:, None] + torch.arange(kept, device=device)).flatten()
