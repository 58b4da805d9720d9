"""What a call should give: the float64 reference on the inputs of the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from codegen.spec import Spec
from trellis_ops import reference
from tuner.verify.inputs import Inputs

_GATES = ("log_decay", "step_size")


def oracle(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    """The right value of all that the kernels of `spec` write, by the names of `tuner.verify.launch`, in float64.

    `inputs` must live on the CPU; the time grows with their tokens, about a millisecond each.
    """
    operator = spec.problem.operator
    if spec.problem.direction != "forward":
        return _gradients(spec, inputs)
    if operator == "trellis_attention":
        return _attention(spec, inputs, inputs.tensors)
    if operator.startswith("trellis_step"):
        return _step(spec, inputs)
    if operator == "memory_update":
        return _update(spec, inputs)
    return _readout(spec, inputs)


def _attention(spec: Spec, inputs: Inputs, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    q, k, v, target, log_decay = (tensors[name][None] for name in ("q", "k", "v", "target", "log_decay"))
    y, (s_k, s_v) = reference.attention(
        q,
        k,
        v,
        target,
        log_decay,
        tensors["step_size"] if tensors["step_size"].ndim == 1 else tensors["step_size"][None],
        rule=spec.rule,
        chunk_size=spec.problem.chunk,
        initial_state=(tensors["S_k"], tensors["S_v"]),
        cu_seqlens=inputs.sequences.cu_seqlens,
        outer_gradient="first_order" if spec.problem.direction == "backward_first_order" else "bilevel",
    )
    return {"y": y[0], "S_k": s_k, "S_v": s_v}


def _gradients(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all inputs; that of step_size per token, as the kernels write it."""
    leaves = {name: inputs[name].double().requires_grad_() for name in ("q", "k", "v", "target", *_GATES, "S_k", "S_v")}
    step_size = inputs["step_size"].double().expand(inputs["log_decay"].shape).clone().requires_grad_()
    leaves["step_size"] = step_size
    with torch.enable_grad():
        outputs = _attention(spec, inputs, leaves)
        incoming = [inputs[f"d{name}"].double() for name in outputs]
        gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), incoming)
    found = {name: output.detach() for name, output in outputs.items()}
    return found | {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def _step(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    q, k, v, target, log_decay, step_size = (inputs[name] for name in ("q", "k", "v", "target", *_GATES))
    chunked = spec.problem.operator == "trellis_step_chunked"
    y, (s_k, s_v) = reference.step(
        q,
        k,
        v,
        target,
        log_decay,
        step_size,
        (inputs["S_k"], inputs["S_v"]),
        rule=spec.rule,
        gradient_state=(inputs["G_k"], inputs["G_v"]) if chunked else None,
    )
    return {"y": y, "S_k": s_k, "S_v": s_v}


def _update(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    results = [
        reference.update(*part, rule=spec.rule, chunk_size=spec.problem.chunk, initial_state=inputs["S"][number, None])
        for number, part in enumerate(_each_sequence(spec, inputs, ("w", "target", *_GATES)))
    ]
    chunk_states, codes, finals = zip(*results, strict=True)
    joined = {"chunk_states": torch.cat(chunk_states, dim=1)[0], "codes": torch.cat(codes, dim=1)[0]}
    return joined | {"S": torch.cat(finals)}


def _readout(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    transpose = spec.problem.operator == "memory_readout_transposed"
    offsets = itertools.pairwise(inputs.sequences.chunk_offsets.tolist())
    chunk_states = [inputs["chunk_states"][None, start:end] for start, end in offsets]
    outputs = []
    tensors = _each_sequence(spec, inputs, ("read", "w", "codes", *_GATES))
    for states, (read, w, codes, log_decay, step_size) in zip(chunk_states, tensors, strict=True):
        outputs.append(
            reference.readout(
                read, w, states, codes, log_decay, step_size, chunk_size=spec.problem.chunk, transpose=transpose
            )
        )
    return {"y": torch.cat(outputs, dim=1)[0]}


def _each_sequence(spec: Spec, inputs: Inputs, names: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """The named tensors of one sequence after another, with a batch axis of one before their tokens."""
    for start, end in itertools.pairwise(inputs.sequences.cu_seqlens.tolist()):
        whole = {"step_size"} if spec.rule.step_size == "head" else set()
        yield [inputs[name] if name in whole else inputs[name][None, start:end] for name in names]
