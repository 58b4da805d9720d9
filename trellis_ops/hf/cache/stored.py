"""Prompts whose beginning was read before, by a store of prefix states."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from trellis_ops.hf.cache.state import TrellisCache
from trellis_ops.hf.configuration import TrellisHFConfig
from trellis_ops.hf.errors import InputError
from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.features import StateKind, carried, features, restored
from trellis_ops.lm.state import TrellisState
from trellis_ops.lm.state.prefixes import PrefixStore, stored_start
from trellis_ops.lm.vocabulary import embedded


class Reader:
    """A `TrellisModel` as a store knows models; it finds what a `TrellisLM` of the same weights has stored."""

    def __init__(self, model: Any) -> None:
        # The model owns its reader.
        self._model = weakref.ref(model)

    @property
    def model(self) -> Any:
        """The `TrellisModel`."""
        return self._model()

    @property
    def config(self) -> TrellisConfig:
        """The configuration of the reference model."""
        return self.kind.config

    @property
    def kind(self) -> StateKind:
        """Of its states."""
        return cast(StateKind, self.model.kind)

    @property
    def blocks(self) -> list[Block]:
        """Of the model."""
        return list(self.model.blocks)

    def carried(self, state: TrellisState) -> dict[str, Tensor]:
        """See `TrellisLM.carried`."""
        return carried(self.blocks, state)

    def restored(self, tensors: Mapping[str, Tensor]) -> TrellisState:
        """See `TrellisLM.restored`."""
        return restored(self.blocks, self.kind, tensors)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights that make states."""
        return cast("Iterator[nn.Parameter]", self.model.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The same by the names of `TrellisLM`."""
        return cast("dict[str, Any]", self.model.state_dict())

    def advance(self, tokens: Tensor, state: TrellisState | None) -> TrellisState:
        """The state after tokens `[B, T]`."""
        _, after = features(self.blocks, self.kind, embedded(self.model.embedding, tokens), state)
        assert after is not None
        return after


_READERS: weakref.WeakKeyDictionary[nn.Module, Reader] = weakref.WeakKeyDictionary()


def stored_cache(model: nn.Module, config: TrellisHFConfig, prompt: Any, store: PrefixStore) -> TrellisCache:
    """A cache that holds all of a prompt up to a start of a chunk near its end, from stored prefixes where there are.

    Args:
        model: a `TrellisModel`.
        config: its configuration.
        prompt: `[B, T]`, int64, without padding.
        store: where states are found and kept.

    Raises:
        InputError: the prompt is something else.
    """
    if not isinstance(prompt, Tensor) or prompt.ndim != 2 or 0 in prompt.shape or prompt.dtype != torch.int64:
        raise InputError(name="prefix_store", problem="a store knows prompts of tokens; give input_ids [B, T], int64")
    reader = _READERS.get(model)
    if reader is None:
        reader = _READERS[model] = Reader(model)
    count, state = stored_start(reader, prompt, store, reader.advance)
    return TrellisCache.after(config, state, count)
