"""States of prefixes that are kept and found again: in memory, on a disk, in Redis.

`trellis_ops.serve.store.tiers.redis` has the tier in Redis, which needs the package redis.
"""

from trellis_ops.serve.store.counts import StoreCounts
from trellis_ops.serve.store.placement import Placement
from trellis_ops.serve.store.prefix_store import PrefixStore, Request
from trellis_ops.serve.store.tiers.disk import Disk
from trellis_ops.serve.store.tiers.memory import Memory

__all__ = ["Disk", "Memory", "Placement", "PrefixStore", "Request", "StoreCounts"]
