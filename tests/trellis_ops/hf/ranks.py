"""What each of two processes does: python -m tests.trellis_ops.hf.ranks FOLDER, in `environment` of its rank.

The first of them writes the gradients of a model that both share into the folder, and the losses and weights of one
that both have trained by Trainer, each with half of every batch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from tests.trellis_ops.hf.small import pair, tokens
from tests.trellis_ops.hf.training import trained

PATIENCE_SECONDS = 480
GRADIENTS, WEIGHTS, LOSSES = "gradients.safetensors", "weights.safetensors", "losses.json"


def environment(rank: int) -> dict[str, str]:
    """The variables that tell a process who it is, as torchrun sets them."""
    one_machine = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return {**one_machine, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def main(folder: Path) -> None:
    # A process that waits for ever says where, and ends.
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    model = DistributedDataParallel(pair()[1])
    rows = torch.stack([tokens(12, seed=rank), tokens(12, seed=rank + 2)])
    model(input_ids=rows, labels=rows).loss.backward()
    _, by_trainer = pair()
    losses = trained(by_trainer, folder / f"run-{rank}", per_device_train_batch_size=4, ddp_backend="gloo")
    if rank == 0:
        save_file({name: weight.grad for name, weight in model.module.named_parameters()}, folder / GRADIENTS)
        save_file({name: weight.data for name, weight in by_trainer.named_parameters()}, folder / WEIGHTS)
        (folder / LOSSES).write_text(json.dumps(losses))
    # Gloo aborts a process that leaves while another still talks to it, and its threads may outlive the interpreter.
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
