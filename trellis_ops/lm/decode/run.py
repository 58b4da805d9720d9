"""Many decode steps of a model that nobody can change between them, as `generate` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trellis_ops.lm.decode.applies import HOOKS, OVERRIDES
from trellis_ops.lm.decode.decoder import Decoder, Kernels, Model, increment_version, ready
from trellis_ops.lm.state import LayerState, TrellisState

_ALIGNMENT = 64
"""Bytes, of what torch allocates on a CPU."""


@dataclass(frozen=True)
class Run:
    """What `fused_step` looks at before every token, looked at once.

    Attributes:
        decoder, kernels: for the rows of the state.
        embedding: float32, `[vocabulary, width]`.
        state: moved in place by every step.
        period: tokens of a chunk.
        layers: of each layer what its kernel takes behind the rows and their positions.
        moved: the tensors of the state, which autograd is told of.
    """

    decoder: Decoder
    kernels: Kernels
    embedding: Tensor
    state: TrellisState
    period: int
    layers: tuple[tuple[Tensor, ...], ...]
    moved: tuple[Tensor, ...]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after tokens `[B]` of the vocabulary."""
        x = torch.index_select(self.embedding, 0, tokens)
        block, batch, where = self.kernels.block, x.shape[0], self.decoder.where(self.state, x.shape[0])
        try:
            for tensors in self.layers:
                block(batch, x, *where, *tensors)
        finally:
            increment_version(self.moved)
        assert self.kernels.logits is not None
        logits = self.decoder.logits_of(self.kernels.logits, x)
        self.state.advance(1, self.period)
        return logits


def run_of(model: Model, weights: str, embedding: nn.Embedding, state: TrellisState, period: int) -> Run | None:
    """Steps of `model` that move `state`, which is nobody else's; None where `fused_step` has to look at each.

    Raises:
        TrellisError: a kernel does not compile.
    """
    rows = embedding.weight
    if rows.dtype != torch.float32 or not _is_plain(embedding):
        return None
    found = ready(model, weights, rows.detach()[: state.batch])
    if found is None or found[1].logits is None:
        return None
    decoder, kernels = found
    layers: list[tuple[Tensor, ...]] = []
    moved: list[Tensor] = []
    for index, layer in enumerate(state.layers):
        assert isinstance(layer, LayerState)
        tensors = decoder.tensors_of(layer)
        if not all(map(_is_taken, tensors)) or not decoder.lie_apart(index, tensors):
            return None
        packed = decoder.blocks[index]
        layers.append((*tensors, packed.weights, packed.vectors))
        moved += tensors
    return Run(decoder, kernels, rows.detach(), state, period, tuple(layers), tuple(moved))


def _is_plain(embedding: nn.Embedding) -> bool:
    own = any(name in vars(embedding) for name in OVERRIDES) or any(getattr(embedding, name) for name in HOOKS)
    return type(embedding) is nn.Embedding and embedding.max_norm is None and not own


def _is_taken(tensor: Tensor) -> bool:
    """Whether every kernel takes it, so that none refuses it when another has moved its layer."""
    lies_well = tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0
    return type(tensor) is Tensor and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and lies_well
