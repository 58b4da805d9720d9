"""Many decode steps of a model that nobody can change between them, as `generate` takes them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from codegen.backends import held
from trellis_ops.glue.surroundings import HOOKS
from trellis_ops.lm.decode.applies import OVERRIDES, Model
from trellis_ops.lm.decode.decoder import Decoder, Kernels, increment_version, ready
from trellis_ops.lm.state import LayerState, TrellisState

_ALIGNMENT = 64
"""Bytes, of what torch allocates on a CPU."""


@dataclass(frozen=True)
class Run:
    """What `fused_step` looks at before every token, looked at once; tensors that stay are held by the kernels.

    Attributes:
        decoder, kernels: for the rows of the state.
        embedding: float32, `[vocabulary, width]`.
        state: moved in place by every step.
        period: tokens of a chunk.
        x: the residual stream, `[B, width]`, that every step writes.
        logits: `[B, vocabulary]`, that every step writes.
        rows: B and x, as kernels take them.
        layers: of each layer what its kernel takes behind the rows and their positions.
        last: what the kernel of the logits takes behind the rows.
        places: the positions of rows that are all at one, as kernels take them, by the positions met so far.
        moved: the tensors of the state, which autograd is told of.
    """

    decoder: Decoder
    kernels: Kernels
    embedding: Tensor
    state: TrellisState
    period: int
    x: Tensor
    logits: Tensor
    rows: tuple[Any, ...]
    layers: tuple[tuple[Any, ...], ...]
    last: tuple[Any, ...]
    moved: tuple[Tensor, ...]
    places: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after tokens `[B]` of the vocabulary; the next step overwrites them."""
        torch.index_select(self.embedding, 0, tokens, out=self.x)
        block, rows, where = self.kernels.block, self.rows, self._where()
        try:
            for tensors in self.layers:
                block(*rows, *where, *tensors)
        finally:
            increment_version(self.moved)
        assert self.kernels.logits is not None
        self.kernels.logits(*rows, *self.last)
        self.state.advance(1, self.period)
        return self.logits

    def _where(self) -> tuple[Any, ...]:
        place = self.state.place
        known = self.places.get(place) if isinstance(place, int) else None
        if known is None:
            known = tuple(held(self.kernels.block, each) for each in self.decoder.where(self.state, len(self.x)))
            if isinstance(place, int):
                self.places[place] = known
        return known


def run_of(model: Model, weights: str, embedding: nn.Embedding, state: TrellisState, period: int) -> Run | None:
    """Steps of `model` that move `state`, which is nobody else's; None where `fused_step` has to look at each.

    Raises:
        TrellisError: a kernel does not compile.
    """
    table, batch = embedding.weight, state.batch
    if table.dtype != torch.float32 or not _is_plain(embedding):
        return None
    found = ready(model, weights, table.detach()[:batch])
    if found is None:
        return None
    decoder, kernels = found
    if kernels.logits is None or decoder.logits is None:
        return None
    moved = _moved(decoder, state)
    if moved is None:
        return None
    x, logits = table.new_empty(batch, table.shape[1]), table.new_empty(batch, table.shape[0])
    hold = functools.partial(held, kernels.block)
    layers = tuple((*map(hold, own), *read) for own, read in zip(moved, kernels.layers, strict=True))
    last = (*kernels.last, held(kernels.logits, logits))
    rows = (batch, hold(x))
    return Run(decoder, kernels, table.detach(), state, period, x, logits, rows, layers, last, tuple(chain(*moved)))


def _moved(decoder: Decoder, state: TrellisState) -> list[tuple[Tensor, ...]] | None:
    """The tensors of each layer's state as kernels take them; None where one would be refused."""
    found = []
    for index, layer in enumerate(state.layers):
        assert isinstance(layer, LayerState)
        tensors = decoder.tensors_of(layer)
        if not all(map(_is_taken, tensors)) or not decoder.lie_apart(index, tensors):
            return None
        found.append(tensors)
    return found


def _is_plain(embedding: nn.Embedding) -> bool:
    own = any(name in vars(embedding) for name in OVERRIDES) or any(getattr(embedding, name) for name in HOOKS)
    return type(embedding) is nn.Embedding and embedding.max_norm is None and not own


def _is_taken(tensor: Tensor | None) -> bool:
    """Whether every kernel takes it, so that none refuses it when another has moved its layer."""
    if tensor is None or type(tensor) is not Tensor:
        return False
    lies_well = tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and lies_well
