"""What a model carries from token to token: per layer its memories and a convolution tail, of constant size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import DeviceMismatchError, DtypeError, ShapeError, SizeError
from codegen.scalars import whole_number
from trellis_ops.tokens import States


@dataclass
class LayerState:
    """What one layer of TRELLIS carries.

    Attributes:
        S_k, S_v: the memories, `[B, H, M, D_k]` and `[B, H, M, D_v]`, float32; float64 in a model of float64.
        start_k, start_v: the memories as they were at the start of the current chunk, where z is taken until the chunk
            ends; None if decoding takes z at the current ones. At position 0 they hold nothing yet.
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

    def clone(self) -> LayerState:
        """A state that shares no memory with this one."""
        copies = {name: tensor.clone() for name, tensor in self.tensors().items()}
        return LayerState(copies["S_k"], copies["S_v"], copies.get("start_k"), copies.get("start_v"), copies["tail"])

    def detach(self) -> LayerState:
        """The same state cut off from the graph that made it; shares memory."""
        cut = {name: tensor.detach() for name, tensor in self.tensors().items()}
        return LayerState(cut["S_k"], cut["S_v"], cut.get("start_k"), cut.get("start_v"), cut["tail"])


@dataclass
class RuleLayerState:
    """What one layer of any other rule carries, by the names of `codegen.recurrence.tensors`.

    Attributes:
        memories: the states of the rule in the order of its record, `[B, H, ...]`, float32; float64 in a model of
            float64.
        starts: what is kept from the start of the current chunk until it ends, alike; empty where decoding takes z at
            the current states. At position 0 they hold nothing yet.
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

    def clone(self) -> RuleLayerState:
        """A state that shares no memory with this one."""
        return self._each(torch.clone)

    def detach(self) -> RuleLayerState:
        """The same state cut off from the graph that made it; shares memory."""
        return self._each(torch.detach)

    def _each(self, function: Callable[[Tensor], Tensor]) -> RuleLayerState:
        groups = (self.memories, self.starts, self.prepared)
        memories, starts, prepared = ({name: function(each) for name, each in group.items()} for group in groups)
        return RuleLayerState(memories, starts, prepared, function(self.tail))


AnyLayerState = LayerState | RuleLayerState


@dataclass
class TrellisState:
    """What a `TrellisLM` carries from token to token; its size does not depend on how many there were.

    `torch.save` writes it, and `torch.load(..., weights_only=True)`, the default, reads it back where this module was
    imported: it and the states of layers are registered there as safe, for they hold tensors and a number. What was
    read is checked against a model when it is given to one.

    Attributes:
        layers: one `LayerState` per layer, or one `RuleLayerState` in a model of another rule.
        position: tokens since the start of the current chunk, 0 to C - 1; always 0 where no starts are kept.
    """

    layers: tuple[AnyLayerState, ...]
    position: int = 0

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors().values())

    def clone(self) -> TrellisState:
        """A state that shares no memory with this one, for going on from it twice."""
        return TrellisState(tuple(layer.clone() for layer in self.layers), self.position)

    def detach(self) -> TrellisState:
        """The same state cut off from the graph that made it, for truncated back-propagation; shares memory."""
        return TrellisState(tuple(layer.detach() for layer in self.layers), self.position)


torch.serialization.add_safe_globals([LayerState, RuleLayerState, TrellisState])


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the memories and gates of a model whose weights have `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """In float32, or as it is in float64: a forget gate near 1 loses its meaning in half precision."""
    return x.to(state_dtype(x.dtype))


def check_state(
    state: TrellisState, layers: int, shapes: Mapping[str, tuple[int, ...]], chunk: int, like: Tensor
) -> None:
    """Raise unless a state fits a model.

    Args:
        state: what to check.
        layers: how many layers the model has.
        shapes: the tensors that each layer carries, by name, with their shapes.
        chunk: the chunk size within which `position` must lie.
        like: a weight of the model, for device and type.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError, SizeError: what differs, with the name of the tensor.
        TypeError: what is no state.
    """
    if not isinstance(state, TrellisState) or not all(isinstance(each, AnyLayerState) for each in state.layers):
        raise TypeError(f"state is {type(state).__name__}, but must be a TrellisState of LayerStates")
    if len(state.layers) != layers:
        raise SizeError(name="number of layers in state", value=len(state.layers), expected=str(layers))
    whole_number("state.position", state.position, chunk - 1, " in this model", least=0)
    for index, layer in enumerate(state.layers):
        found = layer.tensors()
        for name in {**shapes, **found}:
            _check_tensor(f"state.layers[{index}].{name}", found.get(name), shapes.get(name), like)


def _check_tensor(name: str, found: Tensor | None, shape: tuple[int, ...] | None, like: Tensor) -> None:
    if not isinstance(found, Tensor | None):
        raise TypeError(f"{name} is {found!r}, but must be a torch.Tensor")
    if found is None or shape is None or found.shape != shape:
        given = None if found is None else list(found.shape)
        raise ShapeError(name=name, shape=given, expected=str(shape and list(shape)))
    expected = state_dtype(like.dtype)
    if found.dtype != expected and not name.endswith("tail"):
        raise DtypeError(name=name, dtype=found.dtype, expected=str(expected))
    if not found.is_floating_point():
        raise DtypeError(name=name, dtype=found.dtype, expected="a floating-point type")
    if found.device != like.device:
        raise DeviceMismatchError(name=name, device=found.device, expected=like.device)
