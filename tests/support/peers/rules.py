"""The rules that a peer has a reference for: named ones, and records near them."""

from __future__ import annotations

from dataclasses import replace

from codegen.rule import Rule
from codegen.rules import rule_named

_NAMED = ("gla", "gsa", "abc", "deltanet", "gated_deltanet", "delta_product", "kda", "gdn2", "comba", "oja")
_NAMED += ("titans", "rwkv7", "mesanet")

RULES: dict[str, Rule] = {name: rule_named(name) for name in _NAMED} | {
    "retention": rule_named("linear"),
    "simple_gla": rule_named("linear"),
    "linear_normalised": replace(rule_named("infini"), phi="hebbian", normaliser="read", read="after"),
    "rwkv6": replace(rule_named("gla"), read="before"),
    "momentum_delta": replace(rule_named("titans"), probe="own"),
    "iplr": replace(rule_named("rwkv7"), decay="none"),
    # The reference adds the readout itself to its layer norm.
    "ttt_linear": replace(rule_named("ttt_linear"), out="identity"),
}
"""By the name of a peer in `PEERS`."""
