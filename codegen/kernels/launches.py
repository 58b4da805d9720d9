"""Which kernels a variant launches, in which order, on which grid, and what each calls by a name of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from codegen.errors import UnknownKernelError
from codegen.recurrence.forms import split_chunk
from codegen.rule import Rule
from codegen.schedules.registry import kind_of
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

HEADS, MEMORIES, CHUNKS = "N * H", "2 * N * H", "N * most_chunks * H"
"""Grids: a program for each sequence and head, two of them for the two memories, one for each chunk of each head."""

GRADIENTS = ("q", "k", "v", "target", "log_decay", "step_size", "states")
"""What a backward can be asked for, in the order of the bits of the argument `wanted`."""

_OF_BOTH_MEMORIES = ("target", "log_decay", "step_size")
"""Gradients that the kernels of either memory add their part to."""


@dataclass(frozen=True)
class Launch:
    """One kernel of a variant.

    Attributes:
        kernel: name of its template.
        grid: HEADS, MEMORIES or CHUNKS.
        memory: "k" or "v" where a kernel for one memory, which says w, S and codes, works on one of the two; "only" for
            the memory of a rule of one pass.
        reverse: whether it belongs to the reverse pass.
        gradients: it is skipped unless one of these is wanted; none if it always runs.
    """

    kernel: str
    grid: str = HEADS
    memory: str | None = None
    reverse: bool = False
    gradients: frozenset[str] = field(default=frozenset())

    def buffer_of(self, argument: str) -> str:
        """What an argument of the kernel is called outside of it."""
        if self.memory == "only":
            return {"w": "k", "target": "v", "read": "q"}.get(argument, argument)
        if self.memory is None or argument not in ("w", "S", "chunk_states", "codes"):
            return argument
        return self.memory if argument == "w" else f"{argument}_{self.memory}"

    def spec_of(self, spec: Spec) -> Spec:
        """The spec that the kernel is rendered for, in an operator of `spec`."""
        if self.memory is None:
            return spec
        if self.memory == "only":
            return _of_one_memory(spec, self.kernel)
        dim = spec.problem.dim_k if self.memory == "k" else spec.problem.dim_v
        return replace(spec, problem=replace(spec.problem, operator="memory_update", dim_k=dim, dim_v=dim))


def _of_one_memory(spec: Spec, kernel: str) -> Spec:
    """What `memory_update` or `memory_readout` computes of a rule of one pass: S `[D_v, D_k]` has D_v slots."""
    rule, problem = spec.rule, spec.problem
    own = Rule(phi=rule.phi, phi_eps=rule.phi_eps, step_size=rule.step_size)
    chunk, slots = split_chunk(rule, problem.chunk), problem.dim_v
    return Spec(own, replace(problem, operator=kernel, dim_v=problem.dim_k, slots=slots, chunk=chunk))


def _reverse(kernel: str, grid: str = HEADS, *gradients: str) -> Launch:
    return Launch(kernel, grid, reverse=True, gradients=frozenset(gradients))


LAUNCHES: dict[str, tuple[Launch, ...]] = {
    "fused": (Launch("trellis_fused"),),
    "pair": (Launch("trellis_pair", MEMORIES),),
    "split": (
        Launch("memory_update", memory="k"),
        Launch("memory_update", memory="v"),
        Launch("memory_readout", CHUNKS),
    ),
    "recurrent": (Launch("memory_step"),),
    "recurrence": (Launch("recurrence"),),
    "split_one_pass": (Launch("memory_update", memory="only"), Launch("memory_readout", CHUNKS, memory="only")),
    "stale_chunks": (Launch("stale_chunks"),),
    "chunks": (Launch("memory_chunks"),),
    "chunks_backward": (Launch("memory_chunks"), _reverse("memory_chunks_backward")),
    "recurrence_backward": (Launch("recurrence"), _reverse("recurrence_backward")),
    "update": (Launch("memory_update"),),
    "readout": (Launch("memory_readout", CHUNKS),),
    "backward": (Launch("trellis_fused"), _reverse("trellis_backward")),
    "backward_split": (
        Launch("trellis_fused"),
        _reverse("keys_readout", CHUNKS),
        _reverse("values_backward"),
        _reverse("keys_backward", HEADS, "q", "k", "states", *_OF_BOTH_MEMORIES),
    ),
    "backward_chunks": (
        Launch("trellis_update", MEMORIES),
        Launch("memory_readout", CHUNKS),
        _reverse("keys_readout", CHUNKS),
        _reverse("values_reading", CHUNKS),
        _reverse("keys_reading", CHUNKS),
        _reverse("states_backward", MEMORIES, "k", "v", "states", *_OF_BOTH_MEMORIES),
        _reverse("values_writing", CHUNKS, "v", *_OF_BOTH_MEMORIES),
        _reverse("keys_writing", CHUNKS, "k", *_OF_BOTH_MEMORIES),
    ),
}
"""The launches of every variant in order, unless `launches_of` says otherwise."""

_JOINED = {"split": (Launch("trellis_update", MEMORIES), Launch("memory_readout", CHUNKS))}
"""The launches where one kernel updates both memories."""


def launches_of(variant: str, backend: str) -> tuple[Launch, ...]:
    """The launches of a variant.

    Raises:
        UnknownBackendError: no such backend.
    """
    own = _JOINED.get(variant) if kind_of(backend).joins_updates else None
    return own or LAUNCHES[variant]


def kernels_of(variant: str, backend: str) -> tuple[str, ...]:
    """The templates that a variant is made of, each once."""
    return tuple(dict.fromkeys(launch.kernel for launch in launches_of(variant, backend)))


def is_of_a_backward(kernel: str) -> bool:
    """Whether only a reverse pass has that kernel.

    Raises:
        UnknownKernelError: no variant launches it.
    """
    of_kernel = [launch for launches in (*LAUNCHES.values(), *_JOINED.values()) for launch in launches]
    found = {launch.reverse for launch in of_kernel if launch.kernel == kernel}
    if not found:
        raise UnknownKernelError(name=kernel, known=", ".join(dict.fromkeys(launch.kernel for launch in of_kernel)))
    return found == {True}


def launches_for(spec: Spec, schedule: Schedule) -> tuple[Launch, ...]:
    """The launches of an operator of `spec`, compiled by `schedule`."""
    return launches_of(schedule.variant, schedule.backend)
