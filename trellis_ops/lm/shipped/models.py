"""The trained models that are installed with the package, by name."""

from __future__ import annotations

from pathlib import Path

import torch

from trellis_ops.errors import UnknownModelError
from trellis_ops.lm.model import TrellisLM

SHIPPED = {"kjv-bytes": "kjv-bytes.pt"}
"""The file of each: kjv-bytes reads and writes bytes, and was trained on the King James Bible (docs/training.md)."""


def load_shipped(
    name: str = "kjv-bytes", *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TrellisLM:
    """A trained model that is installed with the package; nothing is downloaded, and no extra is needed.

    Args:
        name: one of `SHIPPED`.
        dtype: of the weights. They are kept in bfloat16, and CPUs compute faster in float32.
        device: where the model is put.

    Raises:
        UnknownModelError: no model of that name is shipped.
        ModelFileError, OSError: its file is damaged, or gone; install the package again.

    Example:
        >>> model = load_shipped("kjv-bytes")
        >>> tokens = model.generate(torch.tensor([list(b"In the beginning")]), 100, temperature=0.7)
        >>> print(bytes(tokens[0].tolist()).decode(errors="replace"))  # doctest: +SKIP
    """
    if name not in SHIPPED:
        raise UnknownModelError(name=name, known=", ".join(SHIPPED))
    return TrellisLM.load(Path(__file__).with_name(SHIPPED[name])).to(device, dtype)
