"""What a spec costs without this project's kernels: the vectorised eager implementation, and `torch.compile` of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codegen.device import Device
from codegen.kernels.declared import operator_arguments
from codegen.kernels.glue.arguments import is_of_glue
from codegen.kernels.signatures import MOVES_STATES
from codegen.spec import FAMILY_OPERATORS, Spec
from trellis_ops.eager import forward as eager
from tuner.measure.baselines.glue import glue_call
from tuner.measure.baselines.layer import layer_call
from tuner.measure.baselines.rule import rule_call
from tuner.measure.measure import measure
from tuner.measure.timed import Timed, Timing
from tuner.policy import policy_for
from tuner.verify.inputs.trellis import Inputs, names_of_tokens, timing_inputs

_SECONDS = 1.0

# Thousands of launches, each of which a user of it pays for; a graph would hide that.
_GPU_POLICY = "gpu-events"
_ROUNDS = 30


def time_eager(spec: Spec, device: Device) -> Timing:
    """The eager implementation of `spec`, with all threads that torch has.

    It is timed on its own and not in turn with kernels: the waiting threads of one runtime slow the other down.
    """
    return _time(spec, device, lambda function: function)


def time_compiled(spec: Spec, device: Device) -> Timing:
    """`torch.compile` of the eager implementation; compiling alone may take minutes."""
    return _time(spec, device, lambda function: torch.compile(function, dynamic=False))


def _time(spec: Spec, device: Device, made: Callable[[Any], Any]) -> Timing:
    inputs = timing_inputs(spec, device)
    with torch.set_grad_enabled(spec.problem.direction != "forward"):
        call = baseline_call(spec, inputs, made)
        policy = policy_for(device, None if device.kind == "cpu" else _GPU_POLICY)
        return measure({"baseline": call}, device, seconds=_SECONDS, rounds=_ROUNDS, policy=policy)["baseline"]


def baseline_call(spec: Spec, inputs: Inputs, made: Callable[[Any], Any]) -> Timed:
    """The eager implementation of `spec` on `inputs`, made into what is to be timed, such as by `torch.compile`."""
    problem, rule = spec.problem, spec.rule
    if problem.operator in FAMILY_OPERATORS:
        return rule_call(spec, inputs, _batched(spec, inputs), made)
    if problem.layer is not None:
        return layer_call(spec, inputs, made)
    if is_of_glue(spec):
        return glue_call(spec, inputs, made)
    if problem.operator in MOVES_STATES:
        return _step(spec, inputs, made)
    t = _batched(spec, inputs)
    if problem.direction != "forward":
        return _training_step(spec, t, made)
    tokens = {name: t[name] for name in names_of_tokens(spec)}
    if problem.operator == "trellis_attention":
        attention, first = made(eager.attention), (t["S_k"], t["S_v"])
        return _pure(lambda: attention(**tokens, rule=rule, chunk_size=problem.chunk, initial_state=first))
    if problem.operator == "memory_update":
        update = made(eager.update)
        return _pure(lambda: update(**tokens, rule=rule, chunk_size=problem.chunk, initial_state=t["S"]))
    readout = made(eager.readout)
    transpose = problem.operator == "memory_readout_transposed"
    states = t["chunk_states"]
    return _pure(lambda: readout(**tokens, chunk_states=states, chunk_size=problem.chunk, transpose=transpose))


def _training_step(spec: Spec, t: dict[str, Tensor], made: Callable[[Any], Any]) -> Timed:
    """The forward, and autograd of it; `first_order` is timed as `bilevel`, whose graph it has."""
    tokens = {name: t[name].detach().requires_grad_() for name in names_of_tokens(spec)}
    states = (t["S_k"].detach().requires_grad_(), t["S_v"].detach().requires_grad_())
    leaves, incoming = [*tokens.values(), *states], [t[f"d{name}"] for name in ("y", "S_k", "S_v")]
    attention = made(eager.attention)

    def run() -> object:
        y, finals = attention(**tokens, rule=spec.rule, chunk_size=spec.problem.chunk, initial_state=states)
        return torch.autograd.grad((y, *finals), leaves, incoming)

    return _pure(run)


def _step(spec: Spec, inputs: Inputs, made: Callable[[Any], Any]) -> Timed:
    step = made(eager.step)
    tokens = {name: inputs[name] for name in names_of_tokens(spec)}
    states = (inputs["S_k"].clone(), inputs["S_v"].clone())
    chunked = spec.problem.operator == "trellis_step_chunked"
    start = (inputs["G_k"], inputs["G_v"]) if chunked else None

    def reset() -> None:
        for state, name in zip(states, ("S_k", "S_v"), strict=True):
            state.copy_(inputs[name])

    return Timed(lambda: step(**tokens, state=states, rule=spec.rule, gradient_state=start), reset)


def _pure(run: Callable[[], object]) -> Timed:
    return Timed(run, lambda: None)


def _batched(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    """The tensors in the kernels' layout with their batch axis: `[B * T, ...]` as `[B, T, ...]`."""
    apart = {each.name for each in operator_arguments(spec) if each.axes[:1] in (("tokens",), ("chunks",))}
    return {
        name: tensor.reshape(spec.problem.batch, -1, *tensor.shape[1:]) if name in apart else tensor
        for name, tensor in inputs.tensors.items()
    }
