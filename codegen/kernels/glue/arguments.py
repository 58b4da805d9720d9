"""The arguments of the kernels between the products of a block, and of their reverse passes.

`memory_inputs` makes q, k and v of the projections of a token mixer, `gated_norm` what its output map reads of the
memories' y and of the gate, `swiglu_gate` what the last map of a feed-forward reads, and `rms_norm` and `add_rms_norm`
what the first maps of both read of the residual stream.
"""

from __future__ import annotations

from codegen.kernels.arguments import FLOAT, INPUT, INT, READ, WRITTEN, Argument
from codegen.spec import GLUE_OPERATORS, Spec

KERNELS = GLUE_OPERATORS
"""Each has the name of its operator."""

VARIANTS = {name: name for name in KERNELS}
"""And so has its one variant."""

OWN_AXES = ("taps", "tail", "one")
"""Axes whose lengths `length` knows."""

BACKWARD = "_backward"
"""What the name of a reverse pass ends with."""

_KEYS, _VALUES = ("tokens", "heads", "dim_k"), ("tokens", "heads", "dim_v")
_ROWS = ("tokens", "heads")
_TAPS, _TAILS = ("heads", "dim_k", "taps"), ("sequences", "tail", "heads", "dim_k")
_EPS = Argument("eps", ("one",), FLOAT, READ)


def is_of_glue(spec: Spec) -> bool:
    """Whether an operator stands between the products of a block."""
    return spec.problem.operator in GLUE_OPERATORS


def kernel_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What such a kernel takes and gives, in order.

    `tails` are the inputs of the convolutions before the first token of each sequence, `tails_after` those that the
    token after its last one sees. Where rows have no heads, their second axis is how many numbers they have.
    A reverse pass takes what the forward was given and the cotangents of its results, and gives those of the rest.
    """
    operator = spec.problem.operator
    forward = operator.removesuffix(BACKWARD)
    read, made = _of_forward(forward, spec)
    if operator == forward:
        return (*read, *(Argument(name, axes, INPUT, WRITTEN) for name, axes in made.items()))
    incoming = (Argument(f"d{name}", axes, INPUT, READ) for name, axes in made.items())
    outgoing = (Argument(f"d{each.name}", each.axes, INPUT, WRITTEN) for each in read if each.type == INPUT)
    return (*read, *incoming, *outgoing)


def operator_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What the operator takes and gives, besides the offsets of sequences."""
    return tuple(each for each in kernel_arguments(spec) if each.type != INT)


def length(axis: str, spec: Spec) -> int | None:
    """How long an axis is that only these kernels have; None for any other axis."""
    if axis == "one":
        return 1
    maps = spec.problem.inputs
    return None if maps is None else {"taps": maps.taps, "tail": maps.taps - 1}.get(axis)


def _of_forward(operator: str, spec: Spec) -> tuple[tuple[Argument, ...], dict[str, tuple[str, ...]]]:
    """What a forward reads, and the results that it makes, with their axes."""
    if operator == "memory_inputs":
        return _of_inputs(spec)
    if operator == "gated_norm":
        y, gate = (Argument(name, _VALUES, INPUT, READ) for name in ("y", "gate"))
        return (y, gate, Argument("weight", ("dim_v",), INPUT, READ), _EPS), {"mixed": _VALUES}
    if operator == "swiglu_gate":
        return tuple(Argument(name, _ROWS, INPUT, READ) for name in ("gate", "up")), {"hidden": _ROWS}
    weight = Argument("weight", ("heads",), INPUT, READ)
    if operator == "add_rms_norm":
        x, more = (Argument(name, _ROWS, INPUT, READ) for name in ("x", "more"))
        return (x, more, weight, _EPS), {"added": _ROWS, "normed": _ROWS}
    return (Argument("x", _ROWS, INPUT, READ), weight, _EPS), {"normed": _ROWS}


def _of_inputs(spec: Spec) -> tuple[tuple[Argument, ...], dict[str, tuple[str, ...]]]:
    assert spec.problem.inputs is not None
    with_values = spec.problem.inputs.unit_values
    axes: dict[str, tuple[str, ...]] = {"shared": _KEYS, **({"v": _VALUES} if with_values else {})}
    axes |= {"taps_q": _TAPS, "taps_k": _TAPS, "tails": _TAILS}
    read = [Argument(name, its, INPUT, READ) for name, its in axes.items()]
    made = {"q": _KEYS, "k": _KEYS, **({"unit_v": _VALUES} if with_values else {}), "tails_after": _TAILS}
    return (*read, Argument("cu_seqlens", ("offsets",), INT, READ), _EPS), made
