"""The states of one layer in the blocks of vLLM's cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from trellis_ops.serve.vllm.metadata import StepMetadata

BACKEND = "TRELLIS"
"""The name under which `trellis_ops.serve.vllm.plugin` registers `TrellisBackend`."""

STATE_DTYPE = torch.float32
"""The type of every state: that of memories, and wide enough for the tail of a model of any type."""


class StatePool(MambaBase):
    """One slot for each block of vLLM's cache, which holds all states of a sequence in one layer.

    Args:
        shapes: the states by name, without the axis of sequences.
        vllm_config: of the engine, which enters the pool among its layers.
        prefix: the name of the layer.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], vllm_config: VllmConfig, prefix: str) -> None:
        self.shapes = dict(shapes)
        self.prefix = prefix
        self.kv_cache: tuple[Tensor, ...] = ()
        self._named: dict[str, Tensor] = {}
        self._named_of: tuple[Tensor, ...] | None = None
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"two layers of one model are called {prefix!r}")
        layers[prefix] = self

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the states in a block, in their order."""
        return tuple(self.shapes.values())

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """The types of the states."""
        return (STATE_DTYPE,) * len(self.shapes)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """The backend whose metadata a step of this layer gets."""
        return MambaAttentionBackendEnum[BACKEND]

    def step(self) -> StepMetadata | None:
        """What the engine computes now; None where it only measures the memory that a step takes."""
        metadata = get_forward_context().attn_metadata
        return metadata[self.prefix] if isinstance(metadata, dict) else None

    def states(self) -> Mapping[str, Tensor]:
        """The states of all slots by name, `[blocks, ...]`."""
        if self._named_of is not self.kv_cache:
            self._named_of, self._named = self.kv_cache, dict(zip(self.shapes, self.kv_cache, strict=True))
        return self._named
