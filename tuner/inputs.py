"""Seeded inputs of an operator, as its compiled kernels take them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.device import Device
from codegen.program import Sequences
from codegen.spec import Spec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Inputs:
    """One call's inputs, contiguous, tokens of all sequences in one row after another.

    Attributes:
        lengths: tokens of each sequence.
        sequences: the same as offsets.
        tensors: by the names of the equations: q, k `[tokens, H, D_k]`, v `[tokens, H, D_v]`, alpha `[tokens, H, M]`,
            log_beta `[tokens, H]`, gamma `[H]` or `[tokens, H]`, S_k, S_v, G_k, G_v `[N, H, M, D]` (G: the states that
            `trellis_step_chunked` takes its inner gradient at); for a readout also r `[tokens, H, M]`, chunk_states
            `[chunks, H, M, D]` and codes `[tokens, H, M]`; for a backward the cotangents bar_y, bar_S_k and bar_S_v of
            outputs and final states.
    """

    lengths: tuple[int, ...]
    sequences: Sequences
    tensors: dict[str, Tensor]

    def bytes(self) -> int:
        """The memory that the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def torch_device(device: Device) -> torch.device:
    """Where tensors for `device` live."""
    return torch.device("cpu" if device.kind == "cpu" else "cuda")


def sequences_of(lengths: tuple[int, ...], chunk: int, where: torch.device) -> Sequences:
    """The offsets of sequences of these lengths, and of their chunks."""
    chunks = [-(-length // chunk) for length in lengths]
    return Sequences(_offsets(lengths, where), _offsets(chunks, where), sum(chunks), max(chunks))


def make_inputs(
    spec: Spec, lengths: tuple[int, ...], device: Device, seed: int = 0, *, drawn_there: bool = False
) -> Inputs:
    """Inputs as a trained model would have them, the same for the same arguments on every machine.

    q, k and v have length one, alpha is of order one, gates forget slowly except for one token in sixteen that forgets
    almost everything, step sizes lie near 0.1, and states are N(0, 1 / D): a zero state would hide most mistakes.

    Args:
        spec, lengths, device, seed: what they depend on.
        drawn_there: draw on the device itself: other numbers than a CPU draws, and a thousand times faster on a GPU.
    """
    problem, where = spec.problem, torch_device(device)
    origin = where if drawn_there else torch.device("cpu")
    generator = torch.Generator(device=origin).manual_seed(seed)
    tokens, heads, slots, sequences = sum(lengths), problem.heads, problem.slots, len(lengths)
    dtype = _DTYPES[problem.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=origin)

    def directions(dim: int) -> Tensor:
        drawn = normal(tokens, heads, dim)
        return (drawn / drawn.square().sum(dim=-1, keepdim=True).sqrt()).to(dtype)

    def states(dim: int) -> Tensor:
        return normal(sequences, heads, slots, dim) / math.sqrt(dim)

    forget = torch.rand(tokens, heads, generator=generator, device=origin)
    log_beta = torch.where(forget < 1 / 16, -5.0, -0.02 * forget)
    gamma_shape = (tokens, heads) if spec.rule.step_size == "token" else (heads,)
    made = {
        "q": directions(problem.dim_k),
        "k": directions(problem.dim_k),
        "v": directions(problem.dim_v),
        "alpha": normal(tokens, heads, slots).to(dtype),
        "log_beta": log_beta,
        "gamma": 0.05 + 0.1 * torch.rand(*gamma_shape, generator=generator, device=origin),
        "S_k": states(problem.dim_k),
        "S_v": states(problem.dim_v),
        "G_k": states(problem.dim_k),
        "G_v": states(problem.dim_v),
    }
    order = sequences_of(lengths, problem.chunk, where)
    if problem.operator.startswith("memory_readout"):
        made["r"] = normal(tokens, heads, slots).to(dtype)
        made["codes"] = normal(tokens, heads, slots)
        made["chunk_states"] = normal(order.chunks, heads, slots, problem.dim_k) / math.sqrt(problem.dim_k)
    if problem.direction != "forward":
        made["bar_y"] = normal(tokens, heads, problem.dim_v).to(dtype)
        made["bar_S_k"], made["bar_S_v"] = states(problem.dim_k), states(problem.dim_v)
    return Inputs(lengths, order, {name: tensor.to(where) for name, tensor in made.items()})


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
