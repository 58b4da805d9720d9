"""The arguments of the kernel whose states lie in a pool, as its templates write them."""

from __future__ import annotations

from collections.abc import Callable

from codegen.device import Device
from codegen.kernels.arguments import BYTES_OF, INPUT, Argument
from codegen.kernels.pool.arguments import CAPACITY, STRIDE, kernel_arguments
from codegen.kernels.signatures import dtype_of
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

_CONSTANTS = {"slots": "M", "dim_k": "D_K", "dim_v": "D_V", "window": "WINDOW"}
_OF_CALL = {"heads": "T.int64()", "tokens": "T.int32()", "sequences": "T.int32()", "offsets": "T.int32()"}
"""Sizes that the tensors of a call decide. Every offset has the heads, or a stride, as a factor of 64 bits."""


def of_kernel(spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    """What a template writes about the arguments, by the names it knows it by, as its folder's language is."""
    folder = schedule.templates_on(device)
    return {} if folder is None else _WRITERS[folder](spec, schedule)


def _of_triton(spec: Spec, schedule: Schedule) -> dict[str, str]:
    names = [f"{each.name}_ptr" if each.is_tensor else each.name for each in kernel_arguments(spec)]
    return {"parameters": _lines([f"{name}," for name in (*names, "H")], 4), "numbers": _numbers(spec)}


def _of_tvm(spec: Spec, schedule: Schedule) -> dict[str, str]:
    return {"parameters": _lines(_tvm_parameters(spec), 8), "buffers": _lines(_tvm_buffers(spec, schedule), 8)}


_WRITERS: dict[str, Callable[[Spec, Schedule], dict[str, str]]] = {"triton": _of_triton, "tvm": _of_tvm}
"""What writes arguments for each folder of templates that has the kernel."""


def _lines(lines: list[str], indent: int) -> str:
    return ("\n" + " " * indent).join(lines)


def _numbers(spec: Spec) -> str:
    """The names of plain numbers, none of which Triton may compile a kernel of its own for."""
    names = [each.name for each in kernel_arguments(spec) if not each.is_tensor]
    return _lines([f'"{name}",' for name in (*names, "H")], 8)


def _tvm_parameters(spec: Spec) -> list[str]:
    lines = ["programs: T.int32,"]
    for each in kernel_arguments(spec):
        number = "T.int64" if each.name.endswith(STRIDE) or each.name == CAPACITY else "T.int32"
        lines.append(f"{each.name}_: T.handle," if each.is_tensor else f"{each.name}: {number},")
    return lines


def _tvm_buffers(spec: Spec, schedule: Schedule) -> list[str]:
    lines = [f"{', '.join(_OF_CALL)} = {', '.join(_OF_CALL.values())}"]
    return lines + [_buffer(each, spec, schedule) for each in kernel_arguments(spec) if each.is_tensor]


def _buffer(argument: Argument, spec: Spec, schedule: Schedule) -> str:
    sizes = [_CONSTANTS.get(axis, axis) for axis in argument.axes]
    shape = ", ".join(sizes) + ("," if len(sizes) == 1 else "")
    dtype = dtype_of(argument, spec, schedule)
    # A tensor may be a slice of another: aligned to nothing but its numbers.
    align = BYTES_OF[dtype] if argument.type == INPUT else 4
    if argument.axes[0] == CAPACITY:
        return _strided(argument, sizes, dtype)
    return f'{argument.name} = T.match_buffer({argument.name}_, ({shape}), "{dtype}", align={align})'


def _strided(argument: Argument, sizes: list[str], dtype: str) -> str:
    """A pool, whose slots may lie apart. Where a buffer has strides, TVM takes sizes and strides of one type only."""
    first, heads, *inner = sizes
    dense = [f"T.int64({' * '.join(inner[place:]) or 1})" for place in range(len(inner) + 1)]
    shape = ", ".join((first, heads, *(f"T.int64({size})" for size in inner)))
    strides = ", ".join((f"{argument.name}{STRIDE}", *dense))
    lines = [f'{argument.name}_, ({shape}), "{dtype}",', f"strides=[{strides}], align=4,"]
    return _lines([f"{argument.name} = T.match_buffer(", *lines], 12) + "\n" + 8 * " " + ")"
