"""Which rules have a form that computes the tokens of a tile, or of a chunk, at once, exactly."""

from __future__ import annotations

from codegen.recurrence.of_rule import write_inputs
from codegen.rule import CHOICES, SOLVE, Rule

HEBBIAN, SQUARED = "hebbian", "identity"
"""The losses, as `Rule.phi` names them: -<z, a>, whose u does not depend on z, and 1/2 ||z - a||^2."""


def why_no_chunk_form(rule: Rule, chunk: int, direction: str = "forward") -> str | None:
    """Why the tokens of a tile cannot be computed at once, in one sentence; None if they can.

    The Hebbian loss has sums over earlier tokens for it, and the squared loss with z at the token before a triangular
    system (arXiv 2406.06484, section 3; arXiv 2412.06464, section 3).

    Args:
        rule: any.
        chunk: C, tokens between two states that z is taken at.
        direction: one of `codegen.spec.DIRECTIONS`.
    """
    if rule.phi not in (HEBBIAN, SQUARED):
        return f"what a token writes is linear in the state only with phi='hebbian' or 'identity', not {rule.phi!r}"
    if rule.phi == SQUARED and chunk > 1:
        return f"the system of a squared loss has z at the token before, not at the start of a chunk of {chunk} tokens"
    if rule.passes == 2 and (rule.phi == SQUARED or rule.link == SOLVE):
        return "in two passes the form has phi='hebbian' and a link that is a map"
    if rule.decay == "slot" and rule.passes == 1:
        return "a decay of each slot has the form in two passes only: with a residual each slot has a system of its own"
    if rule.read == "chunk_start" and (rule.passes == 2 or chunk == 1 or direction != "forward"):
        return (
            "a readout at the start of a chunk has the form in one pass, with chunks of several tokens, and no reverse"
        )
    if rule.erase and (rule.phi == SQUARED or chunk > 1):
        return "with erase=True the form has phi='hebbian', and a chunk of 1 token"
    if rule.phi == HEBBIAN and rule.probe == "own":
        return "a Hebbian loss makes no use of a probe of its own"
    for field in ("momentum", "normaliser", "transposed"):
        if getattr(rule, field) != CHOICES[field][0]:
            return f"the form has no {field}={getattr(rule, field)!r}"
    if rule.window > 1 or rule.view != "identity" or rule.step_size == "reader_writer":
        return "the form has no window, view or second step size"
    if direction != "forward" and (rule.out != "identity" or rule.passes == 2):
        return "its reverse is not written for a map of the readout, or two passes"
    return None


WHOLE_CHUNK = 64
"""Tokens that are computed at once where no chunk decides what is computed."""


def split_chunk(rule: Rule, chunk: int) -> int:
    """The chunk that the kernels of `why_no_split_form` take: that of the call, or a longer one if u needs no z."""
    return chunk if "z" in write_inputs(rule.phi) else max(chunk, WHOLE_CHUNK)


def why_no_split_form(rule: Rule, chunk: int) -> str | None:
    """Why the kernels of one memory, `memory_update` and `memory_readout`, do not compute a rule; None if they do.

    With z at the start of the chunk, what its tokens write is known at once, whatever the loss.

    Args:
        rule: any.
        chunk: C, tokens between two states that z is taken at.
    """
    if rule.decay_first and chunk > 1 and "z" in write_inputs(rule.phi):
        return "with decay_first z is beta S w, and the form takes S w at the start of a chunk of several tokens"
    return why_not_one_memory(rule, chunk)


def why_not_one_memory(rule: Rule, chunk: int) -> str | None:
    """As `why_no_split_form`, wherever z is taken."""
    if split_chunk(rule, chunk) == 1:
        return "with a chunk of 1 token there is nothing to compute at once"
    if rule.passes == 2:
        return "it has two memories; the form is that of one"
    if rule.decay != "scalar":
        return f"the form has decay='scalar', not {rule.decay!r}"
    if rule.read != "after" or rule.out != "identity":
        return "the form reads S after the write, and has no map of the readout"
    for field in ("probe", "erase", "momentum", "normaliser", "transposed"):
        if getattr(rule, field) != CHOICES[field][0]:
            return f"the form has no {field}={getattr(rule, field)!r}"
    if rule.window > 1 or rule.view != "identity" or rule.step_size == "reader_writer" or rule.loss.takes_gain:
        return "the form has no window, view, second step size or gain"
    return None


def stale_chunk(rule: Rule, chunk: int) -> int:
    """The chunk that the kernel of `why_no_stale_form` takes: that of the call, or a longer one if it decides nothing.

    Args:
        rule: any.
        chunk: C, tokens between two states that z is taken at, and that a readout at the start of the chunk reads.
    """
    starts = rule.step_size == "reader_writer" or rule.read == "chunk_start"
    return chunk if starts else split_chunk(rule, chunk)


def why_no_stale_form(rule: Rule, chunk: int) -> str | None:
    """Why a stale state, that of the chunk's start, does not give all tokens of a tile at once; None if it does.

    With z at the start of the chunk, what its tokens write is known at once, whatever the loss. What a write weighs in
    a later state follows by recurrences over numbers, for momentum, a window and a reader-writer step alike.

    Args:
        rule: any.
        chunk: C, tokens between two states that z is taken at.
    """
    if stale_chunk(rule, chunk) == 1:
        return "with a chunk of 1 token there is nothing to compute at once"
    if rule.passes == 2:
        return "it has two memories; the form is that of one"
    if rule.decay in ("slot", "channel") and (rule.momentum or rule.window > 1):
        return f"with momentum or a window a write weighs one number in a later state, not with decay={rule.decay!r}"
    for field in ("erase", "normaliser", "transposed"):
        if getattr(rule, field) != CHOICES[field][0]:
            return f"the form has no {field}={getattr(rule, field)!r}"
    if rule.view != "identity":
        return "the form has no view: states are sums of what was written"
    return None
