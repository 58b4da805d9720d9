"""Peers whose writes do not depend on the memory: linear attention, its gates, and the slots of GSA and ABC."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tests.support.peers.inputs import Drawing, Sizes, qkv, state
from tests.support.peers.peer import Named, Peer, Results, walked
from trellis_ops.preparations import abc_gates, elu_plus_one, retention_log_decay, rwkv7_erase

SLOTS = 32
"""Of GSA and ABC."""


def head_first(x: Tensor) -> Tensor:
    """`[B, H, T, ...]` of `[B, T, H, ...]`, and back."""
    return x.transpose(1, 2)


def scaled(q: Tensor) -> Tensor:
    """The queries as flash-linear-attention scales them."""
    return q * q.shape[-1] ** -0.5


def memory(initial: Tensor | None) -> Named | None:
    """The memory of one pass, from the layout [D_k, D_v] of flash-linear-attention."""
    return None if initial is None else {"S": initial.mT}


def results(found: Results) -> Results:
    """Those of one pass in that layout."""
    y, states = found
    return y, {"S": states["S"].mT}


def _retention_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    return qkv(sizes, drawing)


def _retention_theirs(function: Callable[..., Tensor], given: Named) -> Results:
    return head_first(function(*(head_first(given[name]) for name in "qkv"))), {}


def _retention_ours(given: Named) -> Results:
    gates = {"log_decay": retention_log_decay(given["q"])}
    y, _ = walked("retention", given | gates | {"q": scaled(given["q"])})
    return y, {}


def _gated_inputs(*more: str) -> Callable[[Sizes, Drawing], Named]:
    def draw(sizes: Sizes, drawing: Drawing) -> Named:
        dims = [sizes.dim for _ in more]
        tensors = qkv(sizes, drawing) | {"log_decay": drawing.log_gate(sizes, *dims)}
        return tensors | {"S": state(sizes, drawing, sizes.dim, sizes.dim - 4)}

    return draw


def _gated_theirs(function: Callable[..., Results], given: Named) -> Results:
    tensors = (given[name] for name in ("q", "k", "v", "log_decay"))
    y, last = function(*tensors, initial_state=given["S"], output_final_state=True)
    return y, {"S": last}


def _gated_ours(name: str) -> Callable[[Named], Results]:
    def ours(given: Named) -> Results:
        tensors = {"q": scaled(given["q"])} | {each: given[each] for each in ("k", "v", "log_decay")}
        return results(walked(name, tensors, memory(given["S"])))

    return ours


def _rwkv6_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    return _gated_inputs("dim_k")(sizes, drawing) | {"bonus": drawing.normal(sizes.heads, sizes.dim)}


def _rwkv6_theirs(function: Callable[..., Results], given: Named) -> Results:
    tensors = (head_first(given[name]) for name in ("q", "k", "v", "log_decay"))
    y, last = function(*tensors, given["bonus"], initial_state=given["S"], output_final_state=True)
    return head_first(y), {"S": last}


def _rwkv6_ours(given: Named) -> Results:
    y, states = _gated_ours("rwkv6")(given)
    present = (scaled(given["q"]) * given["bonus"] * given["k"]).sum(-1, keepdim=True)
    return y + present * given["v"], states


def _normalised_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    start = {"S": state(sizes, drawing, sizes.dim, sizes.dim - 4)}
    return qkv(sizes, drawing) | start | {"n": drawing.rand(sizes.batch, 1, sizes.heads, sizes.dim)}


def _normalised_theirs(function: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]], given: Named) -> Results:
    q, k = elu_plus_one(given["q"]), elu_plus_one(given["k"])
    start = (given["S"], given["n"])
    y, (last, n) = function(q, k, given["v"], initial_state=start, output_final_state=True, normalize=True)
    return y, {"S": last, "n": n[:, 0]}


def _normalised_ours(given: Named) -> Results:
    tensors = {"q": scaled(elu_plus_one(given["q"])), "k": elu_plus_one(given["k"]), "v": given["v"]}
    y, states = walked("linear_normalised", tensors, {"S": given["S"].mT, "n": given["n"][:, 0]})
    return y, {"S": states["S"].mT, "n": states["n"]}


def _gsa_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    gates = {"target": drawing.rand(*sizes.per_token, SLOTS), "log_decay": drawing.log_gate(sizes, SLOTS)}
    keys, values = state(sizes, drawing, sizes.dim, SLOTS), state(sizes, drawing, SLOTS, sizes.dim - 4)
    return qkv(sizes, drawing) | gates | {"S_k": keys, "S_v": values}


def _gsa_theirs(function: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]], given: Named) -> Results:
    tensors = (given[name] for name in ("q", "k", "v", "target", "log_decay"))
    y, (keys, values) = function(*tensors, initial_state=(given["S_k"], given["S_v"]), output_final_state=True)
    return y, {"S_k": keys, "S_v": values}


def _gsa_ours(given: Named) -> Results:
    tensors = {name: given[name] for name in ("k", "v", "target", "log_decay")} | {"q": scaled(given["q"])}
    y, states = walked("gsa", tensors, {"S_k": given["S_k"].mT, "S_v": given["S_v"]})
    return y, {"S_k": states["S_k"].mT, "S_v": states["S_v"]}


def _abc_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    return qkv(sizes, drawing) | {"s": drawing.normal(*sizes.per_token, SLOTS)}


def _abc_theirs(function: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]], given: Named) -> Results:
    tensors = (head_first(given[name]) for name in ("q", "k", "v", "s"))
    y, (keys, values) = function(*tensors, output_final_state=True)
    return head_first(y), {"S_k": keys, "S_v": values}


def _abc_ours(given: Named) -> Results:
    target, log_decay, _ = abc_gates(given["s"])
    tensors = {"q": scaled(given["q"]), "k": given["k"], "v": given["v"], "target": target, "log_decay": log_decay}
    y, states = walked("abc", tensors)
    return y, {"S_k": states["S_k"].mT, "S_v": states["S_v"]}


def _erasing_inputs(*more: str) -> Callable[[Sizes, Drawing], Named]:
    def draw(sizes: Sizes, drawing: Drawing) -> Named:
        removed = {"kk": drawing.unit(*sizes.per_token, sizes.dim), "eta": drawing.rand(*sizes.per_token, sizes.dim)}
        gates = {name: drawing.log_gate(sizes, sizes.dim) for name in more}
        return qkv(sizes, drawing) | removed | gates | {"S": state(sizes, drawing, sizes.dim, sizes.dim - 4)}

    return draw


def _erasing_theirs(*more: str) -> Callable[[Callable[..., Results], Named], Results]:
    def theirs(function: Callable[..., Results], given: Named) -> Results:
        pair = rwkv7_erase(given["kk"], given["eta"])
        tensors = (*(given[name] for name in ("q", "k", "v")), *pair, *(given[name] for name in more))
        y, last = function(*(head_first(x) for x in tensors), initial_state=given["S"])
        return head_first(y), {"S": last}

    return theirs


def _erasing_ours(rule: str, *more: str) -> Callable[[Named], Results]:
    def ours(given: Named) -> Results:
        a, b = rwkv7_erase(given["kk"], given["eta"])
        tensors = {name: given[name] for name in ("k", "v", *more)} | {"q": scaled(given["q"])}
        return results(walked(rule, tensors | {"erase_a": a, "erase_b": b}, memory(given["S"])))

    return ours


OPS = "fla.ops"
HEBBIAN = (
    Peer(
        "retention",
        f"{OPS}.retention.naive:naive_retention",
        _retention_inputs,
        _retention_theirs,
        _retention_ours,
        "its output only",
    ),
    Peer(
        "simple_gla",
        f"{OPS}.simple_gla.naive:naive_recurrent_simple_gla",
        _gated_inputs(),
        _gated_theirs,
        _gated_ours("simple_gla"),
    ),
    Peer(
        "linear_normalised",
        f"{OPS}.linear_attn.naive:naive_recurrent_linear_attn",
        _normalised_inputs,
        _normalised_theirs,
        _normalised_ours,
        "adds 1e-10 to the divisor, the rule 1e-6",
        float64=1e-5,
    ),
    Peer("gla", f"{OPS}.gla.naive:naive_recurrent_gla", _gated_inputs("dim_k"), _gated_theirs, _gated_ours("gla")),
    Peer(
        "rwkv6",
        f"{OPS}.rwkv6.recurrent_naive:naive_recurrent_rwkv6",
        _rwkv6_inputs,
        _rwkv6_theirs,
        _rwkv6_ours,
        "its bonus for the token itself is added to what is read",
    ),
    Peer("gsa", f"{OPS}.gsa.naive:naive_recurrent_gsa", _gsa_inputs, _gsa_theirs, _gsa_ours),
    Peer(
        "abc",
        f"{OPS}.abc.naive:naive_recurrent_abc",
        _abc_inputs,
        _abc_theirs,
        _abc_ours,
        "carries no log-sum-exp, so only from zero states",
    ),
    Peer(
        "iplr",
        f"{OPS}.generalized_delta_rule.iplr.naive:iplr_recurrence",
        _erasing_inputs(),
        _erasing_theirs(),
        _erasing_ours("iplr"),
    ),
    Peer(
        "rwkv7",
        f"{OPS}.generalized_delta_rule.dplr.naive:dplr_recurrence",
        _erasing_inputs("log_decay"),
        _erasing_theirs("log_decay"),
        _erasing_ours("rwkv7", "log_decay"),
    ),
)
