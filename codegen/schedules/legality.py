"""What a schedule may be: the single test of legality, for the search and for dispatch alike."""

from __future__ import annotations

from codegen.device import Device
from codegen.errors import IllegalScheduleError
from codegen.recurrence.forms import (
    WHOLE_CHUNK,
    why_no_chunk_form,
    why_no_split_form,
    why_no_stale_form,
    why_not_one_memory,
)
from codegen.recurrence.of_rule import write_inputs
from codegen.rule import Rule
from codegen.schedules.known_bad import why_known_bad
from codegen.schedules.schedule import (
    CHUNK_FORMS,
    FEWEST_TOKENS_PER_STATE,
    ONE_PASS,
    STALE,
    SUBSTITUTIONS,
    Schedule,
    why_no_whole_tiles,
)
from codegen.spec import Spec

_MOST_TOKENS_PER_STATE = 256  # States of so many tokens take less than their inputs do.


def why_illegal(spec: Spec, schedule: Schedule, device: Device) -> str | None:
    """Why `schedule` cannot be used for `spec` on `device`, in one sentence; None if it can.

    This is the single source of truth: the search never compiles what is illegal, dispatch never runs it. What holds
    for every backend is asked here, and the rest of the schedule.
    """
    problem = spec.problem
    variants = schedule.variants_of(problem.operator, problem.direction)
    if schedule.variant not in variants:
        operator = problem.operator if problem.direction == "forward" else f"{problem.operator} {problem.direction}"
        known = f"only {', '.join(variants)}" if variants else "and no other"
        return f"{schedule.backend} has no variant {schedule.variant!r} of {operator}, {known}"
    if schedule.variant == "recurrent" and problem.operator == "trellis_attention" and problem.chunk != 1:
        return f"variant 'recurrent' is exact only for chunk 1, not {problem.chunk}"
    if schedule.variant in CHUNK_FORMS:
        reason = why_no_chunk_form(spec.rule, problem.chunk, problem.direction)
        if reason is not None:
            return f"variant {schedule.variant!r} does not compute this rule: {reason}"
        reason = why_no_whole_tiles(spec.rule, problem.chunk, schedule.tile)
        if reason is not None:
            return reason
    for variant, why_not in ((ONE_PASS, why_no_split_form), (STALE, why_no_stale_form)):
        reason = why_not(spec.rule, problem.chunk) if schedule.variant == variant else None
        if reason is not None:
            return f"variant {variant!r} does not compute this rule: {reason}"
    if schedule.variant in SUBSTITUTIONS:
        reason = _why_no_substitution(spec.rule, problem.chunk, schedule.variant)
        if reason is not None:
            return f"variant {schedule.variant!r} does not compute this rule: {reason}"
    reason = why_known_bad(schedule.backend, schedule.settings(), device)
    if reason is not None:
        return reason
    reason = _why_illegal_segment(spec, schedule)
    if reason is not None:
        return reason
    return schedule.why_illegal(spec, device)


def require_legal(spec: Spec, schedule: Schedule, device: Device) -> None:
    """Raise IllegalScheduleError if `why_illegal` finds a reason."""
    reason = why_illegal(spec, schedule, device)
    if reason is not None:
        raise IllegalScheduleError(schedule=schedule.key(), spec=spec.key(), reason=reason)


def _why_illegal_segment(spec: Spec, schedule: Schedule) -> str | None:
    spacing, tokens = schedule.segment, schedule.segment_tokens(spec)
    if spec.problem.direction == "forward":
        return None if spacing == 1 else "only a backward stores states: checkpoint_spacing must be 1"
    if tokens < FEWEST_TOKENS_PER_STATE:
        return f"checkpoint_spacing {spacing} stores the states of every {tokens} tokens, which takes too much memory"
    if spacing > 1 and tokens > _MOST_TOKENS_PER_STATE:
        return f"checkpoint_spacing {spacing} would compute the states of {tokens} tokens again, to save little memory"
    return None


def _why_no_substitution(rule: Rule, chunk: int, variant: str) -> str | None:
    """The variants make exact what `split` and `split_one_pass` compute with z at the start of a chunk."""
    if chunk > 1:
        return f"it has z at each token, not at the start of a chunk of {chunk} tokens"
    if "z" not in write_inputs(rule.phi):
        return f"what phi={rule.phi!r} writes does not depend on z, so that there is nothing to substitute"
    return None if variant == "substitution" else why_not_one_memory(rule, WHOLE_CHUNK)
