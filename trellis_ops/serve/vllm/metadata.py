"""Which sequences of a step of vLLM decode, which prefill, and where the state of each one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.utils import mamba_get_block_table_tensor, split_decodes_and_prefills

from trellis_ops.lm.sequences import Packed
from trellis_ops.lm.state.place import place_of
from trellis_ops.serve.vllm.configuration import positions_repeat_after


@dataclass(frozen=True)
class Sequences:
    """Sequences of one step that are computed together.

    Attributes:
        slots: `[N]` int64, the block of vLLM's cache that holds the state of each.
        layout: where their tokens are.
        begins: whose chunk begins with its first token: all, none, or a mask `[N]`.
        fresh: int64, those that begin, whose slots hold what another sequence left; None for none.
    """

    slots: Tensor
    layout: Packed
    begins: bool | Tensor
    fresh: Tensor | None


@dataclass(frozen=True)
class StepMetadata:
    """One step of the engine; the tokens of `decodes`, one for each sequence, come before those of `prefills`.

    Attributes:
        decodes: sequences of one token, prompts of one token among them; None for none.
        prefills: sequences of several tokens; None for none.
        decoded: tokens of `decodes`.
        tokens: tokens of both; what follows in a batch is padding.
    """

    decodes: Sequences | None
    prefills: Sequences | None
    decoded: int
    tokens: int


class StepMetadataBuilder(AttentionMetadataBuilder[StepMetadata]):
    """Builds `StepMetadata` from what vLLM schedules, without waiting for the device."""

    _cudagraph_support = AttentionCGSupport.NEVER
    reorder_batch_threshold: int = 1

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._period = positions_repeat_after(vllm_config.model_config.hf_config.to_trellis())

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> StepMetadata:
        """The step that vLLM describes by `common_attn_metadata`."""
        common = common_attn_metadata
        mode = self.vllm_config.cache_config.mamba_cache_mode
        blocks = mamba_get_block_table_tensor(common.block_table_tensor, common.seq_lens, self.kv_cache_spec, mode)
        slots = blocks[:, 0].to(torch.int64)
        bounds = common.query_start_loc_cpu[: common.num_reqs + 1]
        assert common.seq_lens_cpu_upper_bound is not None
        # The lengths themselves: only draft tokens, which are refused, make the bound another number.
        computed = common.seq_lens_cpu_upper_bound[: common.num_reqs] - bounds.diff()
        decodes, prefills, decoded, prefilled = split_decodes_and_prefills(common, self.reorder_batch_threshold)
        return StepMetadata(
            self._sequences(slots[:decodes], computed[:decodes], bounds[: decodes + 1]) if decodes else None,
            self._sequences(slots[decodes:], computed[decodes:], bounds[decodes:] - decoded) if prefills else None,
            decoded,
            decoded + prefilled,
        )

    def _sequences(self, slots: Tensor, computed: Tensor, bounds: Tensor) -> Sequences:
        positions = computed.to(torch.int64) % self._period
        begins = positions == 0
        fresh = (computed == 0).nonzero().flatten()
        return Sequences(
            slots,
            Packed(self._here(bounds), int(bounds[-1]), place_of(positions), self._period),
            bool(begins[0]) if bool((begins == begins[0]).all()) else self._here(begins),
            self._here(fresh) if fresh.numel() else None,
        )

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
