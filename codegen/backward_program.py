"""How the kernels of a backward variant follow each other, with the buffers between them.

Tensors are as `codegen.program` says. A name with bar_ is the cotangent of what follows; docs/backward.md has the
equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.backends import Kernel
from codegen.schedule import TritonSchedule, dots_in_bfloat16
from codegen.spec import Spec

if TYPE_CHECKING:
    import torch


_OF_BOTH_MEMORIES = ("alpha", "log_beta", "gamma")
"""Gradients that the kernels of either memory add their part to."""


@dataclass(frozen=True)
class Reverse:
    """What a reverse pass is called with, see `Program.backward`; `programs` is one per sequence and head."""

    tokens: tuple[torch.Tensor, ...]
    chunk_states: tuple[torch.Tensor, torch.Tensor]
    bar_y: torch.Tensor
    bar_states: tuple[torch.Tensor, torch.Tensor]
    bar_tokens: tuple[torch.Tensor, ...]
    offsets: tuple[torch.Tensor, torch.Tensor]
    programs: int
    most_chunks: int
    wanted: tuple[str, ...]

    def wants(self, *gradients: str) -> bool:
        """Whether one of these is wanted."""
        return any(name in self.wanted for name in gradients)


def run(spec: Spec, schedule: TritonSchedule, kernels: tuple[Kernel, ...], x: Reverse) -> None:
    """Run the reverse pass of a variant of Triton; `kernels` are those after the forward's.

    A kernel computes all gradients that it can, wanted or not; one whose results nobody wants is not launched.
    """
    if schedule.variant == "backward_chunks":
        _run_chunks(spec, schedule, kernels, x)
    elif schedule.variant == "backward_split":
        _run_split(spec, schedule, kernels, x)
    else:
        scratch = _tile_states(spec, schedule, x.programs, x.bar_states)
        given = (*x.tokens, *x.chunk_states, x.bar_y, *x.bar_states, *x.offsets)
        kernels[0](x.programs, *given, *scratch, *x.bar_tokens)


def _run_split(spec: Spec, schedule: TritonSchedule, kernels: tuple[Kernel, ...], x: Reverse) -> None:
    keys_readout, values_backward, keys_backward = kernels
    q, k, v, alpha, *gates = x.tokens
    states_k, states_v = x.chunk_states
    bar_q, bar_k, bar_v, bar_alpha, *bar_gates = x.bar_tokens
    bar_S_k, bar_S_v = x.bar_states
    r, bar_r = _between(schedule, x, alpha.shape, 2)
    bar_alpha_v = states_k.new_empty(alpha.shape)
    keys_readout(x.programs * x.most_chunks, q, k, alpha, *gates, states_k, *x.offsets, x.most_chunks, r)
    scratch = _tile_states(spec, schedule, x.programs, (bar_S_v,))
    given: tuple[torch.Tensor, ...] = (v, alpha, *gates, r, states_v, x.bar_y, bar_S_v, *x.offsets, *scratch)
    values_backward(x.programs, *given, bar_v, bar_r, bar_alpha_v, *bar_gates)
    if not x.wants("q", "k", "states", *_OF_BOTH_MEMORIES):
        return
    scratch = _tile_states(spec, schedule, x.programs, (bar_S_k,))
    given = (q, k, alpha, *gates, states_k, bar_r, bar_alpha_v, bar_S_k, *x.offsets, *scratch)
    keys_backward(x.programs, *given, bar_q, bar_k, bar_alpha, *bar_gates)


def _run_chunks(spec: Spec, schedule: TritonSchedule, kernels: tuple[Kernel, ...], x: Reverse) -> None:
    import torch

    keys_readout, values_reading, keys_reading, states_backward, values_writing, keys_writing = kernels
    q, k, v, alpha, *gates = x.tokens
    states_k, states_v = x.chunk_states
    bar_q, bar_k, bar_v, bar_alpha, bar_log_beta, bar_gamma = x.bar_tokens
    r, codes_k, Y_k, Y_v = _between(schedule, x, alpha.shape, 4)
    o = () if spec.rule.link == "identity" else _between(schedule, x, alpha.shape, 1)
    # With more digits than its dots take: the kernels that share it spill with fewer.
    bar_o = x.bar_y.new_empty(alpha.shape, dtype=torch.float32)
    bar_T_k, bar_states_k = _between(schedule, x, states_k.shape, 2)
    bar_T_v, bar_states_v = _between(schedule, x, states_v.shape, 2)
    programs, where = x.programs * x.most_chunks, (*x.offsets, x.most_chunks)
    keys_readout(programs, q, k, alpha, *gates, states_k, *where, r, codes_k, *o)
    given: tuple[torch.Tensor, ...] = (v, alpha, *gates, r, *o, states_v, x.bar_y)
    values_reading(programs, *given, *where, bar_o, Y_v, bar_T_v, bar_v, bar_log_beta)
    keys_reading(programs, q, k, *gates, states_k, codes_k, bar_o, *where, Y_k, bar_T_k, bar_q, bar_k, bar_log_beta)
    if not x.wants("k", "v", "states", *_OF_BOTH_MEMORIES):
        return
    cotangents = (Y_k, Y_v, bar_T_k, bar_T_v, *x.bar_states, bar_states_k, bar_states_v)
    states_backward(2 * x.programs, k, v, alpha, *gates, *x.chunk_states, *cotangents, *x.offsets)
    bar_gates = (bar_alpha, bar_log_beta, bar_gamma)
    if x.wants("v", *_OF_BOTH_MEMORIES):
        values_writing(programs, v, alpha, *gates, states_v, Y_v, bar_states_v, *where, bar_v, *bar_gates)
    if x.wants("k", *_OF_BOTH_MEMORIES):
        keys_writing(programs, k, alpha, *gates, states_k, Y_k, bar_states_k, *where, bar_k, *bar_gates)


def _between(schedule: TritonSchedule, x: Reverse, shape: tuple[int, ...], count: int) -> list[torch.Tensor]:
    """Tensors that kernels leave for each other: what dots of bfloat16 round needs no more digits."""
    import torch

    dtype = torch.bfloat16 if dots_in_bfloat16(schedule) else torch.float32
    return [x.bar_y.new_empty(shape, dtype=dtype) for _ in range(count)]


def _tile_states(
    spec: Spec, schedule: TritonSchedule, programs: int, states: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Where programs keep the states at the starts of a segment's tiles, if it has more than one."""
    count = schedule.checkpoint_spacing * -(-spec.problem.chunk // schedule.tile_rows)
    if count == 1:
        return ()
    return tuple(state.new_empty((programs * count, *state.shape[2:])) for state in states)
