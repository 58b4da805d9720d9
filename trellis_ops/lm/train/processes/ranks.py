"""One process or several: who they are, how a model is shared between them, and what they tell each other."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codegen.errors import SizeError
from trellis_ops.lm.train.errors import ComputingDeviceError, LaunchError
from trellis_ops.lm.train.objective import Carried, Objective
from trellis_ops.operators.agreement import agree_across_ranks


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and speaks to the person."""
        return self.rank == 0

    def check_batch(self, batch: int) -> None:
        """Raise unless every process gets the same number of lanes."""
        if batch % self.count:
            raise SizeError(name="batch", value=batch, expected=f"a multiple of the {self.count} processes")

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        total = value.detach().clone()
        if self.count > 1:
            dist.all_reduce(total)
        return total

    def gather(self, carried: Carried) -> Carried:
        """What all processes carry, lane after lane, in float32 where it is no count."""
        return {name: self._gather(tensor) for name, tensor in carried.items()}

    def share(self, carried: Carried) -> Carried:
        """This process's lanes of what `gather` returned."""
        return {name: tensor.chunk(self.count)[self.rank].to(self.device) for name, tensor in carried.items()}

    def agree(self, text: str) -> str:
        """The text of the first process."""
        box = [text]
        if self.count > 1:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            dist.barrier()

    def _gather(self, tensor: Tensor) -> Tensor:
        # Half precision is exact in float32, which every process group can send.
        sent = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        if self.count == 1:
            return sent.cpu()
        parts = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(parts, sent)
        return torch.cat(parts).cpu()


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU where there is one; with torchrun, one GPU for each process.

    Raises:
        ComputingDeviceError: another device, or one that is not there.
    """
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    place = _place(device, int(os.environ.get("LOCAL_RANK", "0")) if launched else None)
    if not launched:
        yield Processes(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    agree_across_ranks()
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
        # Gloo aborts a process that leaves while another still talks to it.
        dist.barrier()
    finally:
        # A model may hold the group in a cycle, and with it threads that outlive this; one that wants the interpreter's
        # lock while that ends can abort the process.
        gc.collect()
        dist.destroy_process_group()


def _place(name: str, local_rank: int | None) -> torch.device:
    """The device called `name`; with torchrun, the GPU of the process `local_rank`."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        place = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ComputingDeviceError(name=name, problem="torch knows no such device") from error
    if place.type not in ("cpu", "cuda"):
        raise ComputingDeviceError(name=name, problem="training knows processors and GPUs only")
    if place.type == "cpu":
        return torch.device("cpu")
    if local_rank is not None:
        if place.index is not None:
            raise ComputingDeviceError(name=name, problem="torchrun gives each process a GPU of its own")
        place = torch.device("cuda", local_rank)
    if (place.index or 0) >= gpus:
        raise ComputingDeviceError(name=name, problem=f"{gpus} GPUs are visible to torch, and {place} is none of them")
    return place


def share_model(objective: Objective, processes: Processes, shard: bool) -> nn.Module:
    """The objective as these processes train it: replicated, or with `shard` in pieces (FSDP2).

    A learned first state is read before the block that it belongs to runs. With one, the model is one piece, gathered
    as a whole for each window; without, each block is gathered when it runs.

    Raises:
        LaunchError: `shard` without torchrun.
    """
    if shard:
        if not dist.is_initialized():
            raise LaunchError(option="--fsdp")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(processes.device.type, (processes.count,))
        if not objective.model.config.starts_learned:
            for block in objective.model.blocks:
                fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective
    if processes.count == 1:
        return objective
    places = [processes.device] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(objective, device_ids=places)
