"""Many decode steps of a model that nobody can change between them, as `generate` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codegen.backends import held
from trellis_ops.glue.surroundings import HOOKS
from trellis_ops.lm.decode.applies import OVERRIDES, Model
from trellis_ops.lm.decode.decoder import Kernels, increment_version, ready
from trellis_ops.lm.decode.held_state import HeldState, held_state
from trellis_ops.lm.state import TrellisState


@dataclass(frozen=True)
class Run:
    """What `fused_step` looks at before every token, looked at once; tensors that stay are held by the kernels.

    Attributes:
        kernels: for the rows of the state.
        embedding: float32, `[vocabulary, width]`.
        state: moved in place by every step.
        period: tokens of a chunk.
        x: the residual stream, `[B, width]`, that every step writes.
        logits: `[B, vocabulary]`, that every step writes.
        known: its tensors, as kernels take them.
        rows: B and x, likewise.
        layers: of each layer what its kernel takes behind the rows and their positions.
        last: what the kernel of the logits takes behind the rows.
    """

    kernels: Kernels
    embedding: Tensor
    state: TrellisState
    period: int
    x: Tensor
    logits: Tensor
    known: HeldState
    rows: tuple[Any, ...]
    layers: tuple[tuple[Any, ...], ...]
    last: tuple[Any, ...]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` after tokens `[B]` of the vocabulary; the next step overwrites them."""
        torch.index_select(self.embedding, 0, tokens, out=self.x)
        block, rows = self.kernels.block, (*self.rows, *self.known.where(self.state))
        try:
            for tensors in self.layers:
                block(*rows, *tensors)
        finally:
            increment_version(self.known.tensors)
        assert self.kernels.logits is not None
        self.kernels.logits(*self.rows, *self.last)
        self.state.advance(1, self.period)
        return self.logits


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
    known = held_state(kernels.block, state, decoder.states)
    if known is None:
        return None
    x, logits = table.new_empty(batch, table.shape[1]), table.new_empty(batch, table.shape[0])
    layers = tuple((*own, *read) for own, read in zip(known.layers, kernels.layers, strict=True))
    last = (*kernels.last, held(kernels.logits, logits))
    rows = (batch, held(kernels.block, x))
    return Run(kernels, table.detach(), state, period, x, logits, known, rows, layers, last)


def _is_plain(embedding: nn.Embedding) -> bool:
    own = any(name in vars(embedding) for name in OVERRIDES) or any(getattr(embedding, name) for name in HOOKS)
    return type(embedding) is nn.Embedding and embedding.max_norm is None and not own
