"""How a kernel computes: what every backend's schedule says of itself.

A schedule never changes the result beyond rounding, so a tuner may search all of it freely. Whatever differs between
backends is a question that their classes answer: nobody else asks which class, or which backend, a schedule is of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from codegen.device import Device
from codegen.limits.extent import Extent
from codegen.recurrence.forms import WHOLE_CHUNK, split_chunk, stale_chunk
from codegen.rule import Rule
from codegen.spec import FAMILY_OPERATORS, GLUE_OPERATORS, Spec

Value = int | str

POOL = "pool"
"""The variant whose states lie in a pool."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "trellis_attention": ("fused", "pair", "split", "substitution", "recurrent"),
    "memory_update": ("update",),
    "memory_readout": ("readout",),
    "memory_readout_transposed": ("readout",),
    "trellis_step": ("recurrent",),
    "trellis_step_chunked": ("recurrent",),
    "memory_attention": ("recurrence", "chunks", "split_one_pass", "stale_chunks", "substitution_one_pass"),
    "memory_step": ("recurrence",),
    "memory_step_chunked": ("recurrence",),
    "memory_pool": (POOL,),
    "block_step": ("block",),
    "logits_step": ("logits",),
    "norm_step": ("norm",),
    "mixer_step": ("mixer",),
    "swiglu_step": ("swiglu",),
    **{name: (name,) for name in GLUE_OPERATORS},
}
"""Variants of each operator.

fused: both memories and both readouts in one program per sequence and head, states resident.
pair: keys and values in programs of their own, the values a segment of the sequence behind; for few heads.
split: an update kernel per memory that stores chunk-start states and codes, then a readout kernel parallel over chunks.
substitution: exact by the kernels of `split`: z of each token of a tile by forward substitution.
recurrent: token by token, exact; with one token it is the decode step.
recurrence: any rule token by token, with z at the start of the chunk; with one token it is the decode step.
chunks: rules that are linear in their state, the tokens of a tile at once, exact for any of its lengths.
split_one_pass: rules whose write takes z at the chunk's start, by the two kernels of `split` for one memory.
stale_chunks: likewise by one kernel, the tokens of a tile at once, also with momentum, a window or a second step size.
substitution_one_pass: rules of one pass whose write takes z at each token, by those of `substitution` for one memory.
pool: any rule token by token, each row on its slot of a pool, which may begin and end inside a chunk.
block: a block for one token of each sequence, its weights read once; logits: likewise the map to logits.
norm, mixer, swiglu: what stands between the products of a block, for one token of each sequence.
memory_inputs, gated_norm, swiglu_gate, rms_norm, add_rms_norm, and reverse passes of them: what stands there for many
tokens.
"""

BACKWARD_VARIANTS: dict[str, tuple[str, ...]] = {
    "trellis_attention": ("backward", "backward_split", "backward_chunks"),
    "memory_attention": ("recurrence_backward", "chunks_backward"),
}
"""Variants of the operators that have a backward kernel. All begin with a forward that also stores states.

backward: one program per sequence and head that walks back with the cotangents of both states.
backward_split: first R again, parallel over chunks; then one memory after the other, so that half as much is resident.
backward_chunks: only the cotangents of states walk back; all else is parallel over chunks, each of them one tile.
recurrence_backward: any rule token by token, back over segments whose states are computed again.
chunks_backward: rules that are linear in their state, the tokens of a tile at once, over such segments.
"""

FEWEST_TOKENS_PER_STATE = 16
"""A state is M x D numbers: stored for every token, states take hundreds of times what the inputs take."""

ONE_PASS = "split_one_pass"
"""The variant of rules that `codegen.recurrence.forms.why_no_split_form` lets pass."""

STALE = "stale_chunks"
"""The variant of rules that `codegen.recurrence.forms.why_no_stale_form` lets pass."""

SUBSTITUTIONS = ("substitution", "substitution_one_pass")
"""Variants with z at each token, by forward substitution; their states are those of longer chunks."""

CHUNK_FORMS = ("chunks", "chunks_backward")
"""Variants of rules that `codegen.recurrence.forms` has a form for."""

