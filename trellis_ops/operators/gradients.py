"""Gradients of the operators, as operators.

Each operator `trellis_ops::name` gets a second one, `trellis_ops::name_backward`, so that torch.compile sees one opaque
call. The forward may have run on a kernel; what the backward runs is told to `register`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from codegen.errors import GradientError
from trellis_ops.operators import autocast, batching

Forward = Callable[..., tuple[Tensor, ...]]
VectorJacobian = Callable[[Sequence[Tensor | None], Sequence[int], Sequence[Tensor]], list[Tensor]]
"""The inputs, the numbers of those whose gradients are wanted, and cotangents, to the wanted gradients."""


def by_autograd(forward: Callable[..., Forward]) -> Callable[..., VectorJacobian]:
    """What `register` takes, made of settings to a differentiable function from the tensors to a tuple of outputs."""
    return lambda *settings: functools.partial(differentiate, forward(*settings))


def differentiate(
    forward: Forward, inputs: Sequence[Tensor | None], wanted: Sequence[int], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Vector-Jacobian products of `forward` at `inputs` for the inputs numbered in `wanted`."""
    with _autograd(), torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        outputs = forward(*leaves)
        pairs = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
        gradients = torch.autograd.grad(
            [out for out, _ in pairs],
            [leaf for i, leaf in enumerate(leaves) if leaf is not None and i in wanted],
            [cotangent for _, cotangent in pairs],
            materialize_grads=True,
        )
    # Copied apart: gradients of stacked tensors share one storage, and an operator must not return overlapping tensors.
    return [gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients]


@contextlib.contextmanager
def _autograd() -> Iterator[None]:
    # The dispatcher runs the body of an operator with autograd excluded; here it is the work to be done.
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradOther", "AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        yield


def register(
    name: str, tensors: str, settings: str, vector_jacobian: Callable[..., VectorJacobian], outputs: int, kept: int = 0
) -> None:
    """Give the operator `trellis_ops::name` its gradient.

    Args:
        name: of the operator.
        tensors: its tensor arguments, as in a schema.
        settings: its other arguments, as in a schema.
        vector_jacobian: settings to the function that computes the gradients; they are contiguous and share no storage.
        outputs: how many outputs it has that users see.
        kept: how many more it has for `vector_jacobian`, which finds them behind its inputs.
    """
    count = tensors.count(",") + 1
    saved = count + kept
    more = "".join(f"Tensor kept_{i}, " for i in range(kept))
    incoming = ", ".join(f"Tensor d{i}" for i in range(outputs))

    def backward_of(*arguments: Any) -> list[Tensor]:
        cotangents, wanted = arguments[:outputs], arguments[outputs]
        inputs, rest = arguments[outputs + 1 : outputs + 1 + saved], arguments[outputs + 1 + saved :]
        with autocast.off(cotangents[0].device):
            return vector_jacobian(*rest)(inputs, wanted, cotangents)

    operator = torch.library.custom_op(
        f"trellis_ops::{name}_backward",
        backward_of,
        mutates_args=(),
        schema=f"({incoming}, int[] wanted, {tensors}, {more}{settings}) -> Tensor[]",
    )

    @operator.register_fake
    def _(*arguments: Any) -> list[Tensor]:
        inputs = arguments[outputs + 1 : outputs + 1 + count]
        return [torch.empty_like(inputs[i], memory_format=torch.contiguous_format) for i in arguments[outputs]]

    batching.map_by_calls(operator)
    public = {"attention": "trellis_attention", "attention_kept": "trellis_attention"}.get(name, f"memory_{name}")

    def refuse(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
        advice = 'take second derivatives by torch.func, of a call with implementation="eager"'
        raise GradientError(name=f"the gradient of {public}", advice=advice)

    torch.library.register_autograd(f"trellis_ops::{name}_backward", refuse)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        given = (output,) if isinstance(output, Tensor) else output
        ctx.save_for_backward(*inputs[:count], *given[outputs:])
        ctx.settings = inputs[count:]
        ctx.outputs = [(out.shape, out.dtype, out.device) for out in given[:outputs]]
        # Autograd would fill zeros for what is kept, too, which is as large as inputs are.
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = [i for i in range(count) if ctx.needs_input_grad[i]]
        incoming = [
            torch.zeros(shape, dtype=dtype, device=device) if cotangent is None else cotangent
            for cotangent, (shape, dtype, device) in zip(cotangents[:outputs], ctx.outputs, strict=True)
        ]
        gradients = iter(operator(*incoming, wanted, *ctx.saved_tensors, *ctx.settings))
        return (*(next(gradients) if i in wanted else None for i in range(count)), *(None for _ in ctx.settings))

    torch.library.register_autograd(f"trellis_ops::{name}", backward, setup_context=setup_context)
