"""How the sequences of a call lie in its tensors: as rows of one length, or packed one after the other."""

from __future__ import annotations

from trellis_ops.lm.sequences.packed import Packed
from trellis_ops.lm.sequences.pooled import Pooled
from trellis_ops.lm.sequences.rows import Rows

__all__ = ["Layout", "Packed", "Pooled", "Rows"]

Layout = Rows | Packed
