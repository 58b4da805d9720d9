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


def family_specs() -> tuple[NamedSpec, ...]:
    """Forward and training, exact, in bfloat16 with D = M = 64."""
    return tuple(_specs())


def _specs() -> Iterator[NamedSpec]:
    for name, rule in _RULES.items():
        for suffix, direction in (("", "forward"), ("-train", "backward")):
            problem = Problem("memory_attention", chunk=1, dtype="bfloat16", direction=direction)
            yield NamedSpec(f"{name}{suffix}", Spec(rule, problem))
