"""An operator as one call: the kernels of a schedule's variant, in order, with the buffers between them.

All tensors are contiguous and flattened over tokens: q, k `[B*T, H, D_k]`, v `[B*T, H, D_v]`, alpha `[B*T, H, M]`,
log_beta `[B*T, H]` float32, gamma `[H]` or `[B*T, H]` float32, states `[N, H, M, D]` float32, updated in place.
Sequences are offsets into the tokens, `cu_seqlens [N + 1]` int32; a batch is N = B sequences of equal length, a decode
step is N = B sequences of one token. `chunk_offsets [N + 1]` int32 says where a sequence's chunks start among all
chunk-start states.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from codegen import backward_program
from codegen.backends import Kernel, backend
from codegen.device import Device
from codegen.extent import MOST_SEGMENTS
from codegen.legality import require_legal
from codegen.render import template_digest
from codegen.schedule import (
    Schedule,
    TritonSchedule,
    TvmSchedule,
    dots_in_bfloat16,
    keeps_bfloat16,
    segment_tiles,
    segment_tokens,
    variants_of,
)
from codegen.spec import Problem, Spec

if TYPE_CHECKING:
    import torch

KERNELS_OF_VARIANT: dict[str, tuple[str, ...]] = {
    "fused": ("trellis_fused",),
    "pair": ("trellis_pair",),
    "split": ("memory_update", "memory_readout"),
    "recurrent": ("memory_step",),
    "update": ("memory_update",),
    "readout": ("memory_readout",),
    "backward": ("trellis_fused", "trellis_backward"),
    "backward_split": ("trellis_fused", "keys_readout", "values_backward", "keys_backward"),
    "backward_chunks": (
        *("trellis_update", "memory_readout"),
        *("keys_readout", "values_reading", "keys_reading", "states_backward", "values_writing", "keys_writing"),
    ),
}
"""Which templates a variant is made of, unless `kernels_of` says otherwise."""

_OF_TRITON = {"split": ("trellis_update", "memory_readout")}

BACKWARD_KERNELS = (
    *("trellis_backward", "keys_readout", "values_backward", "keys_backward"),
    *("values_reading", "keys_reading", "states_backward", "values_writing", "keys_writing"),
)
"""Those that only a backward has."""

GRADIENTS = ("q", "k", "v", "alpha", "log_beta", "gamma", "states")
"""What a backward program can be asked for."""

# In variant `pair` one of the two memories has nothing to do in the first and in the last segment: many segments waste
# little time so, but each must be worth waking a thread for.
_SEGMENT_TOKENS = 128


def kernels_of(variant: str, backend_name: str) -> tuple[str, ...]:
    """The templates of `variant`; Triton's `split` writes both memories in one launch."""
    own = _OF_TRITON.get(variant) if backend_name == "triton" else None
    return own or KERNELS_OF_VARIANT[variant]


@dataclass(frozen=True)
class Sequences:
    """Where sequences and their chunks lie.

    Attributes:
        cu_seqlens: `[N + 1]` int32, offsets into the tokens.
        chunk_offsets: `[N + 1]` int32, offsets into the chunk-start states.
        chunks: number of chunk-start states to allocate.
        most_chunks: no sequence has more chunks than this.
    """

    cu_seqlens: torch.Tensor
    chunk_offsets: torch.Tensor
    chunks: int
    most_chunks: int

    @functools.cached_property
    def count(self) -> int:
        """N, the number of sequences."""
        return self.cu_seqlens.shape[0] - 1


