"""What a state depends on beside its tokens: the weights, the configuration, the types and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.rule_text import rule_text
from trellis_ops.content_digest import content_digest
from trellis_ops.lm.state.prefixes import StatefulModel

Version = tuple[tuple[int, int], ...]


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

    def of(self, model: StatefulModel) -> str:
        """SHA-256 over weights, configuration, rule, types and tokenizer, hexadecimal; reads all weights at first."""
        version = tuple(_versions(model.parameters()))
        with self._lock:
            known = self._known.get(model)
            if known is None or known.version != version:
                known = self._known[model] = _Known(version, content_digest(_settings(model), model.state_dict()))
        types = f"{_autocast(next(model.parameters()).device)}\0{self._tokenizer}"
        return hashlib.sha256(f"{known.digest}\0{types}".encode()).hexdigest()

    def forget(self, model: StatefulModel) -> None:
        """Read the weights of `model` again at its next lookup."""
        with self._lock:
            self._known.pop(model, None)


def _settings(model: StatefulModel) -> str:
    # A map of a user's own may have another formula under the same name; the rule's text has the formula.
    return json.dumps([model.config.to_dict(), rule_text(model.config.record)], sort_keys=True, default=repr)


def _versions(weights: Iterator[Tensor]) -> Iterator[tuple[int, int]]:
    for each in weights:
        yield each.data_ptr(), 0 if each.is_inference() else each._version


def _autocast(device: torch.device) -> str:
    if not torch.is_autocast_enabled(device.type):
        return ""
    return str(torch.get_autocast_dtype(device.type))
