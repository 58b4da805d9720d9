"""The arguments of the kernels that take a whole block, or the map to logits, one token further."""

from __future__ import annotations

from collections.abc import Iterator

from codegen.kernels import arguments as all_arguments
from codegen.kernels.arguments import FLOAT, IN_PLACE, READ, WRITTEN, Argument
from codegen.kernels.layer.layout import layout_of
from codegen.spec import BLOCK_STEP, LOGITS_STEP, Spec

KERNELS = (BLOCK_STEP, LOGITS_STEP)
"""Each has the name of its operator."""

VARIANTS = {"block": BLOCK_STEP, "logits": LOGITS_STEP}
"""Their variants, of one kernel each."""

INT64, WEIGHTS = "int64", "weights"
BYTES_OF = {**all_arguments.BYTES_OF, INT64: 8, "int8": 1}
"""Of one number of each type that these kernels have."""

OWN_AXES = ("width", "vocabulary", "keys", "tail", "heads", "packed", "packed_vectors")
"""Axes whose lengths `length` knows: `packed` and `packed_vectors` are what `codegen.kernels.layer.layout` has."""

CAPACITY = "capacity"
"""The first axis of a pool."""

CHUNK_START = "G_"
"""What the name of a memory as it was at the chunk's start begins with, in the place of `S_`."""

_MEMORIES = {"k": ("heads", "slots", "dim_k"), "v": ("heads", "slots", "dim_v")}
_STREAM = "x"


def kernel_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What such a kernel, and its operator, takes and gives, in order.

    `x` is the residual stream, a row for each sequence. `positions` are tokens since the start of the chunk: where they
    are 0 the block keeps its states as those of the chunk's start. Where states lie in pools, `state_indices` has the
    slot of each sequence, which no other has, and `positions` may be tokens since the start of the sequence.
    """
    return tuple(_of_logits(spec) if spec.problem.operator == LOGITS_STEP else _of_block(spec))


def state_names(spec: Spec) -> tuple[str, ...]:
    """The states of a block in the order of its arguments: all that it moves but the residual stream."""
    return tuple(each.name for each in _of_block(spec) if each.access == IN_PLACE and each.name != _STREAM)


def length(axis: str, spec: Spec) -> int | None:
    """How long an axis is that only these kernels have; None for any other axis."""
    problem = spec.problem
    layer = problem.layer
    if layer is None:
        return None
    lengths = {
        "width": layer.width,
        "vocabulary": layer.hidden,
        "keys": problem.heads * problem.dim_k,
        "tail": layer.taps - 1,
        "heads": problem.heads,
    }
    if axis in ("packed", "packed_vectors"):
        layout = layout_of(spec)
        return layout.numbers if axis == "packed" else layout.vector_numbers
    return lengths.get(axis)


def _packed(spec: Spec) -> Iterator[Argument]:
    assert spec.problem.layer is not None
    yield Argument(WEIGHTS, ("packed",), spec.problem.layer.weights, READ)
    yield Argument("vectors", ("packed_vectors",), FLOAT, READ)


def _of_block(spec: Spec) -> Iterator[Argument]:
    assert spec.problem.layer is not None
    rows = CAPACITY if spec.problem.layer.pooled else "sequences"
    yield Argument(_STREAM, ("sequences", "width"), FLOAT, IN_PLACE)
    if spec.problem.chunk > 1:
        yield Argument("positions", ("sequences",), INT64, READ)
    if spec.problem.layer.pooled:
        yield Argument("state_indices", ("sequences",), INT64, READ)
    for name, axes in _MEMORIES.items():
        yield Argument(f"S_{name}", (rows, *axes), FLOAT, IN_PLACE)
    if spec.problem.chunk > 1:
        for name, axes in _MEMORIES.items():
            yield Argument(f"{CHUNK_START}{name}", (rows, *axes), FLOAT, IN_PLACE)
    yield Argument("tail", (rows, "tail", "keys"), FLOAT, IN_PLACE)
    yield from _packed(spec)


def _of_logits(spec: Spec) -> Iterator[Argument]:
    yield Argument(_STREAM, ("sequences", "width"), FLOAT, READ)
    yield from _packed(spec)
    yield Argument("logits", ("sequences", "vocabulary"), FLOAT, WRITTEN)
