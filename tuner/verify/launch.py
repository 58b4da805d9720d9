"""A compiled operator bound to inputs and to outputs of its own, ready to be run, checked and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.kernels.arguments import IN_PLACE, READ, Argument
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from codegen.kernels.signatures import dtype_of
from tuner.verify.inputs.trellis import Inputs, sequences_of, sizes_of

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
        moved: names of the outputs that are read before they are written.
        guards: the memory on both sides of each output.
    """

    run: Callable[[], None]
    outputs: dict[str, Tensor]
    first: dict[str, Tensor]
    moved: tuple[str, ...]
    guards: dict[str, tuple[Tensor, Tensor]]

    def reset(self) -> None:
        """Poison the outputs and put the states back."""
        for name, tensor in self.outputs.items():
            tensor.copy_(self.first[name])

    def reset_states(self) -> None:
        """Put the states back; enough between two samples of a timing."""
        for name in self.moved:
            self.outputs[name].copy_(self.first[name])

    def outputs_of_run(self) -> dict[str, Tensor]:
        """Copies of what one run writes into poisoned outputs."""
        self.reset()
        self.run()
        return {name: tensor.clone() for name, tensor in self.outputs.items()}

    def trespassed(self) -> list[str]:
        """The outputs that something was written beside."""
        return [name for name, sides in self.guards.items() if any((side != _GUARD_VALUE).any() for side in sides)]


def bind(operator: CompiledOperator, inputs: Inputs) -> Launch:
    """`operator` on `inputs`, with fresh poisoned outputs between guards."""
    arguments = operator.arguments
    sequences = sequences_of(inputs.lengths, operator.chunk_tokens, inputs.device)
    first = {each.name: _first_value(each, operator, inputs, sequences) for each in arguments if each.access != READ}
    outputs, guards = {}, {}
    for name, value in first.items():
        outputs[name], guards[name] = _guarded(value)
    tensors = {each.name: inputs[each.name] for each in arguments if each.access == READ} | outputs

    def run() -> None:
        operator.forward(tensors, sequences)
        if operator.spec.problem.direction != "forward":
            operator.backward(tensors, sequences)

    moved = tuple(each.name for each in arguments if each.access == IN_PLACE)
    launch = Launch(run, outputs, first, moved, guards)
    launch.reset()
    return launch


def _first_value(argument: Argument, operator: CompiledOperator, inputs: Inputs, sequences: Sequences) -> Tensor:
    """What an output holds before a run: a state its first value, everything else NaN."""
    if argument.access == IN_PLACE:
        return inputs[argument.name].clone()
    sizes = sizes_of(operator.spec, inputs.lengths, sequences, inputs.heads)
    dtype = getattr(torch, dtype_of(argument, operator.spec, operator.schedule))
    return torch.full([sizes[axis] for axis in argument.axes], float("nan"), dtype=dtype, device=inputs.device)


def _guarded(value: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    memory = torch.full((value.numel() + 2 * GUARD,), _GUARD_VALUE, dtype=value.dtype, device=value.device)
    inner = memory[GUARD:-GUARD].view(value.shape)
    return inner, (memory[:GUARD], memory[-GUARD:])
