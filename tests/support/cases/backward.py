"""Comparisons of compiled backward kernels with autograd of the oracle in float64, the same for every backend."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from codegen.kernels.launches import GRADIENTS
from codegen.kernels.operator import CompiledOperator
from codegen.spec import Spec
from tests.support.cases.kernels import DTYPES, Build, Case
from tests.support.inputs import Inputs
from tests.support.operators import sequences_of
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import reference
from trellis_ops.tokens import Tokens

NAMES = (*Tokens._fields, "S_k", "S_v")
DIRECTIONS = {"bilevel": "backward", "first_order": "backward_first_order"}


def backward_spec(case: Case, outer_gradient: str = "bilevel") -> Spec:
    return dataclasses.replace(
        case.spec, problem=dataclasses.replace(case.spec.problem, direction=DIRECTIONS[outer_gradient])
    )


def cotangents(case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """Of y and of the final states, by their names."""
    generator = torch.Generator().manual_seed(1)
    outputs = (inputs.v, *inputs.initial_state)
    y, s_k, s_v = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs)
    return {"y": y.to(DTYPES[case.dtype]), "S_k": s_k.float(), "S_v": s_v.float()}


def rows(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.flatten(0, 1).contiguous()


def poisoned(shape: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def run_backward(
    operator: CompiledOperator,
    case: Case,
    inputs: Inputs,
    wanted: tuple[str, ...] = GRADIENTS,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """y and the gradients by the names of the inputs, step_size's summed where it was given per head.

    `given` are cotangents of y and of the final states, if not those of `cotangents`.
    """
    names = Tokens._fields
    tensors = {name: rows(x) for name, x in zip(names, inputs.args, strict=True)}
    incoming = {f"d{name}": poisoned(tensors[name].shape, tensors[name].dtype) for name in names}
    incoming["dstep_size"] = poisoned(tensors["log_decay"].shape)
    states = {f"S_{w}": s.clone() for w, s in zip("kv", inputs.initial_state, strict=True)}
    sequences = sequences_of(case.lengths, operator.segment_tokens)
    kept = {f"chunk_states_{w}": poisoned(torch.Size((sequences.chunks, *states[f"S_{w}"].shape[1:]))) for w in "kv"}
    y = poisoned(tensors["v"].shape, tensors["v"].dtype)
    tensors |= {**states, **kept, "y": y}
    operator.forward(tensors, sequences)
    incoming |= {f"d{name}": x.clone() for name, x in (given or cotangents(case, inputs)).items()}
    incoming["dy"] = rows(incoming["dy"])
    operator.backward(tensors | incoming, sequences, wanted)
    if inputs.step_size.dim() == 1:
        incoming["dstep_size"] = incoming["dstep_size"].sum(dim=0)
    found = {name: incoming[f"d{name}"].view(x.shape) for name, x in zip(NAMES, inputs.tensors, strict=True)}
    return found | {"y": y.view(inputs.v.shape)}


def expected_backward(case: Case, inputs: Inputs, outer_gradient: str = "bilevel") -> dict[str, Tensor]:
    """What `run_backward` should return, by autograd of the oracle in float64."""
    offsets = torch.tensor(list(itertools.accumulate(case.lengths, initial=0))) if case.packed else None
    leaves = inputs.to(torch.float64).leaves()
    y, states = reference.attention(
        *leaves.args,
        rule=case.rule,
        chunk_size=case.chunk,
        initial_state=leaves.initial_state,
        cu_seqlens=offsets,
        outer_gradient=outer_gradient,
    )
    incoming = [x.double() for x in cotangents(case, inputs).values()]
    gradients = torch.autograd.grad((y, *states), leaves.tensors, incoming)
    return dict(zip(NAMES, gradients, strict=True)) | {"y": y}


def check_backward(
    build: Build,
    case: Case,
    outer_gradient: str = "bilevel",
    inputs: Inputs | None = None,
    tolerance: float | None = None,
) -> None:
    """Outputs start as NaN, so that what a kernel leaves out shows."""
    inputs = case.inputs() if inputs is None else inputs
    found = run_backward(build(backward_spec(case, outer_gradient)), case, inputs)
    expected = expected_backward(case, inputs, outer_gradient)
    dtype = DTYPES[case.dtype]
    assert_close(found["y"], expected["y"], TOLERANCE[dtype], "y")
    for name in NAMES:
        assert_close(found[name], expected[name], tolerance or 10 * TOLERANCE[dtype], name)
