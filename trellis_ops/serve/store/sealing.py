"""A state as bytes: safetensors behind a seal, which is checked before anything of them is parsed.

    8 bytes   "TRELLIS" and the version of the format
    32 bytes  HMAC-SHA256 of those 8 bytes, the entry's key, and all that follows
    the rest  safetensors, a format without code

The seal covers the key, so that a state that was put in the place of another is no state there.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trellis_ops.errors import DamagedStateError
from trellis_ops.serve.store.chain import SCHEMA, Secrets
from trellis_ops.serve.store.entry import Entry

_MAGIC = b"TRELLIS" + bytes([SCHEMA])
_SEAL_BYTES = 32
_HEAD_BYTES = len(_MAGIC) + _SEAL_BYTES


def seal(secrets: Secrets, entry: Entry, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a state, the same for every tier."""
    payload = save({name: each.detach().cpu().contiguous() for name, each in tensors.items()})
    return b"".join((_MAGIC, _seal(secrets, entry, memoryview(payload)), payload))


def unseal(secrets: Secrets, entry: Entry, sealed: bytes, check: bool = True) -> dict[str, Tensor]:
    """The tensors of `seal`, on the CPU, sharing no memory with `sealed`.

    Args:
        secrets: keys of the store.
        entry: whose bytes they are.
        sealed: the bytes.
        check: whether to compare the seal; False for bytes that this process made or has compared, and alone can write.

    Raises:
        DamagedStateError: a bit differs, the state is another entry's, or another key sealed it.
    """
    payload = memoryview(sealed)[_HEAD_BYTES:]
    if check and not hmac.compare_digest(sealed[:_HEAD_BYTES], _MAGIC + _seal(secrets, entry, payload)):
        raise DamagedStateError(tokens=entry.tokens, problem="its seal is not that of its content")
    try:
        return load(bytes(payload))
    except SafetensorError as error:
        raise DamagedStateError(tokens=entry.tokens, problem=f"safetensors says: {error}") from error


def _seal(secrets: Secrets, entry: Entry, payload: memoryview) -> bytes:
    digest = hmac.new(secrets.sealing, _MAGIC + bytes.fromhex(entry.key), "sha256")
    digest.update(payload)
    return digest.digest()
