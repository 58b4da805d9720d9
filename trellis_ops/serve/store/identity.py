"""What a state depends on beside its tokens: the weights, the configuration, the types and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from codegen.rule_text import rule_text
from trellis_ops.files.content_digest import content_digest
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.state.prefixes import StatefulModel

Version = tuple[tuple[int, int], ...]


@runtime_checkable
class LoadedModel(Protocol):
    """A model whose weights were read when they were loaded, as an engine may pack them after that.

    Attributes:
        config: the resolved configuration.
    """

    config: TrellisConfig

    @property
    def digest(self) -> str:
        """`weights_digest` of what was loaded."""

    @property
    def device(self) -> torch.device:
        """Of the states."""


@dataclass(frozen=True)
class _Known:
    version: Version
    digest: str


class Identities:
    """Identities of models, each read again only when its weights have changed.

    A change is seen where torch counts it: an optimiser's step, `load_state_dict`, any operation in place, another
    tensor. What is written through `parameter.data` is not counted; call `forget` after that.

    Args:
        tokenizer: names the tokenizer; another one may give the same numbers for another text.
    """

    def __init__(self, tokenizer: str = "") -> None:
        self._tokenizer = tokenizer
        self._known: weakref.WeakKeyDictionary[StatefulModel, _Known] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, model: StatefulModel | LoadedModel) -> str:
        """SHA-256 over weights, configuration, rule, types and tokenizer, hexadecimal; reads all weights at first."""
        if isinstance(model, LoadedModel):
            digest, device = model.digest, model.device
        else:
            digest, device = self._read(model), next(model.parameters()).device
        return hashlib.sha256(f"{digest}\0{_autocast(device)}\0{self._tokenizer}".encode()).hexdigest()

    def forget(self, model: StatefulModel) -> None:
        """Read the weights of `model` again at its next lookup."""
        with self._lock:
            self._known.pop(model, None)

    def _read(self, model: StatefulModel) -> str:
        version = tuple(versions(model.parameters()))
        with self._lock:
            known = self._known.get(model)
            if known is None or known.version != version:
                known = self._known[model] = _Known(version, weights_digest(model.config, model.state_dict()))
        return known.digest


def weights_digest(config: TrellisConfig, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over a configuration, the text of its rule and all weights by the names of `TrellisLM`, hexadecimal."""
    # A map of a user's own may have another formula under the same name; the rule's text has the formula.
    settings = json.dumps([config.to_dict(), rule_text(config.record)], sort_keys=True, default=repr)
    return content_digest(settings, weights)


def versions(weights: Iterator[Tensor]) -> Iterator[tuple[int, int]]:
    """Where each of the weights lies, and how often torch has counted a change of it."""
    for each in weights:
        yield each.data_ptr(), 0 if each.is_inference() else each._version


def _autocast(device: torch.device) -> str:
    if not torch.is_autocast_enabled(device.type):
        return ""
    return str(torch.get_autocast_dtype(device.type))
