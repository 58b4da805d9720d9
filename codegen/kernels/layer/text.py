"""The arguments of the kernels of layers, as their templates write them."""

from __future__ import annotations

from collections.abc import Sequence

from codegen.kernels.arguments import Argument
from codegen.kernels.layer.arguments import BYTES_OF, CAPACITY, kernel_arguments, length
from codegen.spec import Spec

_CONSTANTS = {"slots": "M", "dim_k": "D_K", "dim_v": "D_V"}
_SEPARATOR = "\n" + 8 * " "
_STRIDE = "_stride"


def of_kernel(spec: Spec) -> dict[str, str]:
    """What a template writes about the arguments, by the names it knows it by; all but the rows are constants."""
    arguments = kernel_arguments(spec)
    parameters = ["programs: T.int32,", *(f"{each.name}_: T.handle," for each in arguments)]
    buffers = ["sequences = T.int32()", *_of_pools(arguments), *(_buffer(each, spec) for each in arguments)]
    return {"parameters": _SEPARATOR.join(parameters), "buffers": _SEPARATOR.join(buffers)}


def _of_pools(arguments: Sequence[Argument]) -> list[str]:
    """What the pools of a call decide: how many slots they have, and how many numbers lie between two of each."""
    pools = [each.name for each in arguments if each.axes[0] == CAPACITY]
    return [f"{name} = T.int64()" for name in ([CAPACITY] if pools else []) + [f"{name}{_STRIDE}" for name in pools]]


def _buffer(argument: Argument, spec: Spec) -> str:
    if argument.axes[0] == CAPACITY:
        return _pool(argument, spec)
    axes = ", ".join(_extent(axis, spec) for axis in argument.axes) + ("," if len(argument.axes) == 1 else "")
    # A tensor may be a slice of another: aligned to nothing but its numbers.
    align = BYTES_OF[argument.type]
    return f'{argument.name} = T.match_buffer({argument.name}_, ({axes}), "{argument.type}", align={align})'


def _pool(argument: Argument, spec: Spec) -> str:
    """A pool, whose slots may lie apart. Where a buffer has strides, TVM takes sizes and strides of one type only."""
    first, *inner = (_extent(axis, spec) for axis in argument.axes)
    dense = [f"T.int64({' * '.join(inner[place:]) or 1})" for place in range(1, len(inner) + 1)]
    shape = ", ".join((first, *(f"T.int64({size})" for size in inner)))
    strides = ", ".join((f"{argument.name}{_STRIDE}", *dense))
    lines = (
        f'{argument.name}_, ({shape}), "{argument.type}",',
        f"strides=[{strides}], align={BYTES_OF[argument.type]},",
    )
    inside = "".join(f"{_SEPARATOR}    {line}" for line in lines)
    return f"{argument.name} = T.match_buffer({inside}{_SEPARATOR})"


def _extent(axis: str, spec: Spec) -> str:
    own = length(axis, spec)
    return _CONSTANTS.get(axis, axis) if own is None else str(own)
