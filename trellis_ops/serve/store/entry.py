"""What names a stored state: the model and the store key that it belongs to, whose it is, and its prefix."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Owner:
    """Whose states they are.

    Attributes:
        label: digest of the store key and of the model, hexadecimal; states of another label are never looked at.
        scope: digest of a tenant, or of the prefixes that tenants share or an operator registered, hexadecimal.
        pinned: whether the states of this owner stay until they are dropped, as those that an operator registered do.
        common: whether more than one tenant may find them.
    """

    label: str
    scope: str
    pinned: bool = False
    common: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Entry:
    """One stored state.

    Attributes:
        owner: whose it is.
        key: the link of the owner's chain after the prefix, see `trellis_ops.serve.store.chain`, hexadecimal.
        tokens: length of the prefix.
    """

    owner: Owner
    key: str
    tokens: int
