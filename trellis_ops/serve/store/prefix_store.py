"""The store: finds the longest stored prefix of a prompt, and keeps the states that its placement wants."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from codegen.errors import SizeError
from codegen.scalars import whole_number
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state.prefixes import StatefulModel
from trellis_ops.serve.store.chain import REGISTERED, SHARED, TENANT, Chain, Secrets, segment_of
from trellis_ops.serve.store.counts import Counting, StoreCounts
from trellis_ops.serve.store.entry import Entry
from trellis_ops.serve.store.identity import Identities, LoadedModel
from trellis_ops.serve.store.placement import Junctions, Placement
from trellis_ops.serve.store.tiers.all_tiers import Tiers
from trellis_ops.serve.store.tiers.tier import Tier

_MOST_SHARED = 4096
"""States of more than one tenant whose tenants are counted, the latest used."""


@dataclass(frozen=True)
class SharedPrefix:
    """A state that more than one tenant may find.

    Attributes:
        key: of the entry.
        tokens: length of the prefix.
        registered: whether an operator registered it; else requests shared it by `public_until`.
        tenants: how many distinct tenants found or saved it in this process. One that stays at 1 is not public.
    """

    key: str
    tokens: int
    registered: bool
    tenants: int


@dataclass(frozen=True)
class Request:
    """On whose behalf prompts are looked up; `TrellisLM.generate` takes it as `prefix_store`.

    Attributes:
        store: where.
        kind: `TENANT`, or `REGISTERED` for what an operator registers.
        tenant: name of the tenant.
        public_until: tokens at the beginning of a prompt that hold nothing private.
        save_at: lengths that the application declares worth keeping, such as the end of a document.
    """

    store: PrefixStore
    kind: str
    tenant: str
    public_until: int = 0
    save_at: tuple[int, ...] = ()

    def lookup(self, model: StatefulModel | LoadedModel, tokens: Tensor, above: int = 0) -> Lookup:
        """What is stored of the prompt `tokens [T]`, int64, for `model`; counts one hit or one miss.

        Of a prompt whose first `above` tokens need not be found, only longer prefixes are looked for; where none can be
        longer, nothing is asked or counted.
        """
        return self.store._lookup(self, model, tokens, above)


@dataclass(frozen=True)
class Lookup:
    """What the store has of one prompt, and what it wants; see `trellis_ops.lm.state.prefixes.PrefixLookup`."""

    store: PrefixStore
    tenant: str
    chains: Sequence[Chain] = ()
    found: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    wanted: Sequence[int] = ()

    def save(self, length: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the state after the first `length` tokens of the prompt, `tensors` as `TrellisLM.carried` names them.

        Raises:
            SizeError: `length` is no multiple of the segment, or beyond what was looked up.
        """
        for chain in self.chains:
            index, rest = divmod(length, chain.segment)
            if rest == 0 and 0 < index <= len(chain.keys):
                self.store._save(Entry(chain.owner, chain.keys[index - 1], length), self.tenant, tensors)
                return
        raise SizeError(name="length of the prefix", value=length, expected=f"one of {list(self.wanted)}")