@dataclass(frozen=True)
class Program:
    """A compiled operator.

    Attributes:
        spec, schedule, device: what it was made from.
        kernels: compiled kernels in launch order.
    """

    spec: Spec
    schedule: Schedule
    device: Device
    kernels: tuple[Kernel, ...]

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        alpha: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        S_k: torch.Tensor,
        S_v: torch.Tensor,
        sequences: Sequences,
        y: torch.Tensor,
    ) -> None:
        """Run trellis_attention: write y `[B*T, H, D_v]`, leave the final states in S_k and S_v."""
        programs = sequences.count * q.shape[1]
        if self.schedule.variant == "split":
            kept_type = (q if keeps_bfloat16(self.schedule) else S_k).dtype
            of_k, of_v = (S.new_empty((sequences.chunks, *S.shape[1:]), dtype=kept_type) for S in (S_k, S_v))
            self._split(self.kernels, q, k, v, alpha, log_beta, gamma, S_k, S_v, sequences, (of_k, of_v), y)
        elif self.schedule.variant == "pair":
            self._pair(q, k, v, alpha, log_beta, gamma, S_k, S_v, sequences, y)
        else:
            self.kernels[0](programs, q, k, v, alpha, log_beta, gamma, S_k, S_v, sequences.cu_seqlens, y)

    def _split(
        self,
        kernels: tuple[Kernel, ...],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        alpha: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        S_k: torch.Tensor,
        S_v: torch.Tensor,
        sequences: Sequences,
        chunk_states: tuple[torch.Tensor, torch.Tensor],
        y: torch.Tensor,
    ) -> None:
        *updates, readout = kernels
        programs = sequences.count * q.shape[1]
        cu_seqlens, chunk_offsets = sequences.cu_seqlens, sequences.chunk_offsets
        states_k, states_v = chunk_states
        codes_type = (q if dots_in_bfloat16(self.schedule) else S_k).dtype
        codes_k, codes_v = (S_k.new_empty(alpha.shape, dtype=codes_type) for _ in range(2))
        gates, offsets = (alpha, log_beta, gamma), (cu_seqlens, chunk_offsets)
        if len(updates) == 1:
            kept = (states_k, codes_k, states_v, codes_v)
            updates[0](2 * programs, k, v, *gates, S_k, S_v, *offsets, *kept)
        else:
            updates[0](programs, k, *gates, S_k, *offsets, states_k, codes_k)
            updates[1](programs, v, *gates, S_v, *offsets, states_v, codes_v)
        readout(
            programs * sequences.most_chunks,
            *(q, k, v, log_beta, gamma, states_k, codes_k, states_v, codes_v, cu_seqlens, chunk_offsets),
            sequences.most_chunks,
            y,
        )

    def _pair(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        alpha: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        S_k: torch.Tensor,
        S_v: torch.Tensor,
        sequences: Sequences,
        y: torch.Tensor,
    ) -> None:
        programs = 2 * sequences.count * q.shape[1]
        segments = min(MOST_SEGMENTS, max(2, sequences.most_chunks * self.spec.problem.chunk // _SEGMENT_TOKENS))
        o = S_k.new_empty(alpha.shape)
        self.kernels[0](
            *(programs, segments),
            *(q, k, v, alpha, log_beta, gamma, S_k, S_v, sequences.cu_seqlens),
            *(o, y),
        )

    def attention_kept(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        alpha: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        S_k: torch.Tensor,
        S_v: torch.Tensor,
        sequences: Sequences,
        chunk_states: tuple[torch.Tensor, torch.Tensor],
        y: torch.Tensor,
    ) -> None:
        """As `attention`, of a backward spec: also write the states that the backward starts from.

        Args:
            sequences: with chunks of `segment_tokens`, which their `chunk_offsets` and `chunks` count.
            chunk_states: `[chunks, H, M, D]` of each memory.
        """
        if self.schedule.variant == "backward_chunks":
            kernels = self.kernels[:2]
            self._split(kernels, q, k, v, alpha, log_beta, gamma, S_k, S_v, sequences, chunk_states, y)
            return
        programs = sequences.count * q.shape[1]
        offsets = (sequences.cu_seqlens, sequences.chunk_offsets)
        self.kernels[0](programs, q, k, v, alpha, log_beta, gamma, S_k, S_v, *offsets, *chunk_states, y)

    def backward(
        self,
        tokens: tuple[torch.Tensor, ...],
        chunk_states: tuple[torch.Tensor, torch.Tensor],
        bar_y: torch.Tensor,
        bar_states: tuple[torch.Tensor, torch.Tensor],
        sequences: Sequences,
        bar_tokens: tuple[torch.Tensor, ...],
        wanted: tuple[str, ...] = GRADIENTS,
    ) -> None:
        """Run the reverse pass of trellis_attention.

        Args:
            tokens: q, k, v, alpha, log_beta, gamma, as `attention_kept` was given.
            chunk_states: what it wrote.
            bar_y: `[B*T, H, D_v]`, in the type of v.
            bar_states: cotangents of the final states; hold those of the initial states afterwards.
            sequences: as `attention_kept` was given.
            bar_tokens: written, shaped and typed as `tokens`, but gamma's is `[B*T, H]`.
            wanted: which of `GRADIENTS` are computed; the tensors of the others are left in no particular state.
        """
        programs = sequences.count * tokens[0].shape[1]
        offsets = (sequences.cu_seqlens, sequences.chunk_offsets)
        given = (tokens, chunk_states, bar_y, bar_states, bar_tokens, offsets)
        if isinstance(self.schedule, TritonSchedule):
            kernels = tuple(
                kernel
                for name, kernel in zip(kernels_of(self.schedule.variant, "triton"), self.kernels, strict=True)
                if name in BACKWARD_KERNELS
            )
            reverse = backward_program.Reverse(*given, programs, sequences.most_chunks, wanted)
            backward_program.run(self.spec, self.schedule, kernels, reverse)
            return
        flags = sum(1 << place for place, name in enumerate(GRADIENTS) if name in wanted)
        arguments = (*tokens, *chunk_states, bar_y, *bar_states, *offsets, *bar_tokens)
        self.kernels[1](programs, flags, *arguments, *self._thread_states(tokens[0], bar_states))

    @property
    def checks_arguments(self) -> bool:
        """Whether its kernels refuse tensors that are not as the spec says, before they write anything.

        TVM's compare types, strides, devices and sizes; but whether there are as many states as sequences, and what
        cu_seqlens says, is for the caller to see to.
        """
        return self.schedule.backend == "tvm"

    @property
    def segment_tokens(self) -> int:
        """Of a backward program: how many tokens, a multiple of the chunk, lie between the states that it keeps."""
        return segment_tokens(self.spec, self.schedule)

    def _thread_states(
        self, q: torch.Tensor, states: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where threads of TVM keep the states at the starts of a segment's tiles."""
        assert isinstance(self.schedule, TvmSchedule)
        width, count = self.schedule.vector_width, segment_tiles(self.spec, self.schedule, q.shape[0])
        padded = ((-(-size // width) * width for size in state.shape[2:]) for state in states)
        of_k, of_v = (
            state.new_empty((self.schedule.threads, count, *sizes)) for state, sizes in zip(states, padded, strict=True)
        )
        return of_k, of_v

    def update(
        self,
        w: torch.Tensor,
        alpha: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        S: torch.Tensor,
        sequences: Sequences,
        chunk_states: torch.Tensor,
        codes: torch.Tensor,
    ) -> None:
        """Run memory_update: write chunk_states `[chunks, H, M, D]`, codes `[B*T, H, M]`, the final state into S."""
        programs = sequences.count * w.shape[1]
        offsets = (sequences.cu_seqlens, sequences.chunk_offsets)
        self.kernels[0](programs, w, alpha, log_beta, gamma, S, *offsets, chunk_states, codes)

    def readout(
        self,
        read: torch.Tensor,
        w: torch.Tensor,
        chunk_states: torch.Tensor,
        codes: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        sequences: Sequences,
        y: torch.Tensor,
    ) -> None:
        """Run memory_readout: write o = S q `[B*T, H, M]`, or y = S^T r `[B*T, H, D]` where the spec is transposed."""
        self.kernels[0](
            sequences.count * w.shape[1] * sequences.most_chunks,
            *(read, w, log_beta, gamma, chunk_states, codes, sequences.cu_seqlens, sequences.chunk_offsets),
            sequences.most_chunks,
            y,
        )

    def step(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        alpha: torch.Tensor,
        log_beta: torch.Tensor,
        gamma: torch.Tensor,
        S_k: torch.Tensor,
        S_v: torch.Tensor,
        gradient_states: tuple[torch.Tensor, torch.Tensor] | tuple[()],
        cu_seqlens: torch.Tensor,
        y: torch.Tensor,
    ) -> None:
        """Run trellis_step: one token per sequence; gradient_states only where the spec is trellis_step_chunked."""
        programs = q.shape[0] * q.shape[1]
        self.kernels[0](programs, q, k, v, alpha, log_beta, gamma, S_k, S_v, *gradient_states, cu_seqlens, y)


# Neither compiler is made for several threads at once, and a kernel is wanted once. A child that is forked while
# another thread compiles has no such thread to wait for.
_building = threading.RLock()


def _build_anew() -> None:
    global _building
    _building = threading.RLock()


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(after_in_child=_build_anew)


def build(spec: Spec, schedule: Schedule, device: Device) -> Program:
    """Render and compile the kernels of `schedule`; the same arguments give the same Program again.

    B, T and H do not enter the kernels, so one Program serves every batch, length and number of heads.

    Raises:
        IllegalScheduleError, TemplateError, CompileError, BackendUnavailableError: as their names say.
    """
    require_legal(spec, schedule, device)
    with _building:
        return _build(replace(spec, problem=replace(spec.problem, batch=1, tokens=1, heads=1)), schedule, device)


@functools.lru_cache(maxsize=512)
def _build(spec: Spec, schedule: Schedule, device: Device) -> Program:
    compiler = backend(schedule.backend)
    kernels = tuple(
        compiler.kernel(kernel, part, schedule_of(kernel, schedule), device) for kernel, part in parts(spec, schedule)
    )
    return Program(spec, schedule, device, kernels)


def parts(spec: Spec, schedule: Schedule) -> tuple[tuple[str, Spec], ...]:
    """The kernels of `schedule.variant` in launch order, each with the spec it is rendered for."""
    if schedule.variant != "split" or schedule.backend == "triton":
        return tuple((kernel, spec) for kernel in kernels_of(schedule.variant, schedule.backend))
    return (
        ("memory_update", _one_memory(spec, spec.problem.dim_k)),
        ("memory_update", _one_memory(spec, spec.problem.dim_v)),
        ("memory_readout", spec),
    )


def schedule_of(kernel: str, schedule: Schedule) -> Schedule:
    """What a kernel of a program with this schedule is itself compiled with."""
    # The forward of a backward wastes what lies above the diagonal of a long tile, the backward does not.
    if schedule.variant == "backward" and kernel == "trellis_fused" and isinstance(schedule, TvmSchedule):
        return replace(schedule, tile_tokens=min(schedule.tile_tokens, 2 * schedule.vector_width))
    return schedule


def _one_memory(spec: Spec, dim: int) -> Spec:
    return replace(spec, problem=replace(spec.problem, operator="memory_update", dim_k=dim, dim_v=dim))


def schedule_digest(schedule: Schedule) -> str:
    """Digest of the templates that `schedule` would render; says what made one kernel."""
    return template_digest(schedule.backend, kernels_of(schedule.variant, schedule.backend))


def operator_digest(problem: Problem, backend_name: str) -> str:
    """Digest of the templates of every variant of the problem's operator and direction, which keys studies and records.

    It needs no schedule, so a lookup can form it, and a change to any variant reopens the question which one wins.
    """
    variants = variants_of(problem.operator, backend_name, problem.direction)
    kernels = {kernel for variant in variants for kernel in kernels_of(variant, backend_name)}
    return template_digest(backend_name, tuple(sorted(kernels)))
