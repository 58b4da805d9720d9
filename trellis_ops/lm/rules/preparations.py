"""The preparations of named rules: what their layers do to tensors before and after the call.

Each takes all tensors by name, `[B, T, H, ...]` or `[H, ...]`, and returns those that take the place of others or join.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trellis_ops import preparations as public
from trellis_ops.lm.rules.inputs import Tensors


def decayed(made: Tensors) -> Tensors:
    """log beta = -rate dt, with a rate for each head (Mamba-2, arXiv 2405.21060; Gated DeltaNet, arXiv 2412.06464)."""
    dt, rate = made["dt"], made["rate"]
    return {"log_decay": -rate.view(-1, *(1 for _ in dt.shape[3:])) * dt}


def mamba2(made: Tensors) -> Tensors:
    """The step size is dt itself (arXiv 2405.21060)."""
    log_decay, step_size = public.mamba2_gates(made["dt"], -made["rate"])
    return {"log_decay": log_decay, "step_size": step_size}


def gsa(made: Tensors) -> Tensors:
    """What a slot forgets is what it takes up (arXiv 2409.07146)."""
    log_decay, target = public.gsa_gates(made["scores"])
    return {"log_decay": log_decay, "target": target}


def abc(made: Tensors) -> Tensors:
    """Gates of running sums of exp(scores), whose logarithm goes on (arXiv 2110.02488)."""
    target, log_decay, lse = public.abc_gates(made["scores"], made["lse"], made.get(OFFSETS))
    return {"target": target, "log_decay": log_decay, "lse": lse}


OFFSETS = "cu_seqlens"
"""What packed sequences have beside the tensors, for preparations that carry something from token to token."""

SUBSTEPS = 2
"""Delta steps of DeltaProduct for each token."""


def delta_product(made: Tensors) -> Tensors:
    """Each token is two: the first decays, and the second is read (arXiv 2502.10297)."""
    pairs = {name: torch.stack([made[name], made[f"next_{name}"]], 2) for name in ("k", "v", "step_size")}
    return {
        **{name: public.interleave(both) for name, both in pairs.items()},
        "q": public.stretch_queries(made["q"], SUBSTEPS),
        "log_decay": public.stretch_log_decay(decayed(made)["log_decay"], SUBSTEPS),
    }


def every_second(y: Tensor, made: Tensors) -> Tensor:
    """The outputs of the last substeps."""
    return public.every_nth(y, SUBSTEPS)


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
    erase_a, erase_b = public.rwkv7_erase(made["k"], made["eta"].to(made["k"].dtype))
    return {"erase_a": erase_a, "erase_b": erase_b, "k": erase_b}


def erased(made: Tensors) -> Tensors:
    """a = -e and b = eta e for a unit vector e: no eigenvalue of I + a b^T leaves [0, 1]."""
    e = made["erase_key"]
    erase_a, erase_b = public.rwkv7_erase(e, made["eta"][..., None].to(e.dtype))
    return {"erase_a": erase_a, "erase_b": erase_b}


def ttt_linear(made: Tensors) -> Tensors:
    """The target is v - k less the bias of LN, where v and k have one size (arXiv 2407.04620)."""
    residual = made["k"] if _residual(made) else 0.0
    return {"v": made["v"] - residual - made["bias"].to(made["v"].dtype)}


def ttt_readout(y: Tensor, made: Tensors) -> Tensor:
    """q + g o LN(S q) + bias, without q where it has another size (arXiv 2407.04620)."""
    gain, bias = made["gain"].to(y.dtype), made["bias"].to(y.dtype)
    return public.ttt_output(made["q"] if _residual(made) else torch.zeros_like(y), y, gain, bias)


def _residual(made: Tensors) -> bool:
    return made["v"].shape == made["k"].shape
