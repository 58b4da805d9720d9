"""Rules of the family whose kernels are compiled for GPUs that are not here, each of another kind of state or gate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from codegen.recurrence.forms import why_no_chunk_form, why_no_split_form, why_no_stale_form
from codegen.rule import Rule
from codegen.rules import NAMED, rule_named
from codegen.spec import Problem, Spec
from trellis_ops.specs.workload import NamedSpec

_RULES = {
    **{name: rule_named(name) for name in ("linear", "gated_deltanet", "gla", "kda", "rwkv7", "gsa", "titans")},
    "trellis-slots": Rule(decay="slot"),
}
_NONLINEAR = {name: rule_named(name) for name in ("yaad", "moneta")}
_STALE = {
    **{name: rule_named(name) for name in ("titans", "ttt_linear", "omeganet")},
    **{f"huber-{decay}": Rule("huber", passes=1, decay=decay) for decay in ("slot", "channel")},
}


def family_specs() -> tuple[NamedSpec, ...]:
    """Forward and training, exact, in bfloat16 with D = M = 64; and forward with z at the start of a chunk.

    What is exact and not linear in the state, in one pass and in two, has the form by forward substitution.
    """
    return tuple(_specs())


def specs_of_every_form() -> tuple[NamedSpec, ...]:
    """Every named rule in bfloat16 with D = M = 64: what all variants of any rule are computed for.

    Forward, training and a step with C = 1, and of what has a form with chunks of several tokens alone, that forward.
    Rules of equal records are listed once.
    """
    by_spec: dict[Spec, NamedSpec] = {}
    for name, named in NAMED.items():
        for suffix, problem in _PROBLEMS.items():
            spec = Spec(named.rule, problem)
            if problem.chunk == 1 or _has_more_forms(named.rule, problem.chunk):
                by_spec.setdefault(spec, NamedSpec(f"rule-{name}{suffix}", spec))
    return tuple(by_spec.values())


_ANY = Problem("memory_attention", chunk=1, dtype="bfloat16")
_PROBLEMS = {
    "": _ANY,
    "-c16": replace(_ANY, chunk=16),
    "-train": replace(_ANY, direction="backward"),
    "-step": replace(_ANY, operator="memory_step", tokens=1),
}


def _has_more_forms(rule: Rule, chunk: int) -> bool:
    why_not = (why_no_chunk_form, why_no_split_form, why_no_stale_form)
    return any(why(rule, chunk) is None and why(rule, 1) is not None for why in why_not)


def _specs() -> Iterator[NamedSpec]:
    for name, rule in _RULES.items():
        for suffix, direction in (("", "forward"), ("-train", "backward")):
            problem = Problem("memory_attention", chunk=1, dtype="bfloat16", direction=direction)
            yield NamedSpec(f"{name}{suffix}", Spec(rule, problem))
    yield NamedSpec("trellis-softmax", Spec(Rule(phi="softmax"), Problem(chunk=1, dtype="bfloat16")))
    for rules, chunks in ((_NONLINEAR, (1, 16)), (_STALE, (16, 64))):
        for (name, rule), chunk in itertools.product(rules.items(), chunks):
            of_chunk = Problem("memory_attention", chunk=chunk, dtype="bfloat16")
            yield NamedSpec(name if chunk == 1 else f"{name}-c{chunk}", Spec(rule, of_chunk))