PARALLEL_OVER_CHUNKS = ("split", "split_one_pass", *SUBSTITUTIONS, "readout", "backward_split", "backward_chunks")
"""Variants with a kernel that has a program for each chunk of each head."""


def why_no_whole_tiles(rule: Rule, chunk: int, tile: int) -> str | None:
    """Why the chunk form of a rule cannot have tiles of so many tokens, in one sentence; None if it can.

    Args:
        rule: one that `codegen.recurrence.forms.why_no_chunk_form` lets pass.
        chunk: C, tokens between two states that are read.
        tile: tokens that are computed at once.
    """
    if rule.read == "chunk_start" and chunk % tile:
        return f"a readout at the start of a chunk has whole tiles: {tile} tokens do not divide a chunk of {chunk}"
    return None


def kernel_chunk(variant: str, spec: Spec) -> int:
    """The chunk that the kernels of a variant take: C, but where the rule or the variant leaves it free."""
    rule, chunk = spec.rule, spec.problem.chunk
    if variant in SUBSTITUTIONS:
        return WHOLE_CHUNK
    if variant == ONE_PASS:
        return split_chunk(rule, chunk)
    return stale_chunk(rule, chunk) if variant == STALE else chunk


@dataclass(frozen=True)
class TileLoop:
    """The loop over tiles in a program of a GPU kernel, as far as a guess at its time needs to know it.

    Attributes:
        tokens: of a tile.
        segment: chunks between two kept states.
        warps: of a program.
        stages: depth of the loop's software pipeline.
        dot_precision: how float32 operands enter a dot.
        copies_tiles: whether tiles come whole, by tensor descriptors.
    """

    tokens: int
    segment: int
    warps: int
    stages: int
    dot_precision: str
    copies_tiles: bool


