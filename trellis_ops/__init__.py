"""Bounded-memory attention as PyTorch operators, on the fastest kernels known for this machine.

Importing reads the machine and the tuning database's index; it compiles nothing and starts no GPU.
"""

from __future__ import annotations

from trellis_ops.dispatch.idle_threads import shorten_spinning
from trellis_ops.own_packages import require_own

# Before torch and the other packages are imported by what follows.
shorten_spinning()
require_own("codegen", "tuning_db")

from codegen.interruption.collection import without_collection

with without_collection():
    from trellis_ops.dispatch.forced_schedule import with_schedule
    from trellis_ops.dispatch.selection import Selection, selection
    from trellis_ops.explanation import Explanation, explain
    from trellis_ops.memory import memory_attention, memory_step
    from trellis_ops.memory_states import chunk_start, memory_states
    from trellis_ops.operators.agreement import agree_across_ranks
    from trellis_ops.operators.plan import forget
    from trellis_ops.ops import memory_readout, memory_update, trellis_attention, trellis_step
    from trellis_ops.specs.warming import WarmUp, warm_up

__all__ = [
    "Explanation",
    "Selection",
    "WarmUp",
    "agree_across_ranks",
    "chunk_start",
    "explain",
    "forget",
    "memory_attention",
    "memory_readout",
    "memory_states",
    "memory_step",
    "memory_update",
    "selection",
    "trellis_attention",
    "trellis_step",
    "warm_up",
    "with_schedule",
]

DISTRIBUTION = "trellis-ops"
"""What a package of the same name from elsewhere lacks; `trellis_ops.own_packages` looks for it."""

selection()
