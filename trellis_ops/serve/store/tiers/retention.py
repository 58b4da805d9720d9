"""Which states a bounded tier keeps: the least worth goes first, by reuse, saved tokens and bytes.

Each use lifts the priority of a state to max(priority, clock) + tokens / bytes, and the clock stands at the priority of
the state that went last. So what is reused often, saves many tokens or is small stays longer, and what nobody uses any
more is overtaken. After GreedyDual-Size with frequency (Cherkasova, HP Labs 1998, HPL-98-69R1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from codegen.scalars import whole_number
from trellis_ops.serve.store.entry import Entry, Owner


@dataclass
class _Kept:
    entry: Entry
    size: int
    priority: float


class Retention:
    """The account of a bounded tier: bytes in all and for each owner, and priorities.

    Args:
        max_bytes: of all states, the pinned ones too.
        quota_bytes: of the states of one owner that are not pinned; None for no other limit than `max_bytes`.

    Raises:
        SizeError: a limit below 1.
    """

    def __init__(self, max_bytes: int, quota_bytes: int | None = None) -> None:
        self.max_bytes = whole_number("max_bytes", max_bytes)
        self.quota_bytes = self.max_bytes if quota_bytes is None else whole_number("quota_bytes", quota_bytes)
        self.total = 0
        self._of_owner: dict[Owner, int] = {}
        self._kept: dict[str, _Kept] = {}
        self._clock = 0.0

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def entries(self) -> list[Entry]:
        """All that are kept, the least worth first."""
        return [each.entry for each in sorted(self._kept.values(), key=lambda kept: kept.priority)]

    def bytes_of(self, owner: Owner) -> int:
        """Bytes of the states of `owner`."""
        return self._of_owner.get(owner, 0)

    def add(self, entry: Entry, size: int) -> list[Entry] | None:
        """Count a state of `size` bytes as used now; those that must go for it, or None if it finds no room.

        What holds no byte, as a file that was cut to nothing, counts as one byte until it is found to be damaged.
        """
        size = max(size, 1)
        before = self._kept.get(entry.key)
        self.remove(entry.key)
        quota = self.max_bytes if entry.owner.pinned else self.quota_bytes
        going = self._going(size - (quota - self.bytes_of(entry.owner)), entry.owner, set())
        if going is not None:
            freed = sum(each.size for each in going)
            more = self._going(size - (self.max_bytes - self.total) - freed, None, {each.entry.key for each in going})
            going = None if more is None else going + more
        if going is None:
            if before is not None:
                self._count(before)
            return None
        for each in going:
            self.remove(each.entry.key)
            self._clock = max(self._clock, each.priority)
        self._count(_Kept(entry, size, self._lifted(before.priority if before else 0.0, entry, size)))
        return [each.entry for each in going]

    def use(self, key: str) -> None:
        """Lift the priority of a state that was loaded."""
        kept = self._kept[key]
        kept.priority = self._lifted(kept.priority, kept.entry, kept.size)

    def remove(self, key: str) -> None:
        """Count a state no more, if it was."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.total -= kept.size
            self._of_owner[kept.entry.owner] -= kept.size
            if not self._of_owner[kept.entry.owner]:
                del self._of_owner[kept.entry.owner]

    def keep_only(self, keys: Iterable[str]) -> None:
        """Count no state but those of `keys`."""
        for key in self._kept.keys() - set(keys):
            self.remove(key)

    def _count(self, kept: _Kept) -> None:
        self._kept[kept.entry.key] = kept
        self.total += kept.size
        self._of_owner[kept.entry.owner] = self.bytes_of(kept.entry.owner) + kept.size

    def _lifted(self, priority: float, entry: Entry, size: int) -> float:
        return max(priority, self._clock) + entry.tokens / size

    def _going(self, needed: int, owner: Owner | None, spared: set[str]) -> list[_Kept] | None:
        """The least worth that hold `needed` bytes, of `owner` or of all; None if there are not so many."""
        going: list[_Kept] = []
        if needed <= 0:
            return going
        candidates = (
            kept
            for kept in self._kept.values()
            if not kept.entry.owner.pinned and kept.entry.key not in spared and owner in (None, kept.entry.owner)
        )
        for kept in sorted(candidates, key=lambda each: each.priority):
            going.append(kept)
            needed -= kept.size
            if needed <= 0:
                return going
        return None
