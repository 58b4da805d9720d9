"""All tiers of a store as one: the longest prefix that any of them has, and a state into each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor

from trellis_ops.errors import DamagedStateError, StoreTierError
from trellis_ops.serve.store.chain import Chain, Secrets
from trellis_ops.serve.store.counts import Counting
from trellis_ops.serve.store.entry import Entry
from trellis_ops.serve.store.sealing import seal, unseal
from trellis_ops.serve.store.tiers.tier import Tier

Result = TypeVar("Result")

UNKNOWN = "unknown"
"""The reason of a miss that no fault explains."""


@dataclass(frozen=True)
class Found:
    """A state that was loaded.

    Attributes:
        entry: which.
        tier: the name of the tier that had it.
        tensors: the state, nobody else's.
    """

    entry: Entry
    tier: str
    tensors: dict[str, Tensor]


class Tiers:
    """Tiers that are asked in order; what one of them cannot do is counted and costs no more than a miss.

    Args:
        tiers: the fastest first.
        secrets: keys of the store.
        counting: of faults and saves.

    Raises:
        ValueError: no tier, or two of one name.
    """

    def __init__(self, tiers: Sequence[Tier], secrets: Secrets, counting: Counting) -> None:
        names = [tier.name for tier in tiers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tiers are named {names}, but must be one or more of different names")
        self._tiers = tuple(tiers)
        self._secrets = secrets
        self._counting = counting
        self._met: set[tuple[str, str]] = set()

    def find(self, chains: Sequence[Chain], longest: int, above: int = 0) -> tuple[Found | None, str]:
        """The longest prefix that one of `chains` names and a tier has, and why there is none.

        Args:
            chains: of the owners whose states may be found.
            longest: tokens of the longest prefix that the chains name; no tier is asked once it is found.
            above: tokens of a prefix that the caller has; only longer ones are looked for.
        """
        best: Found | None = None
        reason = UNKNOWN
        for place, tier in enumerate(self._tiers):
            found, fault = self._find_in(tier, chains, above if best is None else best.entry.tokens)
            reason = fault or reason
            if found is not None:
                best, sealed = found
                for faster in self._tiers[:place]:
                    self._save_in(faster, best.entry, sealed)
            if best is not None and best.entry.tokens == longest:
                break
        return best, reason

    def save(self, entry: Entry, tensors: Mapping[str, Tensor]) -> None:
        """Keep a state in every tier that can."""
        sealed = seal(self._secrets, entry, tensors)
        for tier in self._tiers:
            self._save_in(tier, entry, sealed)

    def _find_in(self, tier: Tier, chains: Sequence[Chain], above: int) -> tuple[tuple[Found, bytes] | None, str]:
        """The longest state of more than `above` tokens with its bytes, and the last fault."""
        self._meet(tier, chains[0].owner.label)
        candidates: list[Entry] = []
        reason = ""
        for chain in chains:
            listed = self._asked(tier, partial(tier.longest, chain.owner, chain.keys, chain.segment))
            if isinstance(listed, str):
                return None, listed
            candidates += (entry for entry in listed if entry.tokens > above)
        for entry in sorted(candidates, key=lambda each: -each.tokens):
            loaded = self._asked(tier, partial(tier.load, entry))
            if isinstance(loaded, str):
                return None, loaded
            if loaded is None:
                reason = self._fault(tier, "gone", f"a listed state of {entry.tokens} tokens is not there")
                continue
            try:
                check_seal = not tier.private
                return (Found(entry, tier.name, unseal(self._secrets, entry, loaded, check_seal)), loaded), reason
            except DamagedStateError as error:
                reason = self._fault(tier, "damaged", error)
                self._asked(tier, partial(tier.drop, entry))
        return None, reason

    def _save_in(self, tier: Tier, entry: Entry, sealed: bytes) -> None:
        kept = self._asked(tier, partial(tier.save, entry, sealed))
        if kept is True:
            self._counting.save(tier.name)
        elif kept is False:
            self._counting.no_room(tier.name)

    def _meet(self, tier: Tier, label: str) -> None:
        """Warn if a tier holds states of other keys or models, and none of this one."""
        if (tier.name, label) in self._met:
            return
        labels = self._asked(tier, tier.labels)
        if isinstance(labels, str):
            return
        self._met.add((tier.name, label))
        if labels and label not in labels:
            problem = "it holds states of another store key or another model only, and none of them is used"
            self._counting.warn(tier.name, "other states", problem)

    def _asked(self, tier: Tier, command: Callable[[], Result]) -> Result | str:
        """What `command` gives, or the kind of the fault that stopped it."""
        try:
            return command()
        except StoreTierError as error:
            return self._fault(tier, str(error.kind), error.problem)

    def _fault(self, tier: Tier, kind: str, problem: object) -> str:
        self._counting.fault(tier.name, kind, problem)
        return kind
