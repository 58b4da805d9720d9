"""The operators between the products of a block as torch.library sees them: flat arguments, fakes, gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from codegen.kernels.glue.arguments import BACKWARD
from trellis_ops.calls import values
from trellis_ops.dispatch.glue import kernel_for
from trellis_ops.eager import glue as eager
from trellis_ops.glue import called
from trellis_ops.glue.called import Called
from trellis_ops.operators import autocast, batching, transforms
from trellis_ops.operators.gradients import refused_gradient, with_autograd

Settings = tuple[Any, ...]


@dataclass(frozen=True)
class Glue:
    """One of the operators.

    Attributes:
        name: of the operator and of its kernel.
        schema: of its settings, which follow the tensors.
        check: from tensors and settings to a checked call.
        further: what its kernels take behind the tensors, by the checked call and the settings.
        eager: its results, by torch's own operators.
    """

    name: str
    schema: str
    check: Callable[[Sequence[Tensor], Settings], Called]
    further: Callable[[Called, Settings], tuple[Tensor, ...]]
    eager: Callable[[Sequence[Tensor], Settings], list[Tensor]]

    def run(self, given: Sequence[Tensor], *settings: Any, into: Mapping[int, Tensor] | None = None) -> list[Tensor]:
        """The results, by the kernel where there is one.

        Args:
            given, settings: of the call.
            into: of results by their number a tensor of `given` that nobody reads afterwards, and that the kernel reads
                no later than it writes the result: it may hold the result where its memory is that of the result.
        """
        call = self.check(given, settings)
        kernel = self._kernel(self.name, call, given)
        if kernel is None:
            with autocast.off(given[0].device):
                # As torch.compile was told that they are.
                return [x.contiguous() for x in self.eager(given, settings)]
        made = [_place(shape, (into or {}).get(number), given[0]) for number, shape in enumerate(call.results)]
        read = _viewed(given, call.views)
        kernel(1, *read, *self.further(call, settings), *_viewed(made, call.result_views))
        return made

    def run_backward(self, cotangents: Sequence[Tensor], given: Sequence[Tensor], *settings: Any) -> list[Tensor]:
        """The gradients of all tensors."""
        call = self.check(given, settings)
        kernel = self._kernel(f"{self.name}{BACKWARD}", call, given)
        if kernel is None:
            with autocast.off(given[0].device):
                return self._by_autograd(cotangents, given, settings)
        made = [x.new_empty(x.shape) for x in given]
        read = (*_viewed(given, call.views), *self.further(call, settings), *_viewed(cotangents, call.result_views))
        kernel(1, *read, *_viewed(made, call.views))
        return made

    def _kernel(self, name: str, call: Called, given: Sequence[Tensor]) -> Any:
        first = given[0]
        return None if call.sizes is None else kernel_for(name, call.sizes, first.dtype, first.device, call.inputs)

    def _by_autograd(self, cotangents: Sequence[Tensor], given: Sequence[Tensor], settings: Settings) -> list[Tensor]:
        with with_autograd(), torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in given]
            found = torch.autograd.grad(
                self.eager(leaves, settings), leaves, list(cotangents), allow_unused=True, materialize_grads=True
            )
        return [x.clone(memory_format=torch.contiguous_format) for x in found]


def _place(shape: tuple[int, ...], given: Tensor | None, like: Tensor) -> Tensor:
    """Memory for a result: what is given if it lies well, and else new."""
    if given is not None and given.is_contiguous():
        return given.view(shape)
    return like.new_empty(shape)


def _viewed(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    return tuple([x.contiguous().view(shape) for x, shape in zip(tensors, shapes, strict=True)])


def _check_inputs(given: Sequence[Tensor], settings: Settings) -> Called:
    cu_seqlens, heads, unit_keys, _ = settings
    return called.memory_inputs(given, cu_seqlens, heads, unit_keys)


def _further_of_inputs(call: Called, settings: Settings) -> tuple[Tensor, ...]:
    cu_seqlens, _, _, eps = settings
    assert call.sizes is not None
    if cu_seqlens is None:
        return called.even_offsets(call.sizes.batch, call.sizes.tokens), called.one_number(eps)
    values.check_offsets(cu_seqlens, call.sizes.tokens, stall=False)
    return cu_seqlens.to(torch.int32).contiguous(), called.one_number(eps)


def _eager_inputs(given: Sequence[Tensor], settings: Settings) -> list[Tensor]:
    shared, *between, taps_q, taps_k, tails = given
    cu_seqlens, *_ = settings
    if cu_seqlens is not None:
        values.check_offsets(cu_seqlens, shared.shape[1], stall=False)
    return eager.memory_inputs(shared, between[0] if between else None, taps_q, taps_k, tails, *settings)


def _check_norm(given: Sequence[Tensor], settings: Settings) -> Called:
    return called.gated_norm(given)


def _further_of_norm(call: Called, settings: Settings) -> tuple[Tensor, ...]:
    (eps,) = settings
    return (called.one_number(eps),)


def _eager_norm(given: Sequence[Tensor], settings: Settings) -> list[Tensor]:
    (y, gate, weight), (eps,) = given, settings
    return eager.gated_norm(y, gate, weight, eps)


def _check_swiglu(given: Sequence[Tensor], settings: Settings) -> Called:
    return called.swiglu_gate(given)


def _check_rms_norm(given: Sequence[Tensor], settings: Settings) -> Called:
    return called.rms_norm(given)


def _eager_rms_norm(given: Sequence[Tensor], settings: Settings) -> list[Tensor]:
    (x, weight), (eps,) = given, settings
    return eager.rms_norm(x, weight, eps)


def _eager_add_rms_norm(given: Sequence[Tensor], settings: Settings) -> list[Tensor]:
    (x, more, weight), (eps,) = given, settings
    return eager.add_rms_norm(x, more, weight, eps)


def _nothing_further(call: Called, settings: Settings) -> tuple[Tensor, ...]:
    return ()


def _eager_swiglu(given: Sequence[Tensor], settings: Settings) -> list[Tensor]:
    gate, up = given
    return eager.swiglu_gate(gate, up)


_OF_INPUTS = "Tensor? cu_seqlens, int heads, bool unit_keys, float eps"
INPUTS = Glue("memory_inputs", _OF_INPUTS, _check_inputs, _further_of_inputs, _eager_inputs)
GATED_NORM = Glue("gated_norm", "float eps", _check_norm, _further_of_norm, _eager_norm)
SWIGLU = Glue("swiglu_gate", "", _check_swiglu, _nothing_further, _eager_swiglu)
RMS_NORM = Glue("rms_norm", "float eps", _check_rms_norm, _further_of_norm, _eager_rms_norm)
ADD_RMS_NORM = Glue("add_rms_norm", "float eps", _check_rms_norm, _further_of_norm, _eager_add_rms_norm)
"""Not registered: where torch has to see a call, it is a sum and a norm."""


def _register(glue: Glue) -> CustomOpDef:
    """The operator `trellis_ops::name`, and the one of its gradient."""
    settings = f", {glue.schema}" if glue.schema else ""
    forward_schema = f"(Tensor[] given{settings}) -> Tensor[]"
    backward_schema = f"(Tensor[] cotangents, Tensor[] given{settings}) -> Tensor[]"
    name = f"trellis_ops::{glue.name}"
    forward = transforms.operator(name, glue.run, f"glue.{glue.name}", forward_schema)
    backward = transforms.operator(f"{name}{BACKWARD}", glue.run_backward, f"glue.{glue.name}", backward_schema)

    @forward.register_fake
    def _(given: list[Tensor], *rest: Any) -> list[Tensor]:
        return [given[0].new_empty(shape) for shape in glue.check(given, rest).results]

    @backward.register_fake
    def _(cotangents: list[Tensor], given: list[Tensor], *rest: Any) -> list[Tensor]:
        return [x.new_empty(x.shape) for x in given]

    batching.map_by_calls(forward)
    batching.map_by_calls(backward)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        given, *rest = inputs
        tensors = [x for x in rest if isinstance(x, Tensor)]
        ctx.save_for_backward(*given, *tensors)
        ctx.count, ctx.rest = len(given), [None if isinstance(x, Tensor) else x for x in rest]
        ctx.offsets = [isinstance(x, Tensor) for x in rest]
        ctx.outputs = [(x.shape, x.dtype, x.device) for x in output]
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, incoming: list[Tensor | None]) -> tuple[Any, ...]:
        # Asked for once: checkpointing computes what is saved again for each time.
        saved = list(ctx.saved_tensors)
        given, kept = saved[: ctx.count], saved[ctx.count :]
        rest = [kept.pop(0) if its else x for its, x in zip(ctx.offsets, ctx.rest, strict=True)]
        cotangents = [
            torch.zeros(shape, dtype=dtype, device=device) if ct is None else ct
            for ct, (shape, dtype, device) in zip(incoming, ctx.outputs, strict=True)
        ]
        return (backward(cotangents, given, *rest), *(None for _ in rest))

    torch.library.register_autograd(name, gradient, setup_context=setup)
    torch.library.register_autograd(f"{name}{BACKWARD}", refused_gradient(f"glue.{glue.name}"))
    return forward


REGISTERED = {each.name: _register(each) for each in (INPUTS, GATED_NORM, SWIGLU, RMS_NORM)}
