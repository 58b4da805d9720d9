"""Rules of the family whose kernels are compiled for GPUs that are not here, each of another kind of state or gate."""

from __future__ import annotations

from collections.abc import Iterator

from codegen.rule import Rule
from codegen.rules import rule_named
from codegen.spec import Problem, Spec
from trellis_ops.specs.workload import NamedSpec

_RULES = {
    **{name: rule_named(name) for name in ("linear", "gated_deltanet", "gla", "kda", "rwkv7", "gsa", "titans")},
    "trellis-slots": Rule(decay="slot"),
}
_STALE = {
    **{name: rule_named(name) for name in ("titans", "ttt_linear", "omeganet")},
    **{f"huber-{decay}": Rule("huber", passes=1, decay=decay) for decay in ("slot", "channel")},
}


def family_specs() -> tuple[NamedSpec, ...]:
    """Forward and training, exact, in bfloat16 with D = M = 64; and forward with z at the start of a chunk."""
    return tuple(_specs())


def _specs() -> Iterator[NamedSpec]:
    for name, rule in _RULES.items():
        for suffix, direction in (("", "forward"), ("-train", "backward")):
            problem = Problem("memory_attention", chunk=1, dtype="bfloat16", direction=direction)
            yield NamedSpec(f"{name}{suffix}", Spec(rule, problem))
    for name, rule in _STALE.items():
        for chunk in (16, 64):
            yield NamedSpec(f"{name}-c{chunk}", Spec(rule, Problem("memory_attention", chunk=chunk, dtype="bfloat16")))