@dataclass(frozen=True)
class Schedule(ABC):
    """How a backend's kernels compute; `codegen.schedules.registry.register` makes a subclass known.

    Attributes:
        backend: name of the backend.
        compiler: dotted name of the module that is its `codegen.backends.Backend`.
        choices: values of each field beside the variant, which tuner and checks go through.
        own_variants: those of `VARIANTS` and `BACKWARD_VARIANTS` that it has kernels for.
        first_for: kinds of devices on which it serves a call that names no backend.
        shown_for: name of the device that its kernels are printed for unless another is named.
        templates: folders under templates/; none if its kernels are not rendered.
        writers: modules of codegen.maps.emit, and of codegen.recurrence.emit, that write parts of its kernels.
        emitters: Python files, beside those that all backends share, that decide what its kernels are.
        checks_arguments: whether its kernels refuse tensors that are not as the spec says, before they write anything.
        skips_unwanted: whether its variant `backward` is told which gradients are wanted, and skips the others.
        joins_updates: whether one kernel updates both memories in variant `split`, instead of one launch for each.
        variant: one of `own_variants`.
    """

    backend: ClassVar[str]
    compiler: ClassVar[str]
    choices: ClassVar[dict[str, tuple[Value, ...]]]
    own_variants: ClassVar[tuple[str, ...]]
    first_for: ClassVar[tuple[str, ...]]
    shown_for: ClassVar[str]
    templates: ClassVar[tuple[str, ...]]
    writers: ClassVar[tuple[str, ...]]
    emitters: ClassVar[tuple[Path, ...]]
    checks_arguments: ClassVar[bool]
    skips_unwanted: ClassVar[bool]
    joins_updates: ClassVar[bool]
    variant: str

    def key(self) -> str:
        """Stable text key."""
        return f"{self.backend}:" + ",".join(f"{name}={value}" for name, value in self.settings().items())

    def settings(self) -> dict[str, Value]:
        """The fields as plain data, as a tuning record stores them."""
        return dict(vars(self))

    @classmethod
    def variants_of(cls, operator: str, direction: str = "forward") -> tuple[str, ...]:
        """The variants of `operator` in one of `codegen.spec.DIRECTIONS` that the backend has kernels for."""
        variants = VARIANTS[operator] if direction == "forward" else BACKWARD_VARIANTS.get(operator, ())
        return tuple(variant for variant in variants if variant in cls.own_variants)

    @classmethod
    @abstractmethod
    def default(cls, spec: Spec, device: Device) -> Self:
        """The schedule to use where nothing better is known; always legal where any is."""

    @classmethod
    def unchosen(cls, spec: Spec, device: Device) -> tuple[Self, ...]:
        """What the default would be of each variant that none is of; some may be illegal for `spec`."""
        return ()

    @abstractmethod
    def why_illegal(self, spec: Spec, device: Device) -> str | None:
        """Why the backend's own rules refuse it, in one sentence; None if they do not.

        `codegen.schedules.legality.why_illegal`, which asks this last, is the whole test.
        """

    @classmethod
    def why_untimed(cls, device: Device) -> str | None:
        """Why kernels that run on `device` are not worth measuring there; None if they are."""
        return None

    @abstractmethod
    def brief(self) -> str:
        """What sets the schedule apart from others, so that a row of a table fits on a line."""

    @classmethod
    def templates_on(cls, device: Device) -> str | None:
        """The folder under templates/ that has the kernels for `device`."""
        return next(iter(cls.templates), None)

    def template_variables(self, kernel: str, spec: Spec, device: Device) -> dict[str, object]:
        """What its templates are given besides what all are."""
        return {}

    @abstractmethod
    def of_kernel(self, kernel: str) -> Schedule:
        """What one kernel of an operator with this schedule is itself compiled with."""

    @property
    @abstractmethod
    def tile(self) -> int:
        """Tokens processed at a time."""

    @property
    @abstractmethod
    def row_unit(self) -> int:
        """Numbers that a row of scratch memory is padded to a multiple of."""

    @property
    @abstractmethod
    def segment(self) -> int:
        """How many chunks a backward puts between two states that it keeps."""

    def segment_tokens(self, spec: Spec) -> int:
        """How many tokens lie between two states that are kept: of as many chunks, or as many of any rule."""
        if self.variant in (ONE_PASS, *SUBSTITUTIONS):
            return self.chunk_of(spec)
        return self.segment if spec.problem.operator in FAMILY_OPERATORS else self.segment * spec.problem.chunk

    def chunk_of(self, spec: Spec) -> int:
        """The chunk that its kernels take: C, but where the rule or the variant leaves it free."""
        return kernel_chunk(self.variant, spec)

    @abstractmethod
    def segment_tiles(self, spec: Spec, tokens: int | None = None) -> int:
        """How many tiles a backward walks between two kept states, of sequences of at most so many tokens."""

    @abstractmethod
    def keeps_tile_states(self, spec: Spec) -> bool:
        """Whether a walk back stores the states of the tiles between two kept states."""

    @property
    @abstractmethod
    def dots_in_bfloat16(self) -> bool:
        """Whether what one kernel leaves for the dots of the next is bfloat16, as they round it so."""

    @property
    @abstractmethod
    def keeps_bfloat16(self) -> bool:
        """Whether chunk-start states that no backward needs are kept in bfloat16, as dots round them so."""

    @abstractmethod
    def workers(self, programs: int) -> int:
        """How many of so many programs need scratch memory of their own."""

    def within_threads(self, threads: int, device: Device) -> Schedule:
        """The same on at most so many threads of a CPU; on a GPU, whose threads are no threads of a CPU, as it is."""
        return self

    @property
    def cpu_threads(self) -> int:
        """How many threads of a CPU its kernels keep busy."""
        return 1

    def block_threads(self, device: Device) -> int:
        """How many threads a block has on a GPU."""
        return 1

    def tile_loop(self) -> TileLoop | None:
        """The loop of its GPU kernels; None where nothing is known that a guess at their time could start from."""
        return None

    def counts(self, spec: Spec, extent: Extent) -> dict[str, int]:
        """What its kernels count in 32 bits on a call that reaches so far, each by what it is."""
        return {"programs of a kernel": self.programs(extent), "states to keep": extent.chunks}

    def programs(self, extent: Extent) -> int:
        """Programs of the kernel that has most."""
        programs = extent.sequences * extent.heads
        return programs * max(extent.most_chunks, 2) if self.variant in PARALLEL_OVER_CHUNKS else programs
