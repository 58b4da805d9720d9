"""What versions of transformers call the cache."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

_NAMES = ("cache", "past_key_values", "cache_params")

CACHE_NAME = next(name for name in _NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})
"""The name that this version reads and writes: `cache`, before 5.20 `past_key_values`."""


def take_cache(arguments: dict[str, Any]) -> Any:
    """The cache among keyword arguments, by whichever name it was given, which is taken out; None if there is none.

    Raises:
        TypeError: two different ones.
    """
    found = [each for each in (arguments.pop(name, None) for name in _NAMES) if each is not None]
    if any(each is not found[0] for each in found):
        raise TypeError(f"two caches were given; give one, as {CACHE_NAME}")
    return found[0] if found else None
