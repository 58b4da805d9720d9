"""Gradients of the operators, as operators.

Each operator `trellis_ops::name` gets a second one, `trellis_ops::name_backward`, so that torch.compile sees one opaque
call. The forward may have run on a kernel; what the backward runs is told to `register`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from codegen.errors import GradientError
from trellis_ops.operators import autocast, batching, transforms
from trellis_ops.operators.schemas import Call, Operator


@dataclass(frozen=True)
class Reverse:
    """A call's reverse pass.

    Attributes:
        call: of the operator.
        kept: what it kept, by name.
        cotangents: of its results, by their names.
        wanted: names of the tensors whose gradients are wanted.
    """

    call: Call
    kept: Mapping[str, Tensor]
    cotangents: Mapping[str, Tensor]
    wanted: Sequence[str]


VectorJacobian = Callable[[Reverse], Mapping[str, Tensor]]
"""From a reverse pass to the wanted gradients by name, which are contiguous and share no storage."""


def by_autograd(forward: Callable[[Call], tuple[Tensor, ...]]) -> VectorJacobian:
    """What `register` takes, made of a differentiable function from a call to its results in order."""
    return functools.partial(differentiate, forward)


def differentiate(forward: Callable[[Call], tuple[Tensor, ...]], reverse: Reverse) -> dict[str, Tensor]:
    """Vector-Jacobian products of `forward`."""
    with with_autograd(), torch.enable_grad():
        leaves: dict[str, Any] = {
            name: None if x is None else x.detach().requires_grad_(name in reverse.wanted)
            for name, x in reverse.call.tensors.items()
        }
        outputs = forward(replace(reverse.call, tensors=leaves))
        cotangents = reverse.cotangents.values()
        pairs = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
        gradients = torch.autograd.grad(
            [out for out, _ in pairs],
            [leaves[name] for name in reverse.wanted],
            [cotangent for _, cotangent in pairs],
            materialize_grads=True,
        )
    # Copied apart: gradients of stacked tensors share one storage, and an operator must not return overlapping tensors.
    apart = (gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients)
    return dict(zip(reverse.wanted, apart, strict=True))


@contextlib.contextmanager
def with_autograd() -> Iterator[None]:
    """Autograd within the body of an operator."""
    # The dispatcher runs the body of an operator with autograd excluded; here it is the work to be done.
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradOther", "AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded):
        yield


def register(operator: Operator, vector_jacobian: VectorJacobian) -> None:
    """Give a registered operator its gradient, which `vector_jacobian` computes."""
    registered = _registered_reverse(operator, vector_jacobian)
    returned = operator.results + operator.kept

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        given = dict(zip(returned, (output,) if isinstance(output, Tensor) else output, strict=True))
        call = operator.call_of(inputs)
        ctx.save_for_backward(*call.tensors.values(), *(given[name] for name in operator.kept))
        ctx.settings = (*call.settings.values(), call.implementation)
        ctx.outputs = {name: (given[name].shape, given[name].dtype, given[name].device) for name in operator.results}
        # Autograd would fill zeros for what is kept, too, which is as large as inputs are.
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        given = dict(zip(returned, cotangents, strict=True))
        incoming = [
            torch.zeros(shape, dtype=dtype, device=device) if given[name] is None else given[name]
            for name, (shape, dtype, device) in ctx.outputs.items()
        ]
        wanted = [number for number, wants in enumerate(ctx.needs_input_grad) if wants]
        found = registered(*incoming, wanted, *ctx.saved_tensors, *ctx.settings)
        gradients = dict(zip(operator.names_of(wanted), found, strict=True))
        return tuple(gradients.get(name) for name in operator.names)

    torch.library.register_autograd(f"trellis_ops::{operator.name}", backward, setup_context=setup_context)


def _registered_reverse(operator: Operator, vector_jacobian: VectorJacobian) -> CustomOpDef:
    """The operator's gradient, itself registered as an operator that has none."""

    def backward_of(*arguments: Any) -> list[Tensor]:
        named = dict(zip(operator.reverse_names, arguments, strict=True))
        cotangents = {name: named[f"d{name}"] for name in operator.results}
        kept = {name: named[name] for name in operator.kept}
        wanted = operator.names_of(named["wanted"])
        reverse = Reverse(operator.call_of_named(named), kept, cotangents, wanted)
        with autocast.off(next(iter(cotangents.values())).device):
            gradients = vector_jacobian(reverse)
        return [gradients[name] for name in wanted]

    registered = transforms.operator(
        f"trellis_ops::{operator.name}_backward", backward_of, operator.function, operator.reverse_schema
    )

    @registered.register_fake
    def _(*arguments: Any) -> list[Tensor]:
        named = dict(zip(operator.reverse_names, arguments, strict=True))
        wanted = operator.names_of(named["wanted"])
        return [torch.empty_like(named[name], memory_format=torch.contiguous_format) for name in wanted]

    batching.map_by_calls(registered)

    torch.library.register_autograd(f"trellis_ops::{operator.name}_backward", refused_gradient(operator.function))
    return registered


def refused_gradient(function: str) -> Callable[..., Any]:
    """What autograd calls for the second derivatives of a public function, which are refused."""

    def refuse(ctx: Any, *incoming: Any) -> tuple[Any, ...]:
        advice = 'take second derivatives by torch.func, of a call with implementation="eager"'
        raise GradientError(name=f"the gradient of {function}", advice=advice)

    return refuse
