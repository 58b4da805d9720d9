"""Peers of the squared loss: the delta rule with its gates, probes, substeps and momentum, and Oja's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.peers.hebbian import OPS, head_first, memory, results, scaled
from tests.support.peers.inputs import Drawing, Sizes, qkv, state
from tests.support.peers.peer import Named, Peer, Results, walked
from trellis_ops import preparations

SUBSTEPS = 3
"""Of DeltaProduct."""

MOMENTUM = f"{OPS}.momentum_delta_rule.naive:recurrent_momentum_delta_rule_ref"

Draw = Callable[[Sizes, Drawing], Named]
Theirs = Callable[[Callable[..., Results], Named], Results]


def _draw(gate: str = "none") -> Draw:
    """Tensors of a delta rule, with a gate per token ("scalar") or per channel ("channel") of its keys."""

    def draw(sizes: Sizes, drawing: Drawing) -> Named:
        dims = {"none": (), "scalar": (), "channel": (sizes.dim,)}[gate]
        tensors = qkv(sizes, drawing) | {"step_size": drawing.step(*sizes.per_token)}
        if gate != "none":
            tensors["log_decay"] = drawing.log_gate(sizes, *dims)
        return tensors | {"S": state(sizes, drawing, sizes.dim, sizes.dim - 4)}

    return draw


def _with_probe(draw: Draw) -> Draw:
    def drawn(sizes: Sizes, drawing: Drawing) -> Named:
        tensors = draw(sizes, drawing)
        return tensors | {"probe": tensors["k"] * drawing.rand(*sizes.per_token, sizes.dim)}

    return drawn


def _delta_theirs(*names: str, heads_first: bool = False) -> Theirs:
    """The reference's results; `names` are its arguments in order."""

    def theirs(function: Callable[..., Results], given: Named) -> Results:
        tensors = [head_first(given[name]) if heads_first else given[name] for name in names]
        y, last = function(*tensors, initial_state=given["S"], output_final_state=True)
        return head_first(y) if heads_first else y, {"S": last}

    return theirs


def _ours(name: str) -> Callable[[Named], Results]:
    def ours(given: Named) -> Results:
        tensors = {each: x for each, x in given.items() if each != "S"} | {"q": scaled(given["q"])}
        return results(walked(name, tensors, memory(given["S"])))

    return ours


def _gdn2_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    tensors = _draw("channel")(sizes, drawing)
    del tensors["step_size"]
    erase, write = drawing.rand(*sizes.per_token, sizes.dim), drawing.rand(*sizes.per_token, sizes.dim - 4)
    return tensors | {"erase": erase, "write": write}


def _gdn2_ours(given: Named) -> Results:
    tensors = {"q": scaled(given["q"]), "k": given["k"], "log_decay": given["log_decay"]}
    tensors |= {"v": given["write"] * given["v"], "probe": given["erase"] * given["k"]}
    return results(walked("gdn2", tensors, memory(given["S"])))


def _product_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    shape = (sizes.batch, sizes.tokens, SUBSTEPS, sizes.heads)
    keys = {"k": drawing.unit(*shape, sizes.dim), "v": drawing.normal(*shape, sizes.dim - 4)}
    return _draw("scalar")(sizes, drawing) | keys | {"step_size": drawing.step(*shape)}


def _product_theirs(function: Callable[..., Results], given: Named) -> Results:
    k, v, step_size = (given[name].flatten(1, 2) for name in ("k", "v", "step_size"))
    y, last = function(
        given["q"],
        k,
        v,
        given["log_decay"],
        step_size,
        scale=given["q"].shape[-1] ** -0.5,
        initial_state=given["S"],
        output_final_state=True,
        num_householder=SUBSTEPS,
    )
    return y, {"S": last}


def _product_ours(given: Named) -> Results:
    tensors = {name: preparations.interleave(given[name]) for name in ("k", "v", "step_size")}
    tensors["q"] = preparations.stretch_queries(scaled(given["q"]), SUBSTEPS)
    tensors["log_decay"] = preparations.stretch_log_decay(given["log_decay"], SUBSTEPS)
    y, states = results(walked("delta_product", tensors, memory(given["S"])))
    return preparations.every_nth(y, SUBSTEPS), states


def _oja_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    dim_v = sizes.dim - 4
    tensors = qkv(sizes, drawing) | {"v": drawing.unit(*sizes.per_token, dim_v)}
    gates = {"step_size": drawing.step(*sizes.per_token), "log_decay": drawing.log_gate(sizes, dim_v)}
    return tensors | gates | {"S": state(sizes, drawing, sizes.dim, dim_v)}


