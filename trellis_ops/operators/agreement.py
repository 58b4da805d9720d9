"""Asking the ranks of a job to run the same kernels."""

from __future__ import annotations

import torch.distributed as dist

from trellis_ops.dispatch import ranks
from trellis_ops.operators import plan


def agree_across_ranks(group: dist.ProcessGroup | None = None) -> None:
    """From now on, the first call of every spec takes the selection of the group's first rank, on all of its ranks.

    Every rank of the group has to call this, and afterwards make its first calls of specs in the same order as the
    others, since each is one broadcast, whether or not a rank knows a winner. Calls that force an implementation, and
    calls in float64, take no part. Calling it again begins anew, as after tuning.

    Args:
        group: whose ranks agree; all ranks of the job unless given.

    Raises:
        RuntimeError: `torch.distributed` has not been initialized.

    Example:
        >>> torch.distributed.init_process_group("nccl")  # doctest: +SKIP
        >>> agree_across_ranks()  # doctest: +SKIP
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("agree_across_ranks needs torch.distributed; call init_process_group first")
    plan.forget()
    ranks.begin(group)
