"""The records of the rules that a peer has a reference for, and what else a call of them needs."""

from __future__ import annotations

from codegen.rule import Rule

_ONE = {"passes": 1}

RULES: dict[str, Rule] = {
    "retention": Rule("hebbian", **_ONE),
    "simple_gla": Rule("hebbian", **_ONE),
    "linear_normalised": Rule("hebbian", **_ONE, decay="none", normaliser="read"),
    "gla": Rule("hebbian", **_ONE, decay="channel"),
    "rwkv6": Rule("hebbian", **_ONE, decay="channel", read="before"),
    "gsa": Rule("hebbian", link="softmax", decay="slot"),
    "abc": Rule("hebbian", link="softmax", decay="slot"),
    "deltanet": Rule("identity", **_ONE, decay="none", step_size="token"),
    "gated_deltanet": Rule("identity", **_ONE, decay_first=True, step_size="token"),
    "delta_product": Rule("identity", **_ONE, decay_first=True, step_size="token"),
    "kda": Rule("identity", **_ONE, decay="channel", decay_first=True, step_size="token"),
    "gdn2": Rule("identity", **_ONE, decay="channel", decay_first=True, probe="own"),
    "comba": Rule("identity", **_ONE, probe="own", step_size="token"),
    "oja": Rule("identity", **_ONE, transposed=True, decay="slot", decay_first=True, step_size="token"),
    "momentum_delta": Rule("identity", **_ONE, probe="own", momentum=True, step_size="token"),
    "iplr": Rule("hebbian", **_ONE, decay="none", erase=True),
    "rwkv7": Rule("hebbian", **_ONE, decay="channel", erase=True),
    "ttt_linear": Rule("layer_norm_gain", **_ONE, decay="none", step_size="reader_writer"),
    "mesanet": Rule("hebbian", link="solve", step_size="token"),
}
"""By the name of the peer's reference."""
