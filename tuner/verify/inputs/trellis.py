"""Seeded inputs of an operator, as its compiled kernels take them."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.device import Device
from codegen.kernels.arguments import INPUT, INT, READ, WRITTEN, Argument
from codegen.kernels.between import arguments as between_arguments
from codegen.kernels.declared import operator_arguments
from codegen.kernels.glue import arguments as glue_arguments
from codegen.kernels.layer import arguments as layer_arguments
from codegen.kernels.sequences import Sequences
from codegen.spec import FAMILY_OPERATORS, Spec
from tuner.verify.inputs.glue import drawn_for_glue
from tuner.verify.inputs.layers import drawn_for_layer
from tuner.verify.inputs.pools import behind, rows_of, sizes_of_pool
from tuner.verify.inputs.rules import drawn_for, numbers_of


@dataclass(frozen=True)
class Inputs:
    """One call's inputs, contiguous, tokens of all sequences in one row after another.

    Attributes:
        lengths: tokens of each sequence.
        sequences: the same as offsets.
        tensors: what the operator reads, by the names of `codegen.kernels.signatures.OPERATORS`.
    """

    lengths: tuple[int, ...]
    sequences: Sequences
    tensors: dict[str, Tensor]

    def bytes(self) -> int:
        """The memory that the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def heads(self) -> int:
        """H."""
        return self._rows.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._rows.device

    @property
    def _rows(self) -> Tensor:
        """The first tensor of every operator has a row for each token of each head."""
        return next(iter(self.tensors.values()))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def torch_device(device: Device) -> torch.device:
    """Where tensors for `device` live."""
    return torch.device("cpu" if device.kind == "cpu" else "cuda")


def sequences_of(lengths: tuple[int, ...], chunk: int, where: torch.device) -> Sequences:
    """The offsets of sequences of these lengths, and of their chunks."""
    chunks = [-(-length // chunk) for length in lengths]
    return Sequences(_offsets(lengths, where), _offsets(chunks, where), sum(chunks), max(chunks))


def sizes_of(spec: Spec, lengths: tuple[int, ...], sequences: Sequences, heads: int) -> dict[str, int]:
    """The sizes of the axes of what an operator takes and gives, on sequences of these lengths."""
    problem = spec.problem
    widths = {"heads": heads, "slots": problem.slots, "dim_k": problem.dim_k, "dim_v": problem.dim_v}
    widths["window"] = spec.rule.window - 1
    widths |= sizes_of_pool(lengths, heads)
    widths |= {"tokens": sum(lengths), "sequences": len(lengths), "chunks": sequences.chunks}
    of_layer = (*layer_arguments.OWN_AXES, *between_arguments.OWN_AXES)
    own = {axis: between_arguments.length(axis, spec) for axis in of_layer}
    # The tail of a block is that of its layer.
    own |= {axis: size for axis in glue_arguments.OWN_AXES if (size := glue_arguments.length(axis, spec)) is not None}
    return widths | {axis: size for axis, size in own.items() if size is not None}


def names_of_tokens(spec: Spec) -> tuple[str, ...]:
    """Names of what the operator reads of each token; of step sizes also where those of a head share one."""
    return tuple(
        each.name
        for each in operator_arguments(spec)
        if each.access == READ and each.cotangent_of is None and each.axes[:1] in (("tokens",), ("heads",))
    )


def make_inputs(
    spec: Spec, lengths: tuple[int, ...], device: Device, seed: int = 0, *, drawn_there: bool = False
) -> Inputs:
    """Inputs as a trained model would have them, the same for the same arguments on every machine.

    q, k, v and w have length one, targets and codes are of order one, gates forget slowly except for one token in
    sixteen that forgets almost everything, step sizes lie near 0.1, and states are N(0, 1 / D): a zero state would hide
    most mistakes. What is drawn for one name does not depend on which other tensors the operator has. The operators of
    any rule have what `tuner.verify.inputs.rules` draws, those of layers what `tuner.verify.inputs.layers` does, those
    between the products of a block what `tuner.verify.inputs.glue` does.

    Args:
        spec, lengths, device, seed: what they depend on.
        drawn_there: draw on the device itself: other numbers than a CPU draws, and a thousand times faster on a GPU.
    """
    problem, where = spec.problem, torch_device(device)
    order = sequences_of(lengths, problem.chunk, where)
    sizes = sizes_of(spec, lengths, order, problem.heads)
    of_any_rule = problem.operator in FAMILY_OPERATORS
    drawn = {}
    for argument in operator_arguments(spec):
        if argument.type == INT:
            drawn[argument.name] = rows_of(argument, lengths, problem.chunk).to(torch.int32).to(where)
        elif argument.access != WRITTEN:
            name = numbers_of(argument.name, spec.rule) if of_any_rule else argument.name
            generator = _generator(name, seed, where if drawn_there else torch.device("cpu"))
            shape = [sizes[axis] for axis in argument.axes]
            if of_any_rule:
                value = drawn_for(behind(argument), spec.rule, shape, generator)
            elif problem.layer is not None:
                value = drawn_for_layer(argument, spec, shape, generator)
            elif glue_arguments.is_of_glue(spec):
                value = drawn_for_glue(argument, shape, generator)
            else:
                value = _drawn(argument, shape, generator)
            drawn[argument.name] = value.to(getattr(torch, _dtype_of(argument, spec))).to(where)
    return Inputs(lengths, order, drawn)


def _dtype_of(argument: Argument, spec: Spec) -> str:
    if argument.type == INPUT:
        return spec.problem.dtype
    return "float32" if spec.problem.layer is None else argument.type


_SAME_AS = {"w": "k", "S": "S_k", "read": "q"}
"""What operators of one memory call otherwise than attention does, so that both are given the same numbers."""


def _generator(name: str, seed: int, where: torch.device) -> torch.Generator:
    text = f"{_SAME_AS.get(name, name)}, seed {seed}"
    return torch.Generator(where).manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def _drawn(argument: Argument, shape: list[int], generator: torch.Generator) -> Tensor:
    where = generator.device
    if argument.name == "log_decay":
        forget = torch.rand(shape, generator=generator, device=where)
        return torch.where(forget < 1 / 16, -5.0, -0.02 * forget)
    if argument.name == "step_size":
        return 0.05 + 0.1 * torch.rand(shape, generator=generator, device=where)
    normal = torch.randn(shape, generator=generator, device=where)
    *outer, width = argument.axes
    if argument.type == INPUT and argument.cotangent_of is None and width != "slots":
        return normal / normal.square().sum(dim=-1, keepdim=True).sqrt()
    # States, and what is shaped like them.
    return normal / math.sqrt(shape[-1]) if "slots" in outer else normal


@functools.lru_cache(maxsize=1)
def timing_inputs(spec: Spec, device: Device) -> Inputs:
    """Inputs of the size of `spec`, shared by all that is timed on it; whoever writes to them must copy first."""
    return make_inputs(spec, (spec.problem.tokens,) * spec.problem.batch, device, drawn_there=True)


@functools.lru_cache(maxsize=1)
def rotated_inputs(spec: Spec, device: Device, copies: int) -> tuple[Inputs, ...]:
    """`copies` more inputs like those of `timing_inputs`, each with a seed of its own."""
    lengths = (spec.problem.tokens,) * spec.problem.batch
    return tuple(make_inputs(spec, lengths, device, seed, drawn_there=True) for seed in range(1, copies + 1))


def _offsets(counts: list[int] | tuple[int, ...], where: torch.device) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(torch.int32).to(where)
