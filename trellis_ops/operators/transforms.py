"""The operators where torch.func, or forward mode, differentiates a call: eager PyTorch, in sight of torch.

A registered operator has a reverse pass, which `backward()` and `torch.autograd.grad` find. A function transform looks
for derivatives of what an operator is made of, and forward mode finds none and takes them for zero. Eager PyTorch is
made of torch's own operators, which every transform differentiates, also twice and for every sample.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack, is_functorch_wrapped_tensor
from torch._library.autograd import make_autograd_impl
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

from codegen.errors import TransformError
from codegen.rule import Rule
from trellis_ops.calls import arguments, values
from trellis_ops.dispatch import resolve
from trellis_ops.eager import forward as eager
from trellis_ops.operators import autocast

Tensors = tuple[Tensor | None, ...]
Result = TypeVar("Result")

FORWARD_MODE = "forward-mode differentiation (torch.func.jvp, jacfwd)"


def has_tangent(tensors: tuple[object, ...]) -> bool:
    """Whether one of these, or of the tensors in a list of them, is a dual number of `torch.autograd.forward_ad`."""
    return forward_ad._current_level >= 0 and any(map(_is_dual, tensors))


def _is_dual(given: object) -> bool:
    if isinstance(given, (list, tuple)):
        return any(map(_is_dual, given))
    unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
    return isinstance(given, Tensor) and unpack(given).tangent is not None


def differentiates(name: str, tensors: Tensors, implementation: str | None) -> bool:
    """Whether a function transform, or forward mode, differentiates a call on these tensors.

    Raises:
        TransformError: forward mode, and "eager" is not what was asked for; or a kernel was; or a second derivative
            is compiled.
    """
    kinds = _kinds(tensors)
    if "Jvp" not in kinds and "Grad" not in kinds:
        return False
    forced = implementation or os.environ.get(resolve.VARIABLE) or None
    if "Jvp" in kinds and forced != "eager":
        raise TransformError(
            name=name, transform=FORWARD_MODE, advice='give implementation="eager", or differentiate in reverse'
        )
    if kinds.count("Grad") > 1 and torch.compiler.is_compiling():
        advice = "call it outside of torch.compile"
        raise TransformError(name=name, transform="a second derivative that is compiled", advice=advice)
    if forced not in (None, "eager"):
        advice = f'give implementation="eager" or None in place of {forced!r}, or call backward()'
        raise TransformError(name=name, transform="torch.func.grad, vjp or jacrev", advice=advice)
    return True


class _Operator(CustomOpDef):
    """A registered operator whose kernel of autograd refuses dual numbers: below it tangents of torch.func are gone."""

    def __init__(self, name: str, schema: str, run: Callable[..., Any], function: str) -> None:
        self._function = function
        namespace, own_name = name.split("::")
        super().__init__(namespace, own_name, schema, run)
        self.register_kernel(None)(run)
        self._backend_fns[None] = _untraced(run, self._backend_fns[None])

    def _register_autograd_dispatcher_impl(self) -> None:
        run = without_tangents(self._function, make_autograd_impl(self._opoverload, self))
        self._lib.impl(self._name, run, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


def _untraced(run: Callable[..., Result], hidden: Callable[..., Result]) -> Callable[..., Result]:
    """`run` where nothing traces; `hidden`, which hides it from torch.compile, once that has been imported.

    `hidden` imports torch.compile with sympy and Triton: 0.7 s of a first call. Before that no frame is traced.
    """

    def called(*arguments: Any, **others: Any) -> Result:
        return (hidden if "torch._dynamo" in sys.modules else run)(*arguments, **others)

    return called


def operator(name: str, run: Callable[..., Any], function: str, schema: str) -> CustomOpDef:
    """A registered operator that refuses dual numbers: torch would take their tangents for zero.

    The public functions ask `differentiates` before; whoever calls `torch.ops.trellis_ops` has nothing else.

    Args:
        name: `trellis_ops::name`.
        run: computes it.
        function: the public function that it serves.
        schema: its arguments and results, and what it writes.
    """
    return _Operator(name, schema, without_tangents(function, run), function)


def without_tangents(name: str, run: Callable[..., Result]) -> Callable[..., Result]:
    """`run`, a part of a registered operator of the function `name`, which refuses dual numbers."""

    @functools.wraps(run)
    def checked(*arguments: Any, **others: Any) -> Result:
        if has_tangent(arguments):
            advice = f"call trellis_ops.{name}, which says what to use instead"
            raise TransformError(name=f"the registered operator of {name}", transform=FORWARD_MODE, advice=advice)
        return run(*arguments, **others)

    return checked


def refuse(name: str, tensors: Tensors) -> None:
    """Raise where a function transform, or forward mode, sees a call of an operator that works in place.

    Raises:
        TransformError: with the transform.
    """
    kinds = [kind for kind in _kinds(tensors) if kind != "Grad" or torch.is_grad_enabled()]
    if kinds:
        transform = "torch.vmap" if kinds == ["Vmap"] else "differentiation by torch.func"
        attention = "memory_attention" if name == "memory_step" else "trellis_attention"
        advice = f"use {attention}; for several states, put them along the batch"
        raise TransformError(name=name, transform=transform, advice=advice)


def _kinds(tensors: Tensors) -> tuple[str, ...]:
    """The transforms that see one of these tensors, such as "Grad"; dual numbers count as "Jvp"."""
    if torch.compiler.is_compiling() or any(isinstance(t, Tensor) and is_functorch_wrapped_tensor(t) for t in tensors):
        return _kinds_around()
    return ("Jvp",) if has_tangent(tensors) else ()


def _kinds_around() -> tuple[str, ...]:
    return tuple(interpreter.key().name for interpreter in get_interpreter_stack() or ())


# torch.compile enters the transforms that it traces, but does not trace what asks for them. This is what
# `torch.compiler.assume_constant_result` does, which imports a compiler.
_kinds_around._dynamo_marked_constant = True  # type: ignore[attr-defined]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    cu_seqlens: Tensor | None,
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
    chunk_size: int,
    outer_gradient: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `operators.run_attention` by "eager". The data of tokens is not checked: under vmap it cannot be read."""
    tokens, rule = (q, k, v, target, log_decay, step_size), Rule(phi, link, out, phi_eps)
    arguments.attention_request(*tokens, (S_k, S_v), cu_seqlens, rule, chunk_size, outer_gradient)
    if cu_seqlens is not None:
        values.check_offsets(cu_seqlens, q.shape[1], stall=False)
    state = None if S_k is None or S_v is None else (S_k, S_v)
    with autocast.off(q.device):
        y, (s_k, s_v) = eager.attention(
            *tokens,
            rule=rule,
            chunk_size=chunk_size,
            initial_state=state,
            cu_seqlens=cu_seqlens,
            outer_gradient=outer_gradient,
        )
    return y, s_k, s_v


def update(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S: Tensor | None,
    phi: str,
    phi_eps: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `operators.run_update` by "eager"."""
    rule = Rule(phi, phi_eps=phi_eps)
    arguments.update_request(w, target, log_decay, step_size, S, rule, chunk_size)
    with autocast.off(w.device):
        return eager.update(w, target, log_decay, step_size, rule=rule, chunk_size=chunk_size, initial_state=S)


def readout(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    chunk_size: int,
    transpose: bool,
) -> Tensor:
    """As `operators.run_readout` by "eager"."""
    tensors = (read, w, chunk_states, codes, log_decay, step_size)
    arguments.readout_request(*tensors, chunk_size, transpose)
    with autocast.off(w.device):
        return eager.readout(*tensors, chunk_size=chunk_size, transpose=transpose)
