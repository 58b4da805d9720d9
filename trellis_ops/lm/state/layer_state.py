"""What one layer of a model carries from token to token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trellis_ops.tokens import States

_HALF = (torch.bfloat16, torch.float16)


@dataclass
class LayerState:
    """What one layer of TRELLIS carries.

    Attributes:
        S_k, S_v: the memories, `[B, H, M, D_k]` and `[B, H, M, D_v]`, float32; float64 in a model of float64.
        start_k, start_v: the memories as they were at the start of the current chunk, where z is taken until the chunk
            ends; None if decoding takes z at the current ones. Rows at position 0 hold nothing yet.
        tail: the last `conv_width - 1` inputs of the convolutions, `[B, conv_width - 1, H D_k]`. One tail serves both,
            since q and k come from the same map.
    """

    S_k: Tensor
    S_v: Tensor
    start_k: Tensor | None
    start_v: Tensor | None
    tail: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, those that are None left out."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def memories(self) -> States:
        """(S_k, S_v)."""
        return self.S_k, self.S_v

    def starts(self) -> States | None:
        """(start_k, start_v), or None if none are kept."""
        if self.start_k is None or self.start_v is None:
            return None
        return self.start_k, self.start_v

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> LayerState:
        """The state of other tensors that have the names of these."""
        starts = tensors.get("start_k"), tensors.get("start_v")
        return LayerState(tensors["S_k"], tensors["S_v"], *starts, tensors["tail"])

    def each(self, function: Callable[[Tensor], Tensor]) -> LayerState:
        """The state of what `function` makes of each tensor."""
        return self.with_tensors({name: function(tensor) for name, tensor in self.tensors().items()})


@dataclass
class RuleLayerState:
    """What one layer of any other rule carries, by the names of `codegen.recurrence.tensors`.

    Attributes:
        memories: the states of the rule in the order of its record, `[B, H, ...]`, float32; float64 in a model of
            float64.
        starts: what is kept from the start of the current chunk until it ends, alike; empty where decoding takes z at
            the current states. Rows at position 0 hold nothing yet.
        prepared: what the preparation of the inputs carries, such as the log-sum-exp of ABC, alike.
        tail: the last `conv_width - 1` inputs of the convolutions, `[B, conv_width - 1, H D_k]`.
    """

    memories: dict[str, Tensor]
    starts: dict[str, Tensor]
    prepared: dict[str, Tensor]
    tail: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {**self.memories, **self.starts, **self.prepared, "tail": self.tail}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> RuleLayerState:
        """The state of other tensors that have the names of these."""
        groups = (self.memories, self.starts, self.prepared)
        memories, starts, prepared = ({name: tensors[name] for name in group} for group in groups)
        return RuleLayerState(memories, starts, prepared, tensors["tail"])

    def each(self, function: Callable[[Tensor], Tensor]) -> RuleLayerState:
        """The state of what `function` makes of each tensor."""
        return self.with_tensors({name: function(tensor) for name, tensor in self.tensors().items()})


AnyLayerState = LayerState | RuleLayerState


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the memories and gates of a model whose weights have `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """In float32, or as it is in float64: a forget gate near 1 loses its meaning in half precision."""
    return x.to(state_dtype(x.dtype))


def as_wide_as(x: Tensor, linear: nn.Module) -> Tensor:
    """`x` in float32 where the weights of a linear map are, as those of gates are in a model of half precision."""
    return x.float() if linear.weight.dtype == torch.float32 and x.dtype in _HALF else x
