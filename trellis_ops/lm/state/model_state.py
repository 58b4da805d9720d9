"""What a model carries from token to token: per layer its memories and a convolution tail, of constant size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from codegen.errors import ShapeError, SizeError
from codegen.scalars import whole_number
from trellis_ops.errors import StateError
from trellis_ops.lm.state.fitting import Wanted, check_layers
from trellis_ops.lm.state.layer_state import AnyLayerState, LayerState, RuleLayerState
from trellis_ops.lm.state.place import Place, moved, place_of, require_numbers


@dataclass
class TrellisState:
    """What a `TrellisLM` carries from token to token; its size does not depend on how many there were.

    Its rows are sequences of their own, each at its own position in its chunk. `select`, `reorder`, `repeat`,
    `concatenate`, `split` and `to` return states that share no memory with those that they were made from.

    `torch.save` writes it, and `torch.load(..., weights_only=True)`, the default, reads it back where this module was
    imported: it and the states of layers are registered there as safe, for they hold tensors and numbers. What was
    read is checked against a model when it is given to one.

    Attributes:
        layers: one `LayerState` per layer, or one `RuleLayerState` in a model of another rule.
        place: `positions` in short, see `Place`; given as either.
        rule: the key of the rule whose memories these are; "" if that is not known.
        period: tokens after which its positions begin again at 0; 0 if that is not known.
        fits: the `StateKind` that has checked this state, so that a step does not do it again.
        held: the tensors as the kernels of the last step took them, likewise.

    Example:
        >>> from trellis_ops.lm.config import TrellisConfig
        >>> from trellis_ops.lm.model import TrellisLM
        >>> model = TrellisLM(TrellisConfig.preset("tiny"))
        >>> _, state = model(torch.tensor([[1, 2, 3]]))
        >>> TrellisState.concatenate([state.repeat(2), model.first_state(1)]).positions
        tensor([3, 3, 0])
    """

    layers: tuple[AnyLayerState, ...]
    place: Place
    rule: str = ""
    period: int = 0
    fits: object = field(default=None, init=False, repr=False, compare=False)
    held: object = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.place, Tensor):
            self.place = place_of(self.place)

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return self.layers[0].tail.shape[0]

    @property
    def positions(self) -> Tensor:
        """Tokens since the start of the chunk of each row, `[B]` int64 on the CPU, 0 to C - 1; 0 without starts.

        A copy: assign to it to change them.
        """
        return (
            self.place.clone()
            if isinstance(self.place, Tensor)
            else torch.full((self.batch,), self.place, device="cpu")
        )

    @positions.setter
    def positions(self, positions: Tensor) -> None:
        self.place = place_of(positions)
        self.fits = None

    def nbytes(self) -> int:
        """Bytes of all tensors of the layers."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors().values())

    def clone(self) -> TrellisState:
        """A state that shares no memory with this one, for going on from it twice."""
        return self._each(torch.clone, self.place)

    def detach(self) -> TrellisState:
        """The same state cut off from the graph that made it, for truncated back-propagation; shares memory."""
        return self._each(torch.detach, self.place)

    def to(self, device: torch.device | str) -> TrellisState:
        """A copy on another device; positions stay on the CPU."""
        moved_there = self._each(lambda tensor: tensor.to(device, copy=True), self.place)
        moved_there.fits = None
        return moved_there

    def select(self, rows: Tensor) -> TrellisState:
        """The state of some rows, `rows [n]` int64 with n >= 1, in that order; a row may come more than once.

        Raises:
            ShapeError, DtypeError, SizeError: what names no rows of this state.
        """
        rows = self._rows(rows)
        place = place_of(self.place[rows]) if isinstance(self.place, Tensor) else self.place
        return self._each(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), place)

    def reorder(self, index: Tensor) -> TrellisState:
        """The state in whose row i the row `index[i]` is, as beam search goes on; `index [B]` int64.

        Raises:
            ShapeError, DtypeError, SizeError: what names not one row of this state for each.
        """
        if isinstance(index, Tensor) and index.shape != (self.batch,):
            raise ShapeError(name="index", shape=list(index.shape), expected=f"[{self.batch}], the batch of the state")
        return self.select(index)

    def repeat(self, count: int) -> TrellisState:
        """The state with each row `count` times, one after the other, as `torch.repeat_interleave` has them.

        Raises:
            SizeError: no count.
        """
        count = whole_number("count", count)
        return self.select(torch.arange(self.batch, device="cpu").repeat_interleave(count))

    def split(self) -> list[TrellisState]:
        """Its rows, a state of batch 1 each."""
        return [self.select(torch.tensor([row], device="cpu")) for row in range(self.batch)]

    @staticmethod
    def concatenate(states: Sequence[TrellisState]) -> TrellisState:
        """The rows of several states of one model, in order.

        Raises:
            SizeError, StateError, ShapeError, DtypeError, DeviceMismatchError: none, or states of different models.
            TypeError: what is no state.
        """
        states = list(states)
        if not states:
            raise SizeError(name="number of states", value=0, expected="at least 1")
        require_state(states[0])
        for state in states:
            require_state(state, rule=states[0].rule)
            like = [_like(layer, state.batch) for layer in states[0].layers]
            check_layers([layer.tensors() for layer in state.layers], like)
            _require_period(state, states[0].period)
        layers = []
        for parts in zip(*(state.layers for state in states), strict=True):
            named = [part.tensors() for part in parts]
            layers.append(parts[0].with_tensors({name: torch.cat([each[name] for each in named]) for name in named[0]}))
        positions = torch.cat([state.positions for state in states])
        return TrellisState(tuple(layers), positions, states[0].rule, states[0].period)

    def begins(self) -> bool | Tensor:
        """Which rows' next token is the first of a chunk: all, none, or a mask `[B]` on the device of the layers."""
        if not isinstance(self.place, Tensor):
            return self.place == 0
        mask = self.place == 0
        # Reading the mask would break a graph of torch.compile.
        return False if not torch.compiler.is_compiling() and not mask.any() else mask.to(self.layers[0].tail.device)

    def advance(self, tokens: int | Tensor, period: int) -> None:
        """Move the positions on by `tokens`, an int or `[B]`, in chunks of `period`."""
        self.place = moved(self.place, tokens, period)

    def _each(self, function: Callable[[Tensor], Tensor], place: Place) -> TrellisState:
        made = TrellisState(tuple(layer.each(function) for layer in self.layers), place, self.rule, self.period)
        made.fits = self.fits
        return made

    def _rows(self, rows: Tensor) -> Tensor:
        require_numbers("rows", rows, "[n] with n >= 1")
        rows = rows.cpu()
        wrong = rows[(rows < 0) | (rows >= self.batch)]
        if len(wrong):
            raise SizeError(name="rows", value=int(wrong[0]), expected=f"rows from 0 to {self.batch - 1}")
        return rows

    def __getstate__(self) -> dict[str, Any]:
        # Who has checked it, and for which kernels it is held, is not data of the state.
        return {"layers": self.layers, "place": self.place, "rule": self.rule, "period": self.period}


