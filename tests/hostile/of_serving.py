"""Entrances of what serves a model: its folder for transformers, stores of prefixes, and options of an engine."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

from tests.hostile.entrance import Entrance
from tests.hostile.of_lm import TINY
from trellis_ops.hf import TrellisHFConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, Memory, PrefixStore
from trellis_ops.serve.vllm.store_options import StoreOptions

_KEY = bytes(range(32))
_FIELDS = ("rule", "phi", "link", "step_size", "decode", "num_slots", "width")


@functools.cache
def _model() -> TrellisLM:
    return TrellisLM(TINY).eval()


def _configuration(field: str) -> Entrance:
    """A field of `config.json`, read and written again."""

    def entrance(name: str, given: Path) -> None:
        written = TrellisHFConfig.from_trellis(TINY).to_dict() | {field or name: name}
        (given / "config.json").write_text(json.dumps(written))
        config = TrellisHFConfig.from_pretrained(given)
        config.save_pretrained(given / "again")
        assert {path.name for path in given.iterdir()} <= {"config.json", "again"}

    return entrance


def _tenant(name: str, given: Path) -> None:
    """A tenant's states lie in the folder, and are found by the same name alone."""
    store = PrefixStore(_KEY, [Disk(given / "states", 2**24)], tokenizer=name)
    prompt = torch.randint(256, (1, 80))
    _model().generate(prompt, 1, prefix_store=store.tenant(name))
    assert store.tenant(name).lookup(_model(), prompt[0]).found == 64
    assert store.tenant(f"{name}!").lookup(_model(), prompt[0]).found == 0
    assert {path.name for path in given.iterdir()} == {"states"}


def _option(name: str, given: Path) -> None:
    StoreOptions.of({"key_file": "key", "memory_bytes": 1, name: 1})


ENTRANCES: dict[str, Entrance] = {
    **{f"{field} in a configuration of transformers": _configuration(field) for field in _FIELDS},
    "a field of a configuration of transformers": _configuration(""),
    "a tenant of a store, and its tokenizer": _tenant,
    "an option of an engine's store": _option,
    "the URL of an engine's store": lambda name, given: StoreOptions.of(
        {"key_file": "key", "redis": name, "quota_bytes": 1}
    ),
    "a tier's limit": lambda name, given: Memory(name),  # type: ignore[arg-type]
}
