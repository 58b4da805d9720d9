"""One class per failure of a model, its files, its state and its serving, with the message on the class."""

from __future__ import annotations

from codegen.errors import TrellisError


class BudgetExceededError(TrellisError, ValueError):
    """A budget that no recommended slot count and chunk size fits into."""

    message = (
        "nothing on the tuner's front fits into latency_budget_us={latency} and state_budget_bytes={bytes}; the least "
        "there is takes {least_us:.3g} us a token, and the smallest state {least_bytes} bytes"
    )


class MaskError(TrellisError, ValueError):
    """A mask that does not say which tokens of a row are padding."""

    message = "attention_mask {problem}"


class TokenError(TrellisError, IndexError):
    """A token id outside the vocabulary."""

    message = "tokens hold {token} at {index}; the vocabulary has {vocab} tokens, 0 to {last}"


class ModelFileError(TrellisError, ValueError):
    """A file that holds no model of this project."""

    message = "{path} holds no model that TrellisLM.save wrote: {problem}"


class StateError(TrellisError, ValueError):
    """A state of a model that another model goes on from."""

    message = "state is that of a model of {found}, but this model computes {expected}; start from its own first_state"


class StoreTierError(TrellisError, OSError):
    """A tier of a prefix store that cannot do what it is asked; the store takes it for a miss and counts it."""

    message = "tier {tier}, {kind}: {problem}"


class DamagedStateError(TrellisError, ValueError):
    """A stored state that is not what was stored; the store takes it for a miss and counts it."""

    message = "the stored state of {tokens} tokens is damaged: {problem}"


class EmptyPromptError(TrellisError, ValueError):
    """A prompt without a token, from which nothing can be written on."""

    message = "the prompt is empty ({source}); give at least one character"


class UnknownModelError(TrellisError, ValueError):
    """A name of a trained model that is not installed with the package, and no file or folder either."""

    message = "{name!r} is no model that is shipped, and no file; name a file, or choose one of: {known}"


class RollbackError(TrellisError, RuntimeError):
    """A rollback in a model whose result depends on the pieces in which it reads a text."""

    message = (
        'decode="exact" with chunk_size={chunk} cannot be rolled back: chunks begin with each piece that is read, so '
        'that fewer tokens are no part of more; take decode="chunked" or chunk_size=1'
    )


class ServingError(TrellisError, ValueError):
    """A model, or an option of an engine, with which a model cannot be served right."""

    message = "{engine} cannot serve this model with {name}={value!r}: {reason}"
