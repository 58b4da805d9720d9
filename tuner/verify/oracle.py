"""What a call should give: the float64 reference on the inputs of the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from codegen.kernels.arguments import IN_PLACE
from codegen.kernels.declared import operator_arguments
from codegen.kernels.glue.arguments import is_of_glue
from codegen.kernels.pool.arguments import is_of_pool
from codegen.kernels.signatures import MOVES_STATES
from codegen.spec import FAMILY_OPERATORS, Spec
from trellis_ops import reference
from tuner.verify import glue_oracle, layer_oracle, rule_oracle
from tuner.verify.formulas import define_maps_of
from tuner.verify.inputs.trellis import Inputs, names_of_tokens


def oracle(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    """The right value of all that the kernels of `spec` write, by the names of `tuner.verify.launch`, in float64.

    `inputs` must live on the CPU; the time grows with their tokens, about a millisecond each.
    """
    operator = spec.problem.operator
    define_maps_of(spec.rule)
    if operator in FAMILY_OPERATORS:
        return _of_any_rule(spec, inputs)
    if spec.problem.layer is not None:
        return layer_oracle.step(spec, inputs.tensors)
    if is_of_glue(spec):
        return glue_oracle.results(spec, inputs)
    if spec.problem.direction != "forward":
        return _gradients(spec, inputs)
    if operator == "trellis_attention":
        return _attention(spec, inputs, inputs.tensors)
    if operator in MOVES_STATES:
        return _step(spec, inputs)
    if operator == "memory_update":
        return _update(spec, inputs)
    return _readout(spec, inputs)


def _of_any_rule(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    if is_of_pool(spec):
        return rule_oracle.pool(spec, inputs)
    if spec.problem.operator in MOVES_STATES:
        return rule_oracle.step(spec, inputs)
    of = rule_oracle.forward if spec.problem.direction == "forward" else rule_oracle.gradients
    return of(spec, inputs)


def _attention(spec: Spec, inputs: Inputs, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tokens: dict[str, Any] = {name: _of_one_batch(tensors[name]) for name in names_of_tokens(spec)}
    y, (s_k, s_v) = reference.attention(
        **tokens,
        rule=spec.rule,
        chunk_size=spec.problem.chunk,
        initial_state=(tensors["S_k"], tensors["S_v"]),
        cu_seqlens=inputs.sequences.cu_seqlens,
        outer_gradient="first_order" if spec.problem.direction == "backward_first_order" else "bilevel",
    )
    (y,) = y
    return {"y": y, "S_k": s_k, "S_v": s_v}


def _gradients(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all inputs; that of step_size per token, as the kernels write it."""
    states = (each.name for each in operator_arguments(spec) if each.access == IN_PLACE and each.cotangent_of is None)
    leaves = {name: inputs[name].double().requires_grad_() for name in (*names_of_tokens(spec), *states)}
    step_size = inputs["step_size"].double().expand(inputs["log_decay"].shape).clone().requires_grad_()
    leaves["step_size"] = step_size
    with torch.enable_grad():
        outputs = _attention(spec, inputs, leaves)
        incoming = [inputs[f"d{name}"].double() for name in outputs]
        gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), incoming)
    found = {name: output.detach() for name, output in outputs.items()}
    return found | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def _step(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    chunked = spec.problem.operator == "trellis_step_chunked"
    tokens: dict[str, Any] = {name: inputs[name] for name in names_of_tokens(spec)}
    y, (s_k, s_v) = reference.step(
        **tokens,
        state=(inputs["S_k"], inputs["S_v"]),
        rule=spec.rule,
        gradient_state=(inputs["G_k"], inputs["G_v"]) if chunked else None,
    )
    return {"y": y, "S_k": s_k, "S_v": s_v}


def _update(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    results = [
        reference.update(**part, rule=spec.rule, chunk_size=spec.problem.chunk, initial_state=inputs["S"][number, None])
        for number, part in enumerate(_each_sequence(spec, inputs))
    ]
    chunk_states, codes, finals = zip(*results, strict=True)
    (chunk_states,), (codes,) = (torch.cat(parts, dim=1) for parts in (chunk_states, codes))
    return {"chunk_states": chunk_states, "codes": codes, "S": torch.cat(finals)}


def _readout(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    options: dict[str, Any] = {
        "chunk_size": spec.problem.chunk,
        "transpose": spec.problem.operator == "memory_readout_transposed",
    }
    offsets = itertools.pairwise(inputs.sequences.chunk_offsets.tolist())
    chunk_states = [inputs["chunk_states"][None, start:end] for start, end in offsets]
    parts = zip(chunk_states, _each_sequence(spec, inputs), strict=True)
    (y,) = torch.cat([reference.readout(**part, chunk_states=states, **options) for states, part in parts], dim=1)
    return {"y": y}


def _each_sequence(spec: Spec, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """What is read of the tokens of one sequence after another."""
    for start, end in itertools.pairwise(inputs.sequences.cu_seqlens.tolist()):
        given = {name: inputs[name] for name in names_of_tokens(spec)}
        yield {name: x if x.ndim == 1 else _of_one_batch(x[start:end]) for name, x in given.items()}


def _of_one_batch(x: Tensor) -> Tensor:
    """With a batch axis of one before its tokens; a step size for each head has none."""
    return x if x.ndim == 1 else x[None]
