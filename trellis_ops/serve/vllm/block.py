"""A block of the reference model on a flat batch: the sequences that decode in one step, the others packed."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from vllm.config import VllmConfig

from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.sequences import Rows
from trellis_ops.lm.state import AnyLayerState
from trellis_ops.serve.vllm.metadata import Sequences, StepMetadata
from trellis_ops.serve.vllm.parallel import share
from trellis_ops.serve.vllm.pool import StatePool


def served_shapes(config: TrellisConfig) -> dict[str, tuple[int, ...]]:
    """The states of one sequence in one layer by name; those without elements, a tail of no token, are left out."""
    with torch.device("meta"):
        shapes = Block(config).mixer.state_shapes(1)
    return {name: shape[1:] for name, shape in shapes.items() if math.prod(shape)}


class ServedBlock(Block):
    """One block; its states are in a pool of vLLM.

    Args:
        config: of the memories of this rank.
        vllm_config: of the engine.
        prefix: the name of the block.
    """

    def __init__(self, config: TrellisConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__(config)
        self.pool = StatePool(served_shapes(config), vllm_config, f"{prefix}.mixer")
        share(self, prefix)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # The pool has the states.
        """`[tokens, width]` to the same; moves the states of the sequences of this step."""
        return self._feed_forward(x + self._mixed(self.mixer_norm(x), self.pool.step()))

    def _mixed(self, x: Tensor, step: StepMetadata | None) -> Tensor:
        if step is None:
            alone: Tensor = self.mixer(x[None], None, Rows(1, len(x), 0, 1), return_state=False)[0]
            return alone.squeeze(0)
        parts = []
        if step.decodes is not None:
            parts.append(self._decoded(x[: step.decoded], step.decodes))
        if step.prefills is not None:
            parts.append(self._prefilled(x[step.decoded : step.tokens], step.prefills))
        if step.tokens < len(x):
            parts.append(torch.zeros_like(x[step.tokens :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decoded(self, x: Tensor, sequences: Sequences) -> Tensor:
        state = self._load(sequences)
        mixed: Tensor = self.mixer.step(x, state, sequences.begins)
        self.pool.store(sequences, state.tensors())
        return mixed

    def _prefilled(self, x: Tensor, sequences: Sequences) -> Tensor:
        mixed: Tensor
        mixed, state = self.mixer(x[None], self._load(sequences), sequences.layout)
        self.pool.store(sequences, state.tensors())
        return mixed.squeeze(0)

    def _load(self, sequences: Sequences) -> AnyLayerState:
        """The states of `sequences`, with the tail in the type of the weights."""
        first: AnyLayerState = self.mixer.first_state(1, self.mixer_norm.weight)
        count = sequences.layout.batch
        whole = {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in first.tensors().items()}
        loaded = self.pool.load(sequences, first.tensors())
        return first.with_tensors({**whole, **loaded, "tail": loaded.get("tail", whole["tail"]).to(first.tail.dtype)})
