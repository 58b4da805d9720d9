"""A block of the reference model on the tokens of many sequences, whose states lie in the blocks of vLLM's cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from vllm.config import VllmConfig

from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.norms import added_and_normed, normed
from trellis_ops.lm.sequences import Rows
from trellis_ops.serve.vllm.metadata import StepMetadata, one_sequence
from trellis_ops.serve.vllm.parallel import share
from trellis_ops.serve.vllm.pool import STATE_DTYPE, StatePool


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
        x, read = added_and_normed(self.mlp_norm, x, self._remembered(x))
        mixed: Tensor = self.mlp(read)
        return x + mixed

    def remember(self, x: Tensor) -> Tensor:
        """The half of the block that moves states: x + Memory(RMSNorm(x)), `[tokens, width]` to the same."""
        return x + self._remembered(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The other half, which has no state: x + SwiGLU(RMSNorm(x)), `[..., width]` to the same."""
        mixed: Tensor = self.mlp(normed(self.mlp_norm, x))
        return x + mixed

    def _remembered(self, x: Tensor) -> Tensor:
        """Memory(RMSNorm(x)), `[tokens, width]` to the same."""
        step, x = self.pool.step(), normed(self.mixer_norm, x)
        if step is not None:
            return self._mixed(x, step, self.pool.states())
        # The engine measures the memory that a step takes, before it has a cache.
        states = {name: x.new_empty(1, *shape, dtype=STATE_DTYPE) for name, shape in self.pool.shapes.items()}
        return self._mixed(x, one_sequence(len(x), x.device), states)

    def _mixed(self, x: Tensor, step: StepMetadata, states: Mapping[str, Tensor]) -> Tensor:
        sequences = step.sequences
        # The axes of sequences and of their tokens.
        axes = (-1, 1) if isinstance(sequences.layout, Rows) else (1, -1)
        tokens = x[: step.tokens].view(*axes, x.shape[-1])
        return step.padded(self.mixer.pooled(tokens, states, sequences).flatten(0, 1), len(x))