class PrefixStore:
    """States of prefixes, found by the longest one that is stored and loaded in a time that its length has no part in.

    Nobody finds what another tenant stored: the tenant is part of the key of a state. What more than one may find is
    what `register` was given, and the beginnings of prompts that requests declare public. A fault of a tier is a miss;
    `counts` has all of them, and the logger `trellis_ops.serve.store` warns of the first of each kind.

    Args:
        key: at least 32 random bytes that all processes of a service share and nobody else has.
        tiers: where states are, the fastest first. What is found in a slower one is copied to those before it.
        tokenizer: names the tokenizer, where models of one vocabulary have several.
        placement: which states are kept.
        registered_tokens: of the longest prefix that another process registers in a tier and that is found here too.

    Raises:
        TypeError, SizeError: a key that is none or too short, `registered_tokens` below 0. ValueError: no tier, or two
            of one name.

    Example:
        >>> store = PrefixStore(secrets.token_bytes(32), [Memory(max_bytes=2**30)])
        >>> model.generate(prompt, 32, prefix_store=store.tenant("alice"))
    """

    def __init__(
        self,
        key: bytes,
        tiers: Sequence[Tier],
        tokenizer: str = "",
        placement: Placement | None = None,
        registered_tokens: int = 0,
    ) -> None:
        self._secrets = Secrets.of(key)
        self._placement = placement or Placement()
        self._counting = Counting()
        self._tiers = Tiers(tiers, self._secrets, self._counting)
        self._identities = Identities(tokenizer)
        self._junctions = Junctions()
        self._registered = whole_number("registered_tokens", registered_tokens, least=0)
        self._tenants: OrderedDict[Entry, set[str]] = OrderedDict()
        self._lock = threading.Lock()

    def tenant(self, name: str, public_until: int = 0, save_at: Sequence[int] = ()) -> Request:
        """The store as a tenant sees it, for one request or many.

        The name is set by whoever knows who asks, such as a gateway that has checked a token, never by the client.

        Args:
            name: of the tenant; tenants of other names find nothing of it.
            public_until: how many tokens at the beginning of the prompt are the same for every tenant and hold nothing
                private. A state mixes all tokens before it, so what is shared is that beginning, rounded down to whole
                segments, and nothing after it. 0 shares nothing.
            save_at: lengths worth keeping beside those of `placement`, rounded down to whole segments.

        Raises:
            ValueError: an empty name. TypeError: no text. SizeError: a number below 0.
        """
        if not isinstance(name, str):
            raise TypeError(f"tenant is {name!r}, but must be a text")
        if not name:
            raise ValueError("tenant is empty; name whoever the prompts belong to")
        until = whole_number("public_until", public_until, least=0)
        return Request(self, TENANT, name, until, tuple(whole_number("save_at", each, least=0) for each in save_at))

    def register(self, model: TrellisLM, tokens: Tensor) -> int:
        """Store a prefix that every tenant may find, such as a system prompt, and keep it in every tier.

        A state that a tier has is loaded, not computed again. A process that registers nothing finds what others have
        registered if `registered_tokens` says how long it is.

        Args:
            model: reads the prefix.
            tokens: `[T]`, int64.

        Returns:
            How many tokens are stored: T rounded down to whole segments.

        Raises:
            SizeError: the prefix is shorter than a segment; and what `TrellisLM.generate` raises.
        """
        segment = segment_of(model.config.chunk)
        length = len(tokens) // segment * segment
        if length == 0:
            raise SizeError(name="length of the prefix", value=len(tokens), expected=f"at least {segment} tokens")
        # One token more, since a prompt is never found whole.
        prompt = F.pad(tokens[:length], (0, 1))[None]
        model.generate(prompt, 0, prefix_store=Request(self, REGISTERED, ""))
        self._registered = max(self._registered, length)
        return length

    def counts(self) -> StoreCounts:
        """What was found, kept and missed since the store was made, with reasons."""
        return self._counting.counts()

    def shared(self) -> list[SharedPrefix]:
        """What more than one tenant may find, as far as this process used it, the latest last."""
        with self._lock:
            return [
                SharedPrefix(entry.key, entry.tokens, entry.owner.pinned, len(tenants))
                for entry, tenants in self._tenants.items()
            ]

    def forget(self, model: StatefulModel) -> None:
        """Read the weights of `model` again at its next lookup; only needed after a change through `parameter.data`."""
        self._identities.forget(model)

    def _lookup(self, request: Request, model: StatefulModel | LoadedModel, tokens: Tensor, above: int) -> Lookup:
        segment = segment_of(model.config.chunk)
        last = (len(tokens) - 1) // segment * segment
        if last <= 0:
            self._counting.miss("short", len(tokens))
            return Lookup(self, request.tenant)
        own, read_only = self._chains(request, self._identities.of(model), segment, tokens[:last])
        asked = above < last
        found, reason = self._tiers.find([*own, *read_only], last, above) if asked else (None, "")
        length = 0 if found is None else found.entry.tokens
        if found is not None:
            self._counting.hit(found.tier, len(tokens), length)
            self._used(found.entry, request.tenant)
        elif asked:
            self._counting.miss(reason, len(tokens))
        junction = self._junctions.shared(own[-1].keys) * segment
        declared = [request.public_until, *request.save_at]
        wanted = self._placement.wanted(max(length, above), last, segment, junction, declared)
        return Lookup(self, request.tenant, own, length, {} if found is None else found.tensors, wanted)

    def _chains(self, request: Request, identity: str, segment: int, tokens: Tensor) -> tuple[list[Chain], list[Chain]]:
        """The chains where states of this request are found and kept, and those where they are only found."""

        def chain(kind: str, tenant: str, length: int) -> list[Chain]:
            if length < segment:
                return []
            made = Chain(self._secrets, self._secrets.owner(identity, kind, tenant), segment)
            made.extend(tokens[: length // segment * segment])
            return [made]

        whole = chain(request.kind, request.tenant, len(tokens))
        if request.kind == REGISTERED:
            return whole, []
        return [*chain(SHARED, "", request.public_until), *whole], chain(REGISTERED, "", self._registered)

    def _save(self, entry: Entry, tenant: str, tensors: Mapping[str, Tensor]) -> None:
        self._tiers.save(entry, tensors)
        self._used(entry, tenant)

    def _used(self, entry: Entry, tenant: str) -> None:
        """Count a tenant of a state that is not only its own."""
        if not entry.owner.common:
            return
        with self._lock:
            tenants = self._tenants.setdefault(entry, set())
            self._tenants.move_to_end(entry)
            if tenant:
                tenants.add(tenant)
            while len(self._tenants) > _MOST_SHARED:
                self._tenants.popitem(last=False)
