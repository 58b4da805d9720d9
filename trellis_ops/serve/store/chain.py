"""Keys of prefixes: a chain of HMACs over the tokens, with a link for each segment of whole chunks.

h_i = HMAC(chain key, h_(i-1) || tokens of segment i), and h_0 is seeded with everything else that a state depends on. A
link therefore names the whole prefix, the model and the owner, and nobody without the key can tell or forge one.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codegen.errors import SizeError
from trellis_ops.serve.store.entry import Owner

if TYPE_CHECKING:
    from hashlib import _Hash

LEAST_KEY_BYTES = 32
"""Length of a store key, as of the key of a team's kernel cache: that of a digest of SHA-256."""

SCHEMA = 1
"""Version of keys and of sealed states; states of another version are never found."""


TENANT, SHARED, REGISTERED = "tenant", "shared", "registered"
"""Whose a state is: one tenant's, of requests that declared it public, of the operator."""


@dataclass(frozen=True)
class Secrets:
    """The keys that are derived from a store key by HMAC, one for each use.

    Attributes:
        naming: of labels and scopes.
        chaining: of the links of chains.
        sealing: of the states' seals.
    """

    naming: bytes
    chaining: bytes
    sealing: bytes

    @classmethod
    def of(cls, key: bytes) -> Secrets:
        """Those of a store key.

        Raises:
            TypeError: `key` is no bytes. SizeError: it is shorter than `LEAST_KEY_BYTES`.
        """
        if not isinstance(key, bytes):
            raise TypeError(f"the store key is {type(key).__name__}, but must be bytes, as of secrets.token_bytes(32)")
        if len(key) < LEAST_KEY_BYTES:
            expected = f"at least {LEAST_KEY_BYTES} random bytes, as of secrets.token_bytes({LEAST_KEY_BYTES})"
            raise SizeError(name="length of the store key", value=len(key), expected=expected)
        naming, chaining, sealing = (hmac.digest(key, f"{use} {SCHEMA}".encode(), "sha256") for use in _USES)
        return cls(naming, chaining, sealing)

    def owner(self, model: str, kind: str, name: str = "") -> Owner:
        """The owner of states of a model.

        Args:
            model: the identity of the model, see `trellis_ops.serve.store.identity`.
            kind: `TENANT`, `SHARED` or `REGISTERED`.
            name: of a tenant; empty for the others.
        """
        label = self._name(f"label\0{model}")
        return Owner(label, self._name(f"{kind}\0{name}"), kind == REGISTERED, kind != TENANT)

    def _name(self, text: str) -> str:
        # A client may have sent half a character, which JSON allows; it must not stop an engine that serves others.
        return hmac.digest(self.naming, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:_NAME_DIGITS]


_USES = ("naming", "chaining", "sealing")
_NAME_DIGITS = 32


LEAST_SEGMENT = 64
"""Tokens of a segment at least: with shorter ones, the hashing of a long prompt would cost more than a state's load."""


def segment_of(chunk: int) -> int:
    """Tokens of a segment in a model with chunks of `chunk` tokens: the least multiple not below `LEAST_SEGMENT`."""
    return -(-LEAST_SEGMENT // chunk) * chunk


class Chain:
    """The links of a prefix, which grows with its tokens; a conversation's chain goes on where the last turn left it.

    Args:
        secrets: of the store.
        owner: whose states the links name.
        segment: tokens of a link, see `segment_of`.
    """

    def __init__(self, secrets: Secrets, owner: Owner, segment: int) -> None:
        self.owner = owner
        self.segment = segment
        self.keys: list[str] = []
        self._inner, self._outer = (_hashed(secrets.chaining, pad) for pad in _PADS)
        self._link = self._next(f"{SCHEMA}\0{owner.label}\0{owner.scope}\0{segment}".encode())
        self._rest = b""

    def extend(self, tokens: Tensor) -> None:
        """Add `tokens [T]`, int64; those that fill no segment wait for the next."""
        data = self._rest + tokens.detach().to("cpu", torch.int64).numpy().astype("<u4").tobytes()
        size = self.segment * 4
        whole = len(data) // size * size
        for first in range(0, whole, size):
            self._link = self._next(self._link + data[first : first + size])
            self.keys.append(self._link.hex())
        self._rest = data[whole:]

    def _next(self, data: bytes) -> bytes:
        # HMAC-SHA256 by its definition, RFC 2104: copies of hashes that have read the key take a fraction of the time
        # that `hmac` takes for so short a text.
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()


_BLOCK_BYTES = 64
_PADS = (0x36, 0x5C)
"""What the key of an HMAC is combined with for its inner and its outer hash."""


def _hashed(key: bytes, pad: int) -> _Hash:
    """SHA-256 after one block, a key of at most its length, every byte combined with `pad`."""
    return sha256(bytes(byte ^ pad for byte in key.ljust(_BLOCK_BYTES, b"\0")))
