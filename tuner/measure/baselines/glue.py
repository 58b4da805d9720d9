"""What stands between the products of a block in eager PyTorch, and autograd of it for the reverse passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from codegen.kernels.arguments import WRITTEN
from codegen.kernels.glue.arguments import BACKWARD, operator_arguments
from codegen.spec import Spec
from trellis_ops.eager import glue as eager
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import Inputs

Named = Mapping[str, Tensor]


def glue_call(spec: Spec, inputs: Inputs, made: Callable[[Any], Any]) -> Timed:
    """The call on `inputs`, of sequences of one length, made into what is to be timed."""
    operator = spec.problem.operator
    forward = operator.removesuffix(BACKWARD)
    call, batch = made(_FORWARDS[forward]), len(inputs.lengths)
    tensors = {name: x.clone() for name, x in inputs.tensors.items()}
    if operator == forward:
        return Timed(lambda: call(spec, tensors, batch), lambda: None)
    # What is given back is what the forward has read.
    names = [each.cotangent_of for each in operator_arguments(spec) if each.access == WRITTEN]
    leaves = {name: tensors[name].requires_grad_() for name in names if name is not None}

    def run() -> object:
        outputs = call(spec, {**tensors, **leaves}, batch)
        return torch.autograd.grad(outputs, list(leaves.values()), [torch.ones_like(x) for x in outputs])

    return Timed(lambda: _with_grad(run), lambda: None)


def _with_grad(run: Callable[[], object]) -> object:
    with torch.enable_grad():
        return run()


def _memory_inputs(spec: Spec, tensors: Named, batch: int) -> list[Tensor]:
    maps = spec.problem.inputs
    assert maps is not None
    rows = {name: x.view(batch, -1, x.shape[1:].numel()) for name, x in tensors.items() if name in ("shared", "v")}
    taps_q, taps_k = (tensors[name].flatten(0, 1) for name in ("taps_q", "taps_k"))
    settings = (None, spec.problem.heads, maps.unit_keys, float(tensors["eps"]))
    return eager.memory_inputs(rows["shared"], rows.get("v"), taps_q, taps_k, tensors["tails"].flatten(2), *settings)


def _gated_norm(spec: Spec, tensors: Named, batch: int) -> list[Tensor]:
    return eager.gated_norm(tensors["y"], tensors["gate"].flatten(1), tensors["weight"], float(tensors["eps"]))


def _swiglu(spec: Spec, tensors: Named, batch: int) -> list[Tensor]:
    return eager.swiglu_gate(tensors["gate"], tensors["up"])


def _rms_norm(spec: Spec, tensors: Named, batch: int) -> list[Tensor]:
    return eager.rms_norm(tensors["x"], tensors["weight"], float(tensors["eps"]))


def _add_rms_norm(spec: Spec, tensors: Named, batch: int) -> list[Tensor]:
    return eager.add_rms_norm(tensors["x"], tensors["more"], tensors["weight"], float(tensors["eps"]))


_FORWARDS: dict[str, Callable[[Spec, Named, int], list[Tensor]]] = {
    "memory_inputs": _memory_inputs,
    "gated_norm": _gated_norm,
    "swiglu_gate": _swiglu,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
}
