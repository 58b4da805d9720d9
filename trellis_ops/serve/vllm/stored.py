"""The served model as a store of prefixes knows models, found by the engine that it serves."""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.serve.store.identity import Version, versions, weights_digest
from trellis_ops.serve.vllm import states
from trellis_ops.serve.vllm.block import ServedBlock

CONNECTOR = "TrellisStateConnector"
"""The name by which `--kv-transfer-config` chooses the store."""


class StoredModel:
    """A served model, whose weights are known by the digest that was taken when they were loaded.

    Weights that are loaded or written later have a digest that no other model has.

    Args:
        config: of the model.
        dtype: of its weights.
        module: the model, which owns this.
    """

    def __init__(self, config: TrellisConfig, dtype: torch.dtype, module: nn.Module) -> None:
        self.config = config
        self._dtype = dtype
        self._module = weakref.ref(module)
        self._digest = ""
        self._versions: Version | None = None

    @property
    def digest(self) -> str:
        """Of the weights as a checkpoint has them; empty until they are loaded."""
        now = tuple(versions(self._own().parameters()))
        if self._digest and self._versions not in (None, now):
            self.changed()
        self._versions = now
        return self._digest

    def loaded(self, weights: Mapping[str, Tensor]) -> None:
        """Take the digest of `weights`, all of the model, if these are the first."""
        if self._digest:
            self.changed()
        else:
            self._digest = weights_digest(self.config, weights)
        # An engine may put the weights elsewhere before its first step.
        self._versions = None

    def changed(self) -> None:
        """The weights are others than those that were loaded: no stored state is theirs."""
        self._digest = secrets.token_hex()

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return next(self._own().parameters()).device

    def taken(self, slot: int) -> dict[str, Tensor]:
        """A copy of the states of all layers in a block of the cache, as `TrellisLM.carried` names them."""
        return states.taken(self._blocks(), states.carried_like(self.config, self._dtype), slot)

    def put(self, tensors: Mapping[str, Tensor], slot: int) -> None:
        """Put such states into a block of the cache."""
        states.put(self._blocks(), tensors, slot)

    def _own(self) -> nn.Module:
        module = self._module()
        assert module is not None
        return module

    def _blocks(self) -> list[ServedBlock]:
        return [each for each in self._own().modules() if isinstance(each, ServedBlock)]


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
