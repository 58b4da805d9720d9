"""What a store has done, counted with reasons, and one warning for each kind of fault."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_LOG = logging.getLogger("trellis_ops.serve.store")


@dataclass(frozen=True)
class StoreCounts:
    """Since the store was made.

    Attributes:
        hits: prompts that went on from a stored prefix, by tier.
        misses: prompts that did not, by reason: "short", a prompt that ends in its first chunk; "unknown", no prefix
            of it is stored; else the fault that hid a prefix which may be stored.
        faults: by tier and kind: "damaged", a seal that does not fit; "gone", a state that was listed and is not there;
            "emptied", "unreachable", "unreadable", "unwritable", "full", "refused".
        saves: states that were kept, by tier.
        no_room: states for which a bounded tier found no room, by tier.
        tokens: tokens of all prompts.
        tokens_found: those of them that stored prefixes spared.
    """

    hits: Mapping[str, int] = field(default_factory=dict)
    misses: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[tuple[str, str], int] = field(default_factory=dict)
    saves: Mapping[str, int] = field(default_factory=dict)
    no_room: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    tokens_found: int = 0


class Counting:
    """Counts for one store; safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._saves: Counter[str] = Counter()
        self._no_room: Counter[str] = Counter()
        self._tokens = self._tokens_found = 0
        self._warned: set[tuple[str, str]] = set()

    def counts(self) -> StoreCounts:
        """The counts as they are now."""
        with self._lock:
            return StoreCounts(
                dict(self._hits),
                dict(self._misses),
                dict(self._faults),
                dict(self._saves),
                dict(self._no_room),
                self._tokens,
                self._tokens_found,
            )

    def hit(self, tier: str, tokens: int, found: int) -> None:
        """Count a prompt of `tokens` tokens, `found` of which are stored in `tier`."""
        with self._lock:
            self._hits[tier] += 1
            self._tokens += tokens
            self._tokens_found += found

    def miss(self, reason: str, tokens: int) -> None:
        """Count a prompt of `tokens` tokens that is read from its beginning."""
        with self._lock:
            self._misses[reason] += 1
            self._tokens += tokens

    def save(self, tier: str) -> None:
        """Count a state that `tier` keeps."""
        with self._lock:
            self._saves[tier] += 1

    def no_room(self, tier: str) -> None:
        """Count a state for which `tier` has no room, and warn of the first."""
        with self._lock:
            self._no_room[tier] += 1
        self.warn(tier, "no room", "a state is larger than its bound or quota leaves beside pinned states")

    def fault(self, tier: str, kind: str, problem: object) -> None:
        """Count a fault, and warn of the first of its kind in this tier."""
        with self._lock:
            self._faults[tier, kind] += 1
        self.warn(tier, kind, problem)

    def warn(self, tier: str, kind: str, problem: object) -> None:
        """Log a warning unless there was one of this kind for this tier."""
        with self._lock:
            if (tier, kind) in self._warned:
                return
            self._warned.add((tier, kind))
        _LOG.warning("prefix store, tier %s, %s: %s. More of this kind are only counted.", tier, kind, problem)
