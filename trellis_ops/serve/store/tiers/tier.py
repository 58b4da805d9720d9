"""What a store asks of a tier: a place for sealed states, such as memory, a disk or a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trellis_ops.serve.store.entry import Entry, Owner


class Tier(Protocol):
    """A place for sealed states; every method may be called from several threads.

    A tier that cannot do what it is asked raises `StoreTierError`, and nothing else.

    Attributes:
        name: of the tier, for counters and warnings.
        private: whether nobody but this process can write there. What was checked when it came in is then not checked
            again, which would be the larger part of a load from memory.
    """

    @property
    def name(self) -> str:
        """Of the tier, for counters and warnings."""

    @property
    def private(self) -> bool:
        """Whether nobody but this process can write there."""

    def longest(self, owner: Owner, keys: Sequence[str], segment: int) -> list[Entry]:
        """Those of `keys` that are stored, the last first; key i is that of i + 1 segments of `segment` tokens."""

    def load(self, entry: Entry) -> bytes | None:
        """What `save` was given, or None if it is gone; counts as a use."""

    def save(self, entry: Entry, sealed: bytes) -> bool:
        """Keep a state whole or not at all; False if it finds no room."""

    def drop(self, entry: Entry) -> None:
        """Keep a state no longer, if it is kept."""

    def labels(self) -> set[str]:
        """The labels of all states that were ever saved here and not cleared."""
