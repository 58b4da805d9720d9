"""Which sequences a step of vLLM computes, where the state of each one is, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.utils import mamba_get_block_table_tensor

from trellis_ops.lm.sequences import Packed, Pooled, Rows


@dataclass(frozen=True)
class StepMetadata:
    """One step of the engine.

    Attributes:
        sequences: those that decode and those that prefill, whose slots are blocks of vLLM's cache.
        tokens: of all of them; what follows in a batch is padding.
    """

    sequences: Pooled
    tokens: int

    def padded(self, rows: Tensor, length: int) -> Tensor:
        """What was made of the tokens, `[tokens, width]`, with zeros up to `length` for the padding."""
        return rows if self.tokens == length else F.pad(rows, (0, 0, 0, length - self.tokens))


def one_sequence(tokens: int, device: torch.device) -> StepMetadata:
    """The step of one sequence that begins in slot 0 with so many tokens."""
    slot = torch.zeros(1, dtype=torch.int64, device=device)
    bounds = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    return StepMetadata(Pooled(slot, slot.to(torch.int32), slot, Packed(bounds, tokens, 0, 1)), tokens)


class StepMetadataBuilder(AttentionMetadataBuilder[StepMetadata]):
    """Builds `StepMetadata` from what vLLM schedules, without waiting for the device."""

    _cudagraph_support = AttentionCGSupport.NEVER

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> StepMetadata:
        """The step that vLLM describes by `common_attn_metadata`."""
        common = common_attn_metadata
        requests, tokens = common.num_reqs, common.num_actual_tokens
        mode = self.vllm_config.cache_config.mamba_cache_mode
        blocks = mamba_get_block_table_tensor(common.block_table_tensor, common.seq_lens, self.kv_cache_spec, mode)
        assert common.seq_lens_cpu_upper_bound is not None
        # The lengths themselves: only draft tokens, which are refused, make the bound another number.
        lengths = common.seq_lens_cpu_upper_bound[:requests]
        layout: Rows | Packed
        if requests == tokens:
            # One token of each sequence, which one step of the recurrence takes.
            layout, read = Rows(requests, 1, 0, 1), lengths - 1
        else:
            bounds = common.query_start_loc_cpu[: requests + 1]
            layout, read = Packed(self._here(bounds), tokens, 0, 1), lengths - bounds.diff()
        # A list of some numbers is looked through faster than a tensor.
        fresh = [index for index, each in enumerate(read.tolist()) if each == 0]
        sequences = Pooled(
            blocks[:requests, 0].to(torch.int64),
            self._here(read.to(torch.int32)),
            self._here(torch.tensor(fresh)) if fresh else None,
            layout,
        )
        return StepMetadata(sequences, tokens)

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


class TrellisBackend(AttentionBackend):
    """What vLLM asks of the memories of this project in the place of attention."""

    @staticmethod
    def get_name() -> str:
        """The name in vLLM's logs."""
        return "TRELLIS"

    @staticmethod
    def get_builder_cls() -> type[StepMetadataBuilder]:
        """The builder of the metadata of a step."""
        return StepMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        """That a sequence has a state of constant size."""
        return True
