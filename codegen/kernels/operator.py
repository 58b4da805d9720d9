"""A compiled operator: the kernels of a schedule's variant, launched in order, with the buffers between them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.backends import Kernel
from codegen.device import Device
from codegen.kernels.arguments import Argument
from codegen.kernels.between import arguments as between
from codegen.kernels.buffers import length
from codegen.kernels.declared import kernel_arguments, launches_for, operator_arguments
from codegen.kernels.launches import CHUNKS, GRADIENTS, MEMORIES, Launch
from codegen.kernels.pool import arguments as pool
from codegen.kernels.sequences import Sequences
from codegen.kernels.signatures import dtype_of
from codegen.limits.extent import MOST_SEGMENTS, Extent
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

if TYPE_CHECKING:
    import torch

# In variant `pair` one of the two memories has nothing to do in the first and in the last segment: many segments waste
# little time so, but each must be worth waking a thread for.
_SEGMENT_TOKENS = 128


@dataclass(frozen=True)
class Step:
    """One launch of an operator.

    Attributes:
        launch: as its variant has it.
        kernel: compiled.
        spec: that the kernel was rendered for.
        arguments: of the kernel in order, each with the name of its buffer.
    """

    launch: Launch
    kernel: Kernel
    spec: Spec
    arguments: tuple[tuple[str, Argument], ...]


@dataclass(frozen=True)
class CompiledOperator:
    """The kernels of one operator.

    Attributes:
        spec, schedule, device: what it was made from.
        kernels: compiled, one for each launch of the schedule's variant.
    """

    spec: Spec
    schedule: Schedule
    device: Device
    kernels: tuple[Kernel, ...]

    def forward(self, tensors: Mapping[str, torch.Tensor], sequences: Sequences) -> None:
        """Launch the kernels of the forward.

        Args:
            tensors: by the names of `signatures.OPERATORS`, contiguous and flattened over tokens, those that are
                written included; states are moved in place. The slots of a pool may lie apart.
            sequences: where they lie; for a backward spec with chunks of `segment_tokens`.
        """
        self._run(tensors, sequences, reverse=False, wanted=frozenset())

    def backward(
        self, tensors: Mapping[str, torch.Tensor], sequences: Sequences, wanted: tuple[str, ...] = GRADIENTS
    ) -> None:
        """Launch the kernels of the reverse pass, after a forward of the same spec has kept its states.

        Args:
            tensors: as `forward` was given, and the cotangents; dS_k and dS_v hold those of the final states
                before and those of the initial states afterwards.
            sequences: as `forward` was given.
            wanted: which of `GRADIENTS` are computed; the tensors of the others are left in no particular state.
        """
        self._run(tensors, sequences, reverse=True, wanted=frozenset(wanted))

    @property
    def checks_arguments(self) -> bool:
        """Whether its kernels refuse tensors that are not as the spec says, before they write anything.

        TVM's compare types, strides, devices and sizes; but whether there are as many states as sequences, and what
        cu_seqlens says, is for the caller to see to.
        """
        return self.schedule.checks_arguments

    @property
    def segment_tokens(self) -> int:
        """How many tokens lie between two states that are kept, of a backward operator a multiple of the chunk."""
        return self.schedule.segment_tokens(self.spec)

    @property
    def chunk_tokens(self) -> int:
        """The chunk that `Sequences` of a call count: what lies between two states that are kept."""
        return self.segment_tokens

    @functools.cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What it takes and gives."""
        return operator_arguments(self.spec)

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The launches in order."""
        found = []
        for launch, kernel in zip(launches_for(self.spec, self.schedule), self.kernels, strict=True):
            spec = launch.spec_of(self.spec)
            arguments = kernel_arguments(launch.kernel, spec, self.schedule)
            named = tuple((launch.buffer_of(argument.name), argument) for argument in arguments)
            found.append(Step(launch, kernel, spec, named))
        return tuple(found)

    def _run(
        self, tensors: Mapping[str, torch.Tensor], sequences: Sequences, reverse: bool, wanted: frozenset[str]
    ) -> None:
        buffers: dict[str, torch.Tensor | int] = {
            **tensors,
            "cu_seqlens": sequences.cu_seqlens,
            "chunk_offsets": sequences.chunk_offsets,
            "most_chunks": sequences.most_chunks,
        }
        if pool.is_of_pool(self.spec):
            buffers |= pool.layout(self.spec, tensors)
        # The first tensor of every operator has a row for each token of each head.
        rows = tensors[self.arguments[0].name]
        shared = self.spec.problem.operator in between.KERNELS
        programs = sequences.count * (between.programs_of_row(self.spec) if shared else rows.shape[1])
        grids = {CHUNKS: programs * sequences.most_chunks, MEMORIES: 2 * programs}
        for step in self.steps:
            launch = step.launch
            if launch.reverse is not reverse or (launch.gradients and not launch.gradients & wanted):
                continue
            for name, argument in step.arguments:
                if name not in buffers:
                    buffers[name] = self._made(argument, step.spec, rows, sequences, wanted)
            step.kernel(grids.get(launch.grid, programs), *[buffers[name] for name, _ in step.arguments])

    def _made(
        self, argument: Argument, spec: Spec, like: torch.Tensor, sequences: Sequences, wanted: frozenset[str]
    ) -> torch.Tensor | int:
        """What no caller gives: a number, or memory that one kernel, made for `spec`, leaves for itself or the next."""
        import torch

        if argument.name == "wanted":
            return sum(1 << place for place, name in enumerate(GRADIENTS) if name in wanted)
        if argument.name == "segments":
            tokens = sequences.most_chunks * self.spec.problem.chunk
            return min(MOST_SEGMENTS, max(2, tokens // _SEGMENT_TOKENS))
        dtype = getattr(torch, dtype_of(argument, spec, self.schedule))
        (tokens, heads), count = like.shape[:2], sequences.count
        extent = Extent(tokens, heads, count, sequences.chunks, sequences.most_chunks)
        return like.new_empty([length(axis, spec, self.schedule, extent) for axis in argument.axes], dtype=dtype)
