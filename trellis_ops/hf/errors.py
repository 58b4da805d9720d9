"""What can be wrong between a model and transformers, one class each."""

from __future__ import annotations

from codegen.errors import TrellisError


class PretrainedError(TrellisError, ValueError):
    """A folder that holds no whole model of this version."""

    message = "{path} holds no whole model that this version reads: {problem}"


class ForeignCacheError(TrellisError, TypeError):
    """A cache that is no `TrellisCache`."""

    message = (
        "cache is a {kind}, but a state of constant size is a TrellisCache(model.config); leave it out to start one"
    )


class CacheUseError(TrellisError, ValueError):
    """A cache that cannot be used in this way."""

    message = "{problem}; {advice}"


class InputError(TrellisError, ValueError):
    """Inputs of a forward that contradict each other."""

    message = "{name}: {problem}"
