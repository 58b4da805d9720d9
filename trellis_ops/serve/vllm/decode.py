"""Steps of the engine in which every sequence decodes: a kernel for each block of the model and one for the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context

from trellis_ops.lm.decode.applies import Parts
from trellis_ops.lm.decode.decoder import Decoder, ready_for
from trellis_ops.lm.decode.pooled import pooled_logits, through_pools
from trellis_ops.lm.sequences import Rows
from trellis_ops.serve.vllm.metadata import StepMetadata
from trellis_ops.serve.vllm.pool import StatePool

_WEIGHTS = "float32"
"""The type in which kernels of decode steps hold the weights of a model of float32."""


class Model(Protocol):
    """A `torch.nn.Module` that the engine runs."""

    embedding: nn.Module

    def step_parts(self) -> Parts:
        """What a token of every sequence goes through now."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """`[tokens]` to `[tokens, width]`."""


class DecodeSteps:
    """The steps of a model by kernels, where these may stand for its modules.

    Args:
        pools: the states of each of its layers.
    """

    def __init__(self, pools: Sequence[StatePool]) -> None:
        self._pools = list(pools)
        self._decoder: Decoder | None = None

    def blocks(self, model: Model, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor | None:
        """What the blocks make of the step under way, `[tokens, width]`; None, and nothing moved, without kernels.

        Args:
            input_ids: the token of each sequence, `[tokens]`.
            inputs_embeds: their embeddings in its place, `[tokens, width]`, which are left as they are.

        Raises:
            TrellisError: a kernel does not compile.
        """
        self._decoder = None
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        step = self._step() if given.device.type == "cpu" else None
        found = None if step is None else ready_for(model, _WEIGHTS, step.tokens, pooled=True)
        if step is None or found is None:
            return None
        # The kernels write into their rows, which may be the engine's.
        rows = (
            _embedded(model, found[0], given[: step.tokens]) if inputs_embeds is None else given[: step.tokens].clone()
        )
        made = through_pools(*found, rows, [pool.states() for pool in self._pools], step.sequences)
        if made is None:
            return None
        self._decoder = found[0]
        return step.padded(made, len(given))

    def logits(self, x: Tensor) -> Tensor | None:
        """Logits `[N, vocabulary]` of rows `[N, width]` that `blocks` gave in this step; None where modules make them.

        Asked once for each step: what calls for logits later may have changed the model.
        """
        decoder, self._decoder = self._decoder, None
        return None if decoder is None else pooled_logits(decoder, x)

    def _step(self) -> StepMetadata | None:
        """The step under way if each of its sequences has one token; None otherwise, and where memory is measured."""
        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, dict):
            return None
        first, *others = (metadata[pool.prefix] for pool in self._pools)
        is_shared = all(each is first for each in others)
        return first if is_shared and isinstance(first.sequences.layout, Rows) else None


def _embedded(model: Model, decoder: Decoder, input_ids: Tensor) -> Tensor:
    """The embeddings of tokens, `[tokens, width]`, looked up here where nobody sees the module at work."""
    if model.embedding in decoder.left_out:
        return torch.index_select(cast(Tensor, model.embedding.weight), 0, input_ids)
    return model.embed_input_ids(input_ids)
