"""What each of two processes does: python -m tests.trellis_ops.hf.ranks FOLDER, with RANK in the environment.

The first of them writes the gradients of a model that both share into the folder.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from tests.trellis_ops.hf.small import pair, tokens

PATIENCE_SECONDS = 240
GRADIENTS = "gradients.safetensors"


def main(folder: Path) -> None:
    # A process that waits for ever says where, and ends.
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    model = DistributedDataParallel(pair()[1])
    rows = torch.stack([tokens(12, seed=rank), tokens(12, seed=rank + 2)])
    model(input_ids=rows, labels=rows).loss.backward()
    if rank == 0:
        save_file({name: weight.grad for name, weight in model.module.named_parameters()}, folder / GRADIENTS)
    # Gloo aborts a process that leaves while another still talks to it, and its threads may outlive the interpreter.
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
