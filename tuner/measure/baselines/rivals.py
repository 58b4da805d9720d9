"""What a user of a GPU would otherwise run: gated delta rules of flash-linear-attention, and softmax attention.

They compute something else, at equal B, T, H and D. Each takes random inputs of its own layout and of the spec's type.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.kernels.signatures import MOVES_STATES
from codegen.spec import Spec
from tuner.measure.timed import Timed

CONTEXTS = (1024, 8192, 32_768, 131_072)
"""Tokens that a softmax attention has to read in a decode step."""

COMPILE_LONG = ("chunk_gated_delta_rule", "chunk_gsa")
"""Those that try tens to hundreds of configurations when they are first called."""

_FLA = "fla.ops"


def rivals(spec: Spec, where: torch.device, ready: Collection[str]) -> tuple[dict[str, Timed], dict[str, str]]:
    """Calls by name, and why those that are left out are.

    Args:
        spec, where: whose rivals, on which device.
        ready: those of `COMPILE_LONG` that were compiled before, or need not be.
    """
    if spec.problem.operator in MOVES_STATES:
        return _decode(spec, where), {}
    if spec.problem.layer is not None:
        return {}, {}  # Attention is a part of it, or none of it.
    calls = {"softmax attention (SDPA)": _softmax(spec, where)}
    left_out = {}
    for name in COMPILE_LONG:
        if name not in ready:
            left_out[name] = "it was not compiled in the time there was, or failed: see warm-up.log"
            continue
        try:
            calls[name] = fla_call(name, spec, where)
        except (ImportError, AttributeError) as error:
            left_out[name] = f"flash-linear-attention cannot be imported: {error}"
    return calls, left_out


def fla_call(name: str, spec: Spec, where: torch.device) -> Timed:
    """One of `COMPILE_LONG`. Raises ImportError or AttributeError where flash-linear-attention does not have it."""
    function = getattr(importlib.import_module(f"{_FLA}.{name.removeprefix('chunk_')}"), name)
    return (_gated_delta if name == "chunk_gated_delta_rule" else _gated_slots)(function, spec, where)


def _decode(spec: Spec, where: torch.device) -> dict[str, Timed]:
    problem, dtype = spec.problem, getattr(torch, spec.problem.dtype)
    calls = {}
    for context in CONTEXTS:
        q = _random(where, dtype, problem.batch, problem.heads, 1, problem.dim_k)
        k = _random(where, dtype, problem.batch, problem.heads, context, problem.dim_k)
        v = _random(where, dtype, problem.batch, problem.heads, context, problem.dim_v)
        attend = functools.partial(F.scaled_dot_product_attention, q, k, v)
        calls[f"softmax attention of {context} tokens"] = _pure(attend)
    states = _random(where, torch.float32, problem.batch * problem.heads, problem.slots, problem.dim_k + problem.dim_v)
    calls["states rewritten in place"] = _pure(lambda: states.mul_(1.0))
    return calls


def _softmax(spec: Spec, where: torch.device) -> Timed:
    q, k, v = (x.transpose(1, 2).contiguous() for x in _tokens(spec, where))
    return _made(spec, (q, k, v), lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))


def _gated_delta(function: Callable[..., Any], spec: Spec, where: torch.device) -> Timed:
    q, k, v = _tokens(spec, where)
    g, beta = (_random(where, q.dtype, *q.shape[:3]) for _ in range(2))
    g, beta, k = F.logsigmoid(g), beta.sigmoid(), F.normalize(k, dim=-1)
    return _made(spec, (q, k, v, g, beta), lambda: function(q, k, v, g, beta)[0])


def _gated_slots(function: Callable[..., Any], spec: Spec, where: torch.device) -> Timed:
    q, k, v = _tokens(spec, where)
    s = _random(where, q.dtype, *q.shape[:3], spec.problem.slots)
    g = F.logsigmoid(_random(where, q.dtype, *s.shape))
    return _made(spec, (q, k, v, s, g), lambda: function(q, k, v, s, g)[0])


def _made(spec: Spec, inputs: tuple[Tensor, ...], run: Callable[[], Tensor]) -> Timed:
    """The call, or of a backward the call and its gradients."""
    if spec.problem.direction == "forward":
        return _pure(run)
    for each in inputs:
        each.requires_grad_()
    cotangent = torch.randn_like(run())
    return _pure(lambda: torch.autograd.grad(run(), inputs, cotangent))


def _tokens(spec: Spec, where: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    problem, dtype = spec.problem, getattr(torch, spec.problem.dtype)
    shape = (problem.batch, problem.tokens, problem.heads)
    dims = (problem.dim_k, problem.dim_k, problem.dim_v)
    q, k, v = (_random(where, dtype, *shape, dim) for dim in dims)
    return q, k, v


def _random(where: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32, device=where).to(dtype)


def _pure(run: Callable[[], object]) -> Timed:
    return Timed(run, lambda: None)
