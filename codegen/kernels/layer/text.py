"""The arguments of the kernels of layers, as their templates write them."""

from __future__ import annotations

from codegen.kernels.arguments import Argument
from codegen.kernels.layer.arguments import BYTES_OF, kernel_arguments, length
from codegen.spec import Spec

_CONSTANTS = {"slots": "M", "dim_k": "D_K", "dim_v": "D_V"}
_SEPARATOR = "\n" + 8 * " "


def of_kernel(spec: Spec) -> dict[str, str]:
    """What a template writes about the arguments, by the names it knows it by; all but the rows are constants."""
    arguments = kernel_arguments(spec)
    parameters = ["programs: T.int32,", *(f"{each.name}_: T.handle," for each in arguments)]
    buffers = ["sequences = T.int32()", *(_buffer(each, spec) for each in arguments)]
    return {"parameters": _SEPARATOR.join(parameters), "buffers": _SEPARATOR.join(buffers)}


def _buffer(argument: Argument, spec: Spec) -> str:
    axes = ", ".join(_extent(axis, spec) for axis in argument.axes) + ("," if len(argument.axes) == 1 else "")
    # A tensor may be a slice of another: aligned to nothing but its numbers.
    align = BYTES_OF[argument.type]
    return f'{argument.name} = T.match_buffer({argument.name}_, ({axes}), "{argument.type}", align={align})'


def _extent(axis: str, spec: Spec) -> str:
    own = length(axis, spec)
    return _CONSTANTS.get(axis, axis) if own is None else str(own)
