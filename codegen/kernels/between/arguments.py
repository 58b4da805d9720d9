"""The arguments of the kernels between the products of a block, and how many programs each has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from codegen.kernels.arguments import FLOAT, IN_PLACE, INPUT, READ, WRITTEN, Argument
from codegen.kernels.layer import arguments as layer
from codegen.kernels.layer.layout import layout_of
from codegen.spec import BETWEEN_OPERATORS, BLOCK_STEP, LOGITS_STEP, MIXER_STEP, NORM_STEP, SWIGLU_STEP, Spec

KERNELS = BETWEEN_OPERATORS
"""Each has the name of its operator."""

VARIANTS = {"norm": NORM_STEP, "mixer": MIXER_STEP, "swiglu": SWIGLU_STEP}
"""Their variants, of one kernel each."""

OWN_AXES = ("projected", "gates", "values", "hidden", "gate_and_up")
"""Axes that only these kernels have."""

FEATURES_OF_PROGRAM = 1024
"""Of the SwiGLU, whose rows several programs share."""

_STREAM, _TAIL = "x", "tail"


def counterpart(spec: Spec) -> Spec:
    """The spec of the kernel of whole layers whose states and vectors these kernels share; of such a kernel its own."""
    if spec.problem.operator not in KERNELS:
        return spec
    operator = LOGITS_STEP if spec.problem.operator == NORM_STEP else BLOCK_STEP
    return replace(spec, problem=replace(spec.problem, operator=operator))


def kernel_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What such a kernel, and its operator, takes and gives, in order.

    `vectors` are those of `counterpart`. `projected` is what one product makes of the normed rows: q and k together, v,
    the target and the gate. `gates` are the maps of the forget gate and of a step size per token, a row for each head;
    their products are part of the kernel. `gate_and_up` are the two maps of the SwiGLU side by side. The tail has the
    type of the rows, as the modules keep it.
    """
    return tuple(_ARGUMENTS[spec.problem.operator](spec))


def length(axis: str, spec: Spec) -> int | None:
    """How long an axis is that only the kernels of layers have; None for any other axis."""
    if axis not in OWN_AXES:
        return layer.length(axis, counterpart(spec))
    problem = spec.problem
    if problem.operator == MIXER_STEP:
        gates = problem.heads * (2 if spec.rule.step_size == "token" else 1)
        return {"projected": _projected(spec), "gates": gates, "values": problem.heads * problem.dim_v}.get(axis)
    if problem.operator == SWIGLU_STEP and problem.layer is not None:
        return {"hidden": problem.layer.hidden, "gate_and_up": 2 * problem.layer.hidden}.get(axis)
    return None


def programs_of_row(spec: Spec) -> int:
    """How many programs of such a kernel share a row."""
    problem = spec.problem
    assert problem.layer is not None
    if problem.operator == MIXER_STEP:
        return problem.heads
    return -(-problem.layer.hidden // FEATURES_OF_PROGRAM) if problem.operator == SWIGLU_STEP else 1


def _projected(spec: Spec) -> int:
    """Numbers of a row of projections: those before the maps of the gates in the order of the whole block."""
    return layout_of(counterpart(spec)).matrices["projections"].start("decay")


def _of_norm(spec: Spec) -> Iterator[Argument]:
    yield Argument(_STREAM, ("sequences", "width"), INPUT, READ)
    yield Argument("vectors", ("packed_vectors",), FLOAT, READ)
    yield Argument("normed", ("sequences", "width"), INPUT, WRITTEN)


def _of_mixer(spec: Spec) -> Iterator[Argument]:
    yield Argument("normed", ("sequences", "width"), INPUT, READ)
    yield Argument("projected", ("sequences", "projected"), INPUT, READ)
    yield Argument("gates", ("gates", "width"), FLOAT, READ)
    yield Argument("vectors", ("packed_vectors",), FLOAT, READ)
    for each in layer.kernel_arguments(counterpart(spec)):
        if each.type == layer.INT64 or (each.access == IN_PLACE and each.name != _STREAM):
            yield replace(each, type=INPUT) if each.name == _TAIL else each
    yield Argument("mixed", ("sequences", "values"), INPUT, WRITTEN)


def _of_swiglu(spec: Spec) -> Iterator[Argument]:
    yield Argument("gate_and_up", ("sequences", "gate_and_up"), INPUT, READ)
    yield Argument("hidden", ("sequences", "hidden"), INPUT, WRITTEN)


_ARGUMENTS = {NORM_STEP: _of_norm, MIXER_STEP: _of_mixer, SWIGLU_STEP: _of_swiglu}
