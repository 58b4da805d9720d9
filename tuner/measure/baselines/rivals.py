"""What a user of a GPU would otherwise run: kernels of flash-linear-attention, and softmax attention.

Beside TRELLIS they compute something else, at equal B, T, H and D: its gated delta rules. Beside another rule they
compute the same (`tuner.measure.baselines.rule_rivals`). Each takes random inputs of its own layout and of the spec's
type.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.device import Device
from codegen.kernels.signatures import MOVES_STATES
from codegen.spec import FAMILY_OPERATORS, POOL_OPERATOR, Spec
from tuner.measure.baselines.rule_rivals import names_of, rule_rival
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import torch_device

CONTEXTS = (1024, 8192, 32_768, 131_072)
"""Tokens that a softmax attention has to read in a decode step."""

COMPILE_LONG = ("chunk_gated_delta_rule", "chunk_gsa")
"""Those of flash-linear-attention beside TRELLIS."""

_FLA = "fla.ops"


def is_of_rules(spec: Spec) -> bool:
    """Whether it is of an operator of any rule, on states that are given and returned.

    A step on states in a pool has a layout that flash-linear-attention has not.
    """
    return spec.problem.operator in FAMILY_OPERATORS and spec.problem.operator != POOL_OPERATOR


def rivals_of(spec: Spec, device: Device, ready: Collection[str]) -> tuple[dict[str, Timed], dict[str, str]]:
    """Calls by name, and why those that are left out are.

    Args:
        spec, device: whose rivals, and where.
        ready: those of `compiled_long` that were compiled before, or need not be.
    """
    where = torch_device(device)
    if spec.problem.operator in MOVES_STATES:
        calls = _decode(spec, where)
    elif spec.problem.layer is not None:
        return {}, {}  # Attention is a part of it, or none of it.
    else:
        calls = {"softmax attention (SDPA)": _softmax(spec, where)}
    left_out = {}
    names = compiled_long(spec)
    if is_of_rules(spec) and not names:
        left_out["flash-linear-attention"] = "it has no kernel of this rule, or none for one token"
    for name in names:
        if name not in ready:
            left_out[name] = "it was not compiled in the time there was, or failed: see warm-up.log"
            continue
        try:
            calls[name] = fla_call(name, spec, device)
        except (ImportError, AttributeError) as error:
            left_out[name] = f"flash-linear-attention cannot be imported: {error}"
    return calls, left_out


def compiled_long(spec: Spec) -> tuple[str, ...]:
    """The rivals of a spec that try tens to hundreds of configurations when they are first called."""
    if is_of_rules(spec):
        return names_of(spec)
    is_step = spec.problem.operator in MOVES_STATES or spec.problem.layer is not None
    return () if is_step else COMPILE_LONG


def fla_call(name: str, spec: Spec, device: Device) -> Timed:
    """One of `compiled_long`. Raises ImportError or AttributeError where flash-linear-attention does not have it."""
    if is_of_rules(spec):
        return rule_rival(name, spec, device)
    where = torch_device(device)
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
    width = problem.dim_k + problem.dim_v if spec.rule.passes == 2 else problem.dim_k
    states = _random(where, torch.float32, problem.batch * problem.heads, problem.slots, width)
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
