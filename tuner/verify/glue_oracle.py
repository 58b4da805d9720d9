"""What stands between the products of a block, in plain PyTorch from the equations of the model, in float64.

Source: arXiv 2512.23852, figure 1, and 2002.05202. Each sequence is convolved by itself, tap by tap, and reverse passes
are those of autograd; nothing is shared with the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from codegen.kernels.arguments import WRITTEN
from codegen.kernels.glue.arguments import BACKWARD, kernel_arguments
from codegen.spec import Spec
from tuner.verify.inputs.trellis import Inputs

Named = dict[str, Tensor]


def results(spec: Spec, inputs: Inputs) -> Named:
    """What the kernel of `spec` writes, by name."""
    operator = spec.problem.operator
    forward = operator.removesuffix(BACKWARD)
    of = _FORWARDS[forward]
    tensors = {name: x.double() if x.is_floating_point() else x for name, x in inputs.tensors.items()}
    tensors["cu_seqlens"] = inputs.sequences.cu_seqlens
    return of(spec, tensors) if operator == forward else _reverse(of, spec, tensors)


def _reverse(of: Callable[[Spec, Named], Named], spec: Spec, tensors: Named) -> Named:
    # What is given back is what the forward has read.
    names = [each.cotangent_of for each in kernel_arguments(spec) if each.access == WRITTEN]
    leaves = {name: tensors[name].requires_grad_() for name in names if name is not None}
    with torch.enable_grad():
        outputs = of(spec, {**tensors, **leaves})
        incoming = [tensors[f"d{name}"] for name in outputs]
        found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), incoming)
    return {f"d{name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def _inputs(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    maps = spec.problem.inputs
    assert maps is not None
    shared, tails, eps = tensors["shared"], tensors["tails"], tensors["eps"]
    offsets = itertools.pairwise(tensors["cu_seqlens"].tolist())
    windows = [torch.cat([tails[n], shared[begin:end]]) for n, (begin, end) in enumerate(offsets)]
    found: Named = {}
    for name in ("q", "k"):
        row = torch.cat([_convolved(window, tensors[f"taps_{name}"], maps.taps) for window in windows])
        found[name] = _unit(row, eps) if maps.unit_keys else row
    if maps.unit_values:
        found["unit_v"] = _unit(tensors["v"], eps)
    found["tails_after"] = torch.stack([window[len(window) - maps.taps + 1 :] for window in windows])
    return found


def _convolved(window: Tensor, taps: Tensor, count: int) -> Tensor:
    length = len(window) - count + 1
    return torch.stack([window[j : j + length] * taps[..., j] for j in range(count)]).sum(0)


def _unit(row: Tensor, eps: Tensor) -> Tensor:
    return row / torch.maximum(torch.linalg.vector_norm(row, dim=-1, keepdim=True), eps)


def _gated_norm(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    gate, normed = tensors["gate"], _normed(tensors["y"], tensors)
    return {"mixed": normed * gate * (1 + torch.erf(gate / 2**0.5)) / 2}


def _swiglu(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    gate = tensors["gate"]
    return {"hidden": gate / (1 + torch.exp(-gate)) * tensors["up"]}


def _rms_norm(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    return {"normed": _normed(tensors["x"], tensors)}


def _add_rms_norm(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    # What is stored of the sum is what is normed.
    x = (tensors["x"] + tensors["more"]).to(getattr(torch, spec.problem.dtype)).double()
    return {"added": x, "normed": _normed(x, tensors)}


def _normed(x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + tensors["eps"]).sqrt() * tensors["weight"]


_FORWARDS: dict[str, Callable[[Spec, Named], Named]] = {
    "memory_inputs": _inputs,
    "gated_norm": _gated_norm,
    "swiglu_gate": _swiglu,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
}
