"""The served model as a store of prefixes knows models, found by the engine that it serves."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from vllm.config import VllmConfig

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.serve.store.identity import weights_digest
from trellis_ops.serve.vllm import states
from trellis_ops.serve.vllm.block import ServedBlock

CONNECTOR = "TrellisStateConnector"
"""The name by which `--kv-transfer-config` chooses the store."""


@dataclass(eq=False)
class StoredModel:
    """A served model, whose weights are known by their digest: the engine may pack them after they were loaded.

    Attributes:
        config: of the model.
        dtype: of its weights.
        blocks: of the model.
        digest: of the weights as a checkpoint has them; empty until they are loaded.
    """

    config: TrellisConfig
    dtype: torch.dtype
    blocks: Sequence[ServedBlock]
    digest: str = field(default="", init=False)

    def loaded(self, weights: Mapping[str, Tensor]) -> None:
        """Take the digest of `weights`, all of the model; weights that follow get one that no other model has."""
        self.digest = secrets.token_hex() if self.digest else weights_digest(self.config, weights)

    def changed(self) -> None:
        """The weights are others than those that were loaded: no stored state is theirs."""
        self.digest = secrets.token_hex()

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return next(self.blocks[0].parameters()).device

    def taken(self, slot: int) -> dict[str, Tensor]:
        """A copy of the states of all layers in a block of the cache, as `TrellisLM.carried` names them."""
        return states.taken(self.blocks, states.carried_like(self.config, self.dtype), slot)

    def put(self, tensors: Mapping[str, Tensor], slot: int) -> None:
        """Put such states into a block of the cache."""
        states.put(self.blocks, tensors, slot)


_MODELS: weakref.WeakValueDictionary[str, StoredModel] = weakref.WeakValueDictionary()
"""By the name of the engine that a model serves in this process."""


def chosen(vllm_config: VllmConfig) -> bool:
    """Whether an engine keeps states of prefixes in a store of this project."""
    transfer = vllm_config.kv_transfer_config
    return transfer is not None and transfer.kv_connector == CONNECTOR


def enter(vllm_config: VllmConfig, model: StoredModel) -> None:
    """Let the connectors of an engine find the model that it serves."""
    _MODELS[_engine(vllm_config)] = model


def model_of(vllm_config: VllmConfig) -> StoredModel | None:
    """The model that an engine serves, if it is in this process and not yet gone."""
    return _MODELS.get(_engine(vllm_config))


def _engine(vllm_config: VllmConfig) -> str:
    return str(vllm_config.kv_transfer_config.engine_id)
