"""Batches: documents laid end to end in lanes, cut into windows that a state is carried through.

A batch is one window of each of B lanes. The next batch holds the next window of the same lanes, so that a state can be
carried from one to the other; where a document ends, its window is filled up with targets that do not count, and the
lane starts anew. Which windows a step sees depends on the seed and the step alone: that is the whole data position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_ops.lm.train.errors import TextError

IGNORED = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Corpus:
    """Documents as tokens.

    Attributes:
        tokens: all of them, `[n]`, int32.
        sizes: tokens of each document, each at least 2.
    """

    tokens: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, documents: Sequence[Tensor]) -> Corpus:
        """The token sequences given; those without a second token, which has nothing to predict, are left out."""
        kept = [each for each in documents if len(each) >= 2]
        if not kept:
            raise TextError(source=f"{len(documents)} documents", problem="none has two tokens")
        return cls(torch.cat(kept), tuple(len(each) for each in kept))

    def fingerprint(self) -> str:
        """A digest by which a run knows its text again."""
        digest = hashlib.sha256(str(self.sizes).encode())
        digest.update(self.tokens.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """One window of every lane.

    Attributes:
        tokens: `[B, length]`, int64.
        targets: the token after each, `[B, length]`, int64; `IGNORED` where there is none.
        fresh: `[B]`, bool: lanes that start anew, because a document or an epoch does.
    """

    tokens: Tensor
    targets: Tensor
    fresh: Tensor

    def counted(self) -> Tensor:
        """The targets that count, `[n]`."""
        return self.targets[self.targets != IGNORED]

    def share(self, rank: int, count: int) -> Batch:
        """The lanes of one of `count` processes."""
        lanes = len(self.fresh) // count
        mine = slice(rank * lanes, (rank + 1) * lanes)
        return Batch(self.tokens[mine], self.targets[mine], self.fresh[mine])


class Lanes:
    """All windows of a corpus, dealt to lanes.

    Args:
        corpus: what to read.
        batch: B, the number of lanes.
        length: tokens in a window.
        seed: of the order of the documents, drawn for every epoch; None keeps it and leaves no window out.

    Raises:
        TextError: a seed is given and there are fewer windows than lanes.
    """

    def __init__(self, corpus: Corpus, batch: int, length: int, seed: int | None = None) -> None:
        self._tokens, self._batch, self._length, self._seed = corpus.tokens, batch, length, seed
        self._documents = _windows(corpus.sizes, length)
        total = sum(len(each) for each in self._documents)
        self.steps = total // batch if seed is not None else -(-total // batch)
        if self.steps == 0:
            problem = f"{total} windows of {length} tokens cannot fill {batch} lanes; give more text or a smaller batch"
            raise TextError(source=f"{len(corpus.tokens)} tokens", problem=problem)
        self._epoch, self._order = -1, torch.empty(0)

    def batch(self, step: int) -> Batch:
        """The windows of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._dealt(epoch)
        start, size, first = self._order[:, index].unbind(-1)
        offsets = torch.arange(self._length)
        inside = offsets < size[:, None]
        # What lies beyond the end of a document is some token; its target does not count.
        places = start[:, None] + torch.where(inside, offsets, 0)
        tokens = self._tokens[places].long()
        following = self._tokens[(places + 1).clamp_max(len(self._tokens) - 1)].long()
        return Batch(tokens, torch.where(inside, following, IGNORED), (first == 1) | (index == 0))

    def _dealt(self, epoch: int) -> Tensor:
        """`[B, steps, 3]`: start, size and whether a document starts, of every window in its lane."""
        if self._seed is None:
            windows = torch.cat(self._documents)
            spare = self.steps * self._batch - len(windows)
            windows = torch.cat([windows, windows.new_zeros(spare, 3)])
        else:
            # One stream of numbers per seed and epoch, far apart for neighbours; a generator takes 64 bits of a seed.
            stream = ((self._seed * 1_000_003 + epoch) * 7_919 + 17) % 2**64
            generator = torch.Generator().manual_seed(stream)
            order = torch.randperm(len(self._documents), generator=generator)
            windows = torch.cat([self._documents[i] for i in order.tolist()])
            turn = int(torch.randint(len(windows), (), generator=generator))
            windows = windows.roll(turn, 0)[: self.steps * self._batch]
        return windows.view(self._batch, self.steps, 3)


def _windows(sizes: Sequence[int], length: int) -> list[Tensor]:
    """For each document `[windows, 3]`: where a window starts, how many targets it has, whether it is the first."""
    found, offset = [], 0
    for size in sizes:
        starts = torch.arange(0, size - 1, length)
        found.append(torch.stack([starts + offset, (size - 1 - starts).clamp_max(length), (starts == 0).long()], -1))
        offset += size
    return found