torch.serialization.add_safe_globals([LayerState, RuleLayerState, TrellisState])


def require_state(state: object, rule: str = "") -> None:
    """Raise unless it is a state of layers, as this version has them, of this rule where both rules are known.

    Raises:
        TypeError: it is none. StateError: it is that of another rule.
    """
    if not isinstance(state, TrellisState) or not state.layers or not _are_layers(state.layers):
        raise TypeError(f"state is {type(state).__name__}, but must be a TrellisState of LayerStates")
    if not isinstance(state.layers[0].tail, Tensor):
        raise TypeError(f"state.layers[0].tail is {state.layers[0].tail!r}, but must be a torch.Tensor")
    if "place" not in vars(state):
        raise TypeError("state has no positions: another version wrote it; read its text again with this one")
    if rule and state.rule and state.rule != rule:
        raise StateError(found=state.rule, expected=rule)


def check_state(
    state: TrellisState, wanted: Sequence[Mapping[str, Wanted]], batch: int, period: int, rule: str
) -> None:
    """Raise unless a state fits a model.

    Args:
        state: what to check.
        wanted: the tensors that each layer carries, by name.
        batch: how many rows it must have.
        period: the chunk size within which positions must lie.
        rule: the key of the model's rule.

    Raises:
        StateError, ShapeError, DtypeError, DeviceMismatchError, SizeError: what differs, with the name of the tensor.
        TypeError: what is no state.
    """
    require_state(state, rule)
    check_layers([layer.tensors() for layer in state.layers], wanted)
    _require_period(state, period)
    if not isinstance(state.place, Tensor):
        whole_number("state.place", state.place, period - 1, " in this model", least=0)
        return
    if state.place.shape != (batch,):
        raise ShapeError(name="state.positions", shape=list(state.place.shape), expected=f"[{batch}]")
    outside = state.place[(state.place < 0) | (state.place >= period)]
    if len(outside):
        raise SizeError(name="state.positions", value=int(outside[0]), expected=f"0 to {period - 1} in this model")


def _require_period(state: TrellisState, period: int) -> None:
    if period and state.period and state.period != period:
        # Chunks of another length leave tensors of the same shapes.
        raise StateError(found=f"chunks of {state.period} tokens", expected=f"chunks of {period}")


def _are_layers(layers: Iterable[object]) -> bool:
    return all(isinstance(each, AnyLayerState) for each in layers)


def _like(layer: AnyLayerState, batch: int) -> dict[str, Wanted]:
    tensors = layer.tensors().items()
    return {name: Wanted((batch, *each.shape[1:]), each.dtype, each.device) for name, each in tensors}
