"""What `kv_connector_extra_config` says of a store of prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from codegen.errors import MissingPackageError
from trellis_ops.errors import ServingError
from trellis_ops.files import regular_file
from trellis_ops.serve.store import Disk, Memory, PrefixStore
from trellis_ops.serve.store.tiers.tier import Tier


@dataclass(frozen=True)
class StoreOptions:
    """Where states are kept, and for whom.

    Attributes:
        key_file: of the store key, at least 32 random bytes.
        tenant: whom requests without a `cache_salt` belong to; without it, they have no store.
        tokenizer: names the tokenizer; stores of one name share states.
        memory_bytes: most bytes of a tier in the memory of the engine's process; None for no such tier.
        folder: of a tier on the disk; None for none.
        folder_bytes: most bytes there.
        redis: URL of a server; None for none.
        quota_bytes: most bytes of a tenant in each tier; None for no bound but that of the tier, which Redis needs.
        registered_tokens: of the longest prefix that `PrefixStore.register` has put into a tier for everybody.
    """

    key_file: str
    tenant: str | None = None
    tokenizer: str = ""
    memory_bytes: int | None = None
    folder: str | None = None
    folder_bytes: int = 2**30
    redis: str | None = None
    quota_bytes: int | None = None
    registered_tokens: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> StoreOptions:
        """Those of a mapping.

        Raises:
            ServingError: an option that is not known or no text where one belongs, no `key_file`, no place, or Redis
                without a quota.
        """
        known = [each.name for each in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise _refusal(name, value, f"the options of the store are {', '.join(known)}")
            if name in _TEXTS and not isinstance(value, str | None):
                raise _refusal(name, value, "it must be a text")
        if not given.get("key_file"):
            raise _refusal("key_file", None, "without a key no state is found again; name a file of 32 random bytes")
        options = cls(**given)
        if (options.memory_bytes, options.folder, options.redis) == (None, None, None):
            raise _refusal("memory_bytes", None, "the store has no place; give memory_bytes, folder or redis")
        if options.redis is not None and options.quota_bytes is None:
            raise _refusal("quota_bytes", None, "a tier in Redis needs a bound for each tenant")
        return options

    def opened(self) -> PrefixStore:
        """The store.

        Raises:
            MissingPackageError: the package redis is not installed.
            OSError, IrregularFileError: the key cannot be read. And what `PrefixStore` and its tiers raise.
        """
        tiers: list[Tier] = []
        if self.memory_bytes is not None:
            tiers.append(Memory(self.memory_bytes, self.quota_bytes))
        if self.folder is not None:
            tiers.append(Disk(self.folder, self.folder_bytes, self.quota_bytes))
        if self.redis is not None and self.quota_bytes is not None:
            tiers.append(_redis(self.redis, self.quota_bytes))
        key = regular_file.read_bytes(Path(self.key_file))
        return PrefixStore(key, tiers, tokenizer=self.tokenizer, registered_tokens=self.registered_tokens)


_TEXTS = ("key_file", "tenant", "tokenizer", "folder", "redis")


def _redis(url: str, quota_bytes: int) -> Tier:
    try:
        from trellis_ops.serve.store.tiers.redis import Redis
    except ImportError as error:
        raise MissingPackageError(package=error.name or "redis", extra="serve") from error
    return Redis(url, quota_bytes)


def _refusal(name: str, value: object, reason: str) -> ServingError:
    return ServingError(engine="vLLM", name=f"kv_connector_extra_config[{name!r}]", value=value, reason=reason)
