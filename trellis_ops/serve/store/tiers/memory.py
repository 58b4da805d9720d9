"""States in the memory of this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from trellis_ops.serve.store.entry import Entry, Owner
from trellis_ops.serve.store.tiers.retention import Retention


class Memory:
    """A tier in the memory of this process.

    Args:
        max_bytes: of all states.
        quota_bytes: of the states of one tenant under one model; None for no other limit than `max_bytes`.

    Raises:
        SizeError: a limit below 1.
    """

    name = "memory"
    private = True

    def __init__(self, max_bytes: int, quota_bytes: int | None = None) -> None:
        self.retention = Retention(max_bytes, quota_bytes)
        self._sealed: dict[str, bytes] = {}
        self._labels: set[str] = set()
        self._lock = threading.Lock()

    def longest(self, owner: Owner, keys: Sequence[str], segment: int) -> list[Entry]:
        """Those of `keys` that are stored, the last first."""
        with self._lock:
            stored = [(index, key) for index, key in enumerate(keys) if key in self._sealed]
        return [Entry(owner, key, (index + 1) * segment) for index, key in reversed(stored)]

    def load(self, entry: Entry) -> bytes | None:
        """What `save` was given, or None if it is gone."""
        with self._lock:
            sealed = self._sealed.get(entry.key)
            if sealed is not None:
                self.retention.use(entry.key)
            return sealed

    def save(self, entry: Entry, sealed: bytes) -> bool:
        """Keep a state; False if it finds no room beside pinned ones."""
        with self._lock:
            going = self.retention.add(entry, len(sealed))
            if going is None:
                return False
            for each in going:
                del self._sealed[each.key]
            self._sealed[entry.key] = sealed
            self._labels.add(entry.owner.label)
            return True

    def drop(self, entry: Entry) -> None:
        """Keep a state no longer."""
        with self._lock:
            self.retention.remove(entry.key)
            self._sealed.pop(entry.key, None)

    def labels(self) -> set[str]:
        """The labels of all states that were saved."""
        return set(self._labels)
