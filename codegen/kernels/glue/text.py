"""The arguments of the kernels between the products of a block, as their templates write them."""

from __future__ import annotations

from codegen.kernels.arguments import BYTES_OF, INPUT, Argument
from codegen.kernels.glue.arguments import kernel_arguments, length
from codegen.spec import Spec

_CONSTANTS = {"dim_k": "D_K", "dim_v": "D_V"}
_WIDE = ("tokens", "heads")
"""Sizes that every offset has one of as a factor: numbers of 64 bits."""

_SEPARATOR = "\n" + 8 * " "


def of_kernel(spec: Spec) -> dict[str, str]:
    """What a template writes about the arguments, by the names it knows it by."""
    arguments = kernel_arguments(spec)
    parameters = ["programs: T.int32,", *(f"{each.name}_: T.handle," for each in arguments)]
    sizes = dict.fromkeys(axis for each in arguments for axis in each.axes if _is_of_call(axis, spec))
    kinds = ["T.int64()" if size in _WIDE else "T.int32()" for size in sizes]
    buffers = [f"{', '.join(sizes)} = {', '.join(kinds)}", *(_buffer(each, spec) for each in arguments)]
    return {"parameters": _SEPARATOR.join(parameters), "buffers": _SEPARATOR.join(buffers)}


def _is_of_call(axis: str, spec: Spec) -> bool:
    return axis not in _CONSTANTS and length(axis, spec) is None


def _buffer(argument: Argument, spec: Spec) -> str:
    sizes = [_CONSTANTS.get(axis, str(length(axis, spec) or axis)) for axis in argument.axes]
    shape = ", ".join(sizes) + ("," if len(sizes) == 1 else "")
    dtype = spec.problem.dtype if argument.type == INPUT else argument.type
    # A tensor may be a slice of another: aligned to nothing but its numbers.
    return f'{argument.name} = T.match_buffer({argument.name}_, ({shape}), "{dtype}", align={BYTES_OF[dtype]})'
