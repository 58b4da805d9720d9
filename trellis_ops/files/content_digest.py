"""A digest of what a file holds, by which a damaged one is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def content_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over `text` and over name, type, shape and bytes of every tensor, whatever their order."""
    digest = hashlib.sha256(repr(text).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