def _oja_theirs(function: Callable[..., Results], given: Named) -> Results:
    """KDA, whose memory is Oja's with keys and values exchanged, token by token; each is read along the keys."""
    outputs, last = [], given["S"].mT
    for t in range(given["q"].shape[1]):
        v, k, log_decay, step_size = (given[name][:, t : t + 1] for name in ("v", "k", "log_decay", "step_size"))
        _, last = function(v, v, k, log_decay, step_size, initial_state=last, output_final_state=True)
        outputs.append(torch.einsum("bhvk,bhk->bhv", last, scaled(given["q"][:, t])))
    return torch.stack(outputs, dim=1), {"S": last.mT}


def _with_momentum(draw: Draw) -> Draw:
    def drawn(sizes: Sizes, drawing: Drawing) -> Named:
        tensors = draw(sizes, drawing)
        moving = {"log_momentum": drawing.log_gate(sizes), "P": state(sizes, drawing, sizes.dim, sizes.dim - 4)}
        return tensors | moving

    return drawn


def _momentum_theirs(function: Callable[..., tuple[Tensor, Tensor]], given: Named) -> Results:
    y, last = function(
        *(given[name] for name in ("q", "k", "v")),
        log_alpha=given["log_decay"],
        log_mu=given["log_momentum"],
        p=given.get("probe", given["k"]),
        beta=torch.ones_like(given["step_size"]),
        eta=given["step_size"],
        initial_S=given["S"],
        initial_M=-given["P"],
        output_final_state=True,
    )
    final_state, final_momentum = last
    return y, {"S": final_state, "P": -final_momentum}


def _momentum_ours(name: str) -> Callable[[Named], Results]:
    def ours(given: Named) -> Results:
        tensors = {each: x for each, x in given.items() if each not in ("S", "P", "log_momentum")}
        tensors |= {"q": scaled(given["q"]), "momentum": given["log_momentum"].exp()}
        y, states = walked(name, tensors, {"S": given["S"].mT, "P": given["P"].mT})
        return y, {each: x.mT for each, x in states.items()}

    return ours


DELTA = (
    Peer(
        "deltanet",
        f"{OPS}.delta_rule.naive:delta_rule_recurrence",
        _draw(),
        _delta_theirs("q", "k", "v", "step_size", heads_first=True),
        _ours("deltanet"),
    ),
    Peer(
        "gated_deltanet",
        f"{OPS}.gated_delta_rule.naive:naive_recurrent_gated_delta_rule",
        _draw("scalar"),
        _delta_theirs("q", "k", "v", "step_size", "log_decay"),
        _ours("gated_deltanet"),
    ),
    Peer(
        "delta_product",
        f"{OPS}.gated_delta_product.naive:naive_recurrent_gated_delta_product",
        _product_inputs,
        _product_theirs,
        _product_ours,
        f"{SUBSTEPS} delta steps for each token",
    ),
    Peer(
        "kda",
        f"{OPS}.kda.naive:naive_recurrent_kda",
        _draw("channel"),
        _delta_theirs("q", "k", "v", "log_decay", "step_size"),
        _ours("kda"),
    ),
    Peer(
        "gdn2",
        f"{OPS}.gdn2.naive:naive_recurrent_gdn2",
        _gdn2_inputs,
        _delta_theirs("q", "k", "v", "log_decay", "erase", "write"),
        _gdn2_ours,
    ),
    Peer(
        "comba",
        f"{OPS}.comba.naive:naive_chunk_comba",
        _with_probe(_draw("scalar")),
        _delta_theirs("q", "k", "v", "probe", "log_decay", "step_size"),
        _ours("comba"),
        "the chunk form: `naive_recurrent_comba` decays first, against its own kernel",
    ),
    Peer(
        "oja",
        f"{OPS}.kda.naive:naive_recurrent_kda",
        _oja_inputs,
        _oja_theirs,
        _ours("oja"),
        "it has none: KDA's memory with keys and values exchanged; its kernel agrees",
    ),
    Peer(
        "titans",
        MOMENTUM,
        _with_momentum(_draw("scalar")),
        _momentum_theirs,
        _momentum_ours("titans"),
        "the momentum delta rule whose probe is the key and whose beta is 1",
    ),
    Peer(
        "momentum_delta",
        MOMENTUM,
        _with_momentum(_with_probe(_draw("scalar"))),
        _momentum_theirs,
        _momentum_ours("momentum_delta"),
        "its beta is 1",
    ),
)
