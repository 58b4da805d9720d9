"""At which lengths of a prompt its state is worth keeping."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codegen.scalars import whole_number

_MOST_SEEN = 1 << 15
"""Links that `Junctions` remembers, about 6 MB: 2 million tokens of prompts in segments of 64."""


@dataclass(frozen=True)
class Placement:
    """Which lengths of a prompt have their states kept, beside those that a request declares; in whole segments.

    Attributes:
        last: the last one before the prompt's end, where the next turn of a conversation goes on.
        junctions: where a prompt leaves one that was read before it. The first prompt that begins like another saves
            there, so that the third need not read what they share (arXiv 2411.19379).
        interval: one every so many tokens, rounded up to whole segments; None for none.

    Raises:
        SizeError: an interval below 1.
    """

    last: bool = True
    junctions: bool = True
    interval: int | None = None

    def __post_init__(self) -> None:
        if self.interval is not None:
            object.__setattr__(self, "interval", whole_number("interval", self.interval, also=", or None"))

    def wanted(self, found: int, last: int, segment: int, junction: int, declared: Iterable[int]) -> tuple[int, ...]:
        """Lengths to keep, ascending: multiples of `segment` above `found`, up to `last`.

        Args:
            found: length of the stored prefix that the prompt goes on from.
            last: the last multiple of `segment` before the prompt's end.
            segment: tokens of a segment.
            junction: length that the prompt shares with one that was read before, 0 for none.
            declared: lengths that the request names, rounded down to whole segments.
        """
        lengths = {each // segment * segment for each in declared}
        if self.last:
            lengths.add(last)
        if self.junctions:
            lengths.add(junction)
        if self.interval is not None:
            lengths |= set(range(0, last + 1, -(-self.interval // segment) * segment))
        return tuple(sorted(each for each in lengths if found < each <= last))


class Junctions:
    """Links of the chains of prompts that were read, the latest `_MOST_SEEN`."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def shared(self, keys: Sequence[str]) -> int:
        """How many of `keys` an earlier prompt began with; from now on these are earlier ones."""
        with self._lock:
            shared = max((index + 1 for index, key in enumerate(keys) if key in self._seen), default=0)
            for key in keys:
                self._seen[key] = None
                self._seen.move_to_end(key)
            while len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
        return shared
