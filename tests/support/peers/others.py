"""Peers of a loss with a layer norm, and of a link that solves."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.rule import READOUT_EPS
from tests.support.peers.hebbian import OPS, scaled
from tests.support.peers.inputs import Drawing, Sizes, qkv, state
from tests.support.peers.peer import Named, Peer, Results, walked
from trellis_ops.preparations import append_one, ttt_output

MINI_BATCH = 16
"""Tokens of TTT-Linear at whose first token the inner gradient is taken."""


def _ttt_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    norm = {
        "weight": 1 + 0.1 * drawing.normal(sizes.heads, sizes.dim),
        "bias": 0.1 * drawing.normal(sizes.heads, sizes.dim),
    }
    start = {
        "S": state(sizes, drawing, sizes.dim, sizes.dim),
        "S_bias": 0.1 * state(sizes, drawing, 1, sizes.dim),
    }
    return qkv(sizes, drawing, sizes.dim) | norm | start | {"eta": 0.1 * drawing.rand(*sizes.per_token)}


def _ttt_theirs(function: Callable[..., tuple[Tensor, Tensor, Tensor]], given: Named) -> Results:
    """The whole mini batches, then the rest as one of its own, with which the reference needs no padding."""
    tokens, outputs, last, bias = given["q"].shape[1], [], given["S"], given["S_bias"]
    whole = tokens - tokens % MINI_BATCH
    for begin, end, size in ((0, whole, MINI_BATCH), (whole, tokens, tokens - whole)):
        if begin == end:
            continue
        q, k, v, eta = (x[:, begin:end] for x in (scaled(given["q"]), given["k"], given["v"], given["eta"][..., None]))
        y, last, bias = function(
            q,
            k,
            v,
            given["weight"],
            given["bias"],
            eta,
            scale=1.0,
            mini_batch_size=size,
            initial_state=last,
            initial_state_bias=bias,
            output_final_state=True,
        )
        outputs.append(y)
    return torch.cat(outputs, dim=1), {"S": last, "S_bias": bias}


def _ttt_ours(given: Named) -> Results:
    k, weight, bias = given["k"], given["weight"], given["bias"]
    tensors = {"q": append_one(scaled(given["q"])), "k": append_one(k), "v": given["v"] - k - bias, "gain": weight}
    start = torch.cat([given["S"], given["S_bias"]], dim=2).mT
    read, states = walked("ttt_linear", tensors | {"reader_step": given["eta"]}, {"S": start}, MINI_BATCH)
    last = states["S"].mT
    normalised = F.layer_norm(read, read.shape[-1:], eps=READOUT_EPS)
    return ttt_output(read, normalised, weight, bias), {"S": last[:, :, :-1], "S_bias": last[:, :, -1:]}


def _mesa_inputs(sizes: Sizes, drawing: Drawing) -> Named:
    root = state(sizes, drawing, sizes.dim, sizes.dim) / sizes.dim**0.5
    gates = {"log_decay": drawing.log_gate(sizes), "step_size": drawing.step(*sizes.per_token)}
    start = {"S_k": root @ root.mT, "S_v": state(sizes, drawing, sizes.dim, sizes.dim)}
    regulariser = {"regulariser": 0.25 + 0.75 * drawing.rand(sizes.heads, sizes.dim)}
    return qkv(sizes, drawing, sizes.dim) | gates | regulariser | start


def _mesa_theirs(function: Callable[..., tuple[Tensor, Tensor, Tensor]], given: Named) -> Results:
    tensors = (given[name] for name in ("q", "k", "v", "log_decay", "regulariser", "step_size"))
    y, keys, values = function(*tensors, given["S_k"], given["S_v"])
    return y, {"S_k": keys, "S_v": values}


def _mesa_ours(given: Named) -> Results:
    start = {name: given[name] for name in ("S_k", "S_v")}
    tensors = {name: x for name, x in given.items() if name not in start}
    return walked("mesanet", tensors | {"target": given["k"]}, start)


OTHERS = (
    Peer(
        "ttt_linear",
        f"{OPS}.ttt.naive:chunk_ttt_linear_ref",
        _ttt_inputs,
        _ttt_theirs,
        _ttt_ours,
        "its output adds LN(S q + b) to S q + b, the paper's to q; it has the step of the reader only",
    ),
    Peer(
        "mesanet",
        f"{OPS}.mesa_net.naive:naive_mesa_net_exact",
        _mesa_inputs,
        _mesa_theirs,
        _mesa_ours,
    ),
)
