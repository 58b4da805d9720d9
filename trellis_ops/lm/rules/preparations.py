"""The preparations of named rules: what their layers do to tensors before and after the call.

Each takes all tensors by name, `[B, T, H, ...]` or `[H, ...]`, and returns those that take the place of others or join.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_ops.lm.rules.inputs import Tensors


def decayed(made: Tensors) -> Tensors:
    """log beta = -rate dt, with a rate for each head (Mamba-2, arXiv 2405.21060; Gated DeltaNet, arXiv 2412.06464)."""
    dt, rate = made["dt"], made["rate"]
    return {"log_decay": -rate.view(-1, *(1 for _ in dt.shape[3:])) * dt}


def mamba2(made: Tensors) -> Tensors:
    """The step size is dt itself (arXiv 2405.21060)."""
    return {**decayed(made), "step_size": made["dt"]}


def gsa(made: Tensors) -> Tensors:
    """What a slot forgets is what it takes up, s = 1 - f (arXiv 2409.07146)."""
    return {"target": -torch.expm1(made["log_decay"])}


def abc(made: Tensors) -> Tensors:
    """s = exp(scores - lse_t), f = exp(lse_(t-1) - lse_t), lse the running log-sum-exp (arXiv 2110.02488).

    It starts from 0, as if an empty token of score 0 had been there, so that no gate is 0.
    """
    scores, before = made["scores"], made["lse"]
    lse = torch.logcumsumexp(torch.cat([before[:, None], scores], 1), 1)
    return {"target": (scores - lse[:, 1:]).exp(), "log_decay": lse[:, :-1] - lse[:, 1:], "lse": lse[:, -1]}


def delta_product(made: Tensors) -> Tensors:
    """Each token is two: the first decays, and the second is read (arXiv 2502.10297)."""
    log_decay = decayed(made)["log_decay"]
    return {
        "q": _in_turn(made["q"], made["q"]),
        "k": _in_turn(made["k"], made["next_k"]),
        "v": _in_turn(made["v"], made["next_v"]),
        "log_decay": _in_turn(log_decay, torch.zeros_like(log_decay)),
        "step_size": _in_turn(made["step_size"], made["next_step_size"]),
    }


def comba(made: Tensors) -> Tensors:
    """p = b k, and q - d k for q (arXiv 2506.02475)."""
    k = made["k"]
    share, less = made["probe_share"][:, None].to(k.dtype), made["query_share"][:, None].to(k.dtype)
    return {**decayed(made), "probe": share * k, "q": made["q"] - less * k}


def gdn2(made: Tensors) -> Tensors:
    """p = b o k, and w o v for v, both gates for each channel (arXiv 2605.22791)."""
    k, v = made["k"], made["v"]
    return {
        **decayed(made),
        "probe": made["erase_gate"].to(k.dtype) * k,
        "v": made["write_gate"].to(v.dtype) * v,
    }


def erased_and_written(made: Tensors) -> Tensors:
    """a = -kk, b = kk o eta, and kk o eta is the key (RWKV-7, arXiv 2503.14456, its mixing of both kept at one)."""
    k = made["k"]
    removed = k * made["eta"].to(k.dtype)
    return {"erase_a": -k, "erase_b": removed, "k": removed}


def erased(made: Tensors) -> Tensors:
    """a = -e and b = eta e for a unit vector e: no eigenvalue of I + a b^T leaves [0, 1]."""
    e = made["erase_key"]
    return {"erase_a": -e, "erase_b": e * made["eta"][..., None].to(e.dtype)}


def ttt_linear(made: Tensors) -> Tensors:
    """The target is v - k, where both have one size (arXiv 2407.04620)."""
    return {"v": made["v"] - made["k"]} if _residual(made) else {}


def ttt_readout(y: Tensor, made: Tensors) -> Tensor:
    """q + g o LN(S q), where q and y have one size (arXiv 2407.04620)."""
    scaled = y * made["gain"].to(y.dtype)
    return made["q"] + scaled if _residual(made) else scaled


def _residual(made: Tensors) -> bool:
    return made["v"].shape == made["k"].shape


def _in_turn(first: Tensor, second: Tensor) -> Tensor:
    """`[B, 2 T, ...]` of two of T."""
    return torch.stack([first, second], 2).flatten(1, 2)
