"""The linear maps of a block as vLLM's, which share heads and hidden units among the ranks of tensor parallelism."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.utils import set_weight_attrs

from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig


def of_one_rank(config: TrellisConfig, ranks: int) -> TrellisConfig:
    """The configuration of the memories of one of `ranks` ranks: as many heads less, each of the same size."""
    dim_k, dim_v = config.key_width // config.heads, config.value_width // config.heads
    return replace(config, heads=config.heads // ranks, dim_k=dim_k, dim_v=dim_v)


def share(block: Block, prefix: str) -> None:
    """Put vLLM's linear maps in the place of those of a block whose mixer has the heads of one rank of several.

    A single rank keeps its own, which the kernels of whole blocks know.

    The maps into the residual stream, `to_out` and `down`, take what this rank has and sum over ranks. All others give
    what this rank has, but the first of two maps of low rank, which every rank computes. Parameters of heads, the
    first axis of each, are cut when they are loaded.
    """
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return
    for name, module in list(block.mixer.named_modules()):
        if isinstance(module, nn.Linear):
            _put(block.mixer, name, _map_of_mixer(name, module, ranks, f"{prefix}.mixer.{name}"))
    for name in ("gate", "up", "down"):
        linear = block.mlp.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        kind = RowParallelLinear if name == "down" else ColumnParallelLinear
        _put(block.mlp, name, _map(kind, linear.in_features, linear.out_features, linear, f"{prefix}.mlp.{name}"))
    per_head = [name for name in dict(block.mixer.named_parameters()) if _is_of_heads(name)]
    for name in per_head:
        set_weight_attrs(block.mixer.get_parameter(name), {"weight_loader": load_heads})


def load_heads(parameter: nn.Parameter, loaded: Tensor) -> None:
    """Copy what this rank has of `loaded`, whose first axis is that of heads or begins with it."""
    length = parameter.shape[0]
    with torch.no_grad():
        parameter.copy_(loaded.narrow(0, get_tensor_model_parallel_rank() * length, length))


def _is_of_heads(name: str) -> bool:
    """Whether a parameter of a mixer that is in no linear map has the heads first; the norm serves all of them."""
    return name in ("conv_q", "conv_k", "step_size") or name.startswith("first") or name.endswith(".value")


def _map_of_mixer(name: str, linear: nn.Linear, ranks: int, prefix: str) -> nn.Module:
    if name == "to_out":
        return _map(RowParallelLinear, linear.in_features * ranks, linear.out_features, linear, prefix)
    if name.endswith(".first"):
        return _map(ReplicatedLinear, linear.in_features, linear.out_features, linear, prefix)
    return _map(ColumnParallelLinear, linear.in_features, linear.out_features * ranks, linear, prefix)


def _map(
    kind: type[ColumnParallelLinear | RowParallelLinear | ReplicatedLinear],
    inputs: int,
    outputs: int,
    linear: nn.Linear,
    prefix: str,
) -> nn.Module:
    made: nn.Module = kind(inputs, outputs, bias=linear.bias is not None, prefix=prefix, return_bias=False)
    return made


def _put(module: nn.Module, name: str, linear: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, linear)
