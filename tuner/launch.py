"""A compiled operator bound to inputs and to outputs of its own, ready to be run, checked and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.program import Program
from tuner.inputs import Inputs
from tuner.launch_backward import backward_call, backward_first_values

GUARD = 64
"""Values on either side of every output that no kernel may touch."""

_GUARD_VALUE = 12345.0


@dataclass(frozen=True)
class Launch:
    """A call that can be repeated.

    Attributes:
        run: run the kernels once; outputs land in `outputs`.
        outputs: by name, states included: what the kernels write.
        first: what each output holds before a run: states their first value, everything else NaN.
        guards: the memory on both sides of each output.
    """

    run: Callable[[], None]
    outputs: dict[str, Tensor]
    first: dict[str, Tensor]
    guards: dict[str, tuple[Tensor, Tensor]]

    def reset(self) -> None:
        """Poison the outputs and put the states back."""
        for name, tensor in self.outputs.items():
            tensor.copy_(self.first[name])

    def reset_states(self) -> None:
        """Put the states back; enough between two samples of a timing."""
        for name in ("S", "S_k", "S_v", "bar_S_k", "bar_S_v"):
            if name in self.outputs:
                self.outputs[name].copy_(self.first[name])

    def outputs_of_run(self) -> dict[str, Tensor]:
        """Copies of what one run writes into poisoned outputs."""
        self.reset()
        self.run()
        return {name: tensor.clone() for name, tensor in self.outputs.items()}

    def trespassed(self) -> list[str]:
        """The outputs that something was written beside."""
        return [name for name, sides in self.guards.items() if any((side != _GUARD_VALUE).any() for side in sides)]


def bind(program: Program, inputs: Inputs) -> Launch:
    """`program` on `inputs`, with fresh poisoned outputs between guards."""
    first = _first_values(program, inputs)
    outputs, guards = {}, {}
    for name, value in first.items():
        outputs[name], guards[name] = _guarded(value)
    launch = Launch(_call(program, inputs, outputs), outputs, first, guards)
    launch.reset()
    return launch


def _first_values(program: Program, inputs: Inputs) -> dict[str, Tensor]:
    problem = program.spec.problem
    tokens, heads = inputs["q"].shape[:2]

    def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=inputs["q"].device)

    if problem.direction != "forward":
        return backward_first_values(program, inputs)
    if problem.operator == "memory_update":
        chunk_states = poison(inputs.sequences.chunks, heads, problem.slots, problem.dim_k)
        codes = poison(tokens, heads, problem.slots)
        return {"S": inputs["S_k"].clone(), "chunk_states": chunk_states, "codes": codes}
    dtype = inputs["q"].dtype
    if problem.operator == "memory_readout":
        return {"y": poison(tokens, heads, problem.slots, dtype=dtype)}
    y = {"y": poison(tokens, heads, problem.dim_v, dtype=dtype)}
    if problem.operator == "memory_readout_transposed":
        return y
    return y | {"S_k": inputs["S_k"].clone(), "S_v": inputs["S_v"].clone()}


def _guarded(value: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    memory = torch.full((value.numel() + 2 * GUARD,), _GUARD_VALUE, dtype=value.dtype, device=value.device)
    inner = memory[GUARD:-GUARD].view(value.shape)
    return inner, (memory[:GUARD], memory[-GUARD:])


def _call(program: Program, inputs: Inputs, outputs: dict[str, Tensor]) -> Callable[[], None]:
    operator, t, sequences = program.spec.problem.operator, inputs.tensors, inputs.sequences
    if program.spec.problem.direction != "forward":
        return backward_call(program, inputs, outputs)
    if operator == "memory_update":
        arguments = (t["k"], t["alpha"], t["log_beta"], t["gamma"], outputs["S"], sequences)
        return lambda: program.update(*arguments, outputs["chunk_states"], outputs["codes"])
    if operator.startswith("memory_readout"):
        read = t["r"] if operator.endswith("transposed") else t["q"]
        rest = (t["k"], t["chunk_states"], t["codes"], t["log_beta"], t["gamma"], sequences)
        return lambda: program.readout(read, *rest, outputs["y"])
    tokens = (t["q"], t["k"], t["v"], t["alpha"], t["log_beta"], t["gamma"], outputs["S_k"], outputs["S_v"])
    if operator == "trellis_attention":
        return lambda: program.attention(*tokens, sequences, outputs["y"])
    gradient_states = (t["G_k"], t["G_v"]) if operator == "trellis_step_chunked" else ()
    return lambda: program.step(*tokens, gradient_states, sequences.cu_seqlens, outputs["y"])
