"""What a kernel has moved in a copy goes back to where it came from."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def put_back(to: Tensor, moved: Tensor) -> None:
    """Write `moved` to `to`, of one shape, which may have been made in inference mode.

    Kernels write to such tensors anywhere, and torch only in inference mode: a refusal here would leave states of which
    a kernel has moved some.
    """
    with torch.inference_mode() if to.is_inference() else nullcontext():
        to.copy_(moved)
