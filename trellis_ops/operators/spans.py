"""Whether the contiguous tensors of a step lie apart, told by where they begin: mostly where an earlier step's did."""

from __future__ import annotations

from dataclasses import dataclass, field

_MOST_KNOWN = 256
"""A model has a state in each layer, and allocators give the same few places again."""


@dataclass(frozen=True)
class Spans:
    """The tensors of the calls of one key, whose sizes are all the same.

    Attributes:
        sizes: bytes of each, those that a step writes before the others.
        written: how many it writes.
        known: where they began in calls in which they lay apart. To look there costs a fifth of comparing them.

    Example:
        >>> spans = Spans((64, 64, 8), written=2)
        >>> spans.lie_apart((0, 64, 128)), spans.lie_apart((0, 64, 120)), spans.lie_apart((0, 32, 128))
        (True, False, False)
    """

    sizes: tuple[int, ...]
    written: int
    known: set[tuple[int, ...]] = field(default_factory=set, compare=False)

    def lie_apart(self, begins: tuple[int, ...]) -> bool:
        """Whether no tensor that is written meets another one; remembered if so.

        Args:
            begins: the addresses of all, in the order of `sizes`.
        """
        spans = list(zip(begins, self.sizes, strict=True))
        for place, (begin, size) in enumerate(spans[: self.written]):
            for other, taken in spans[place + 1 :]:
                if begin - taken < other < begin + size:
                    return False
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known.add(begins)
        return True
