"""What each of two processes does, in a module of its own: a new process imports no more than that."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.trellis_ops.hf.small import pair, tokens


def gradients_of_a_rank(rank: int, store: str, queue: Any) -> None:
    """Put the gradients of a model that two processes share into `queue`, from the first of them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(pair()[1])
    rows = torch.stack([tokens(12, seed=rank), tokens(12, seed=rank + 2)])
    model(input_ids=rows, labels=rows).loss.backward()
    queue.put([weight.grad.tolist() for weight in model.parameters()] if rank == 0 else None)
    torch.distributed.destroy_process_group()
