"""The arguments of a kernel as its source writes them, indented as a template has them: parameters, TVM's buffers."""

from __future__ import annotations

from collections.abc import Callable

from codegen.device import Device
from codegen.kernels.arguments import BYTES_OF, INPUT, Argument
from codegen.kernels.signatures import dtype_of, kernel_arguments
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec

_SEPARATOR_OF_TRITON, _SEPARATOR_OF_TVM = "\n" + 4 * " ", "\n" + 8 * " "
_NAMES_TO_A_LINE = 4
_CONSTANTS = {
    **{"slots": "M", "dim_k": "D_K", "dim_v": "D_V", "workers": "THREADS"},
    **{"window": "WINDOW", "steps": "STEPS"},
}
_OF_ONE_MEMORY = ("memory_update", "memory_readout", "memory_readout_transposed")


def of_kernel(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    """What a template writes about its kernel's arguments, by the names it knows it by, as its folder's language is."""
    folder = schedule.templates_on(device)
    return {} if folder is None else _WRITERS[folder](kernel, spec, schedule, device)


def triton_parameters(kernel: str, spec: Spec, schedule: Schedule) -> str:
    """A line for each parameter of a Triton kernel; tensors are pointers."""
    names = [
        f"{argument.name}_ptr" if argument.is_tensor else argument.name
        for argument in kernel_arguments(kernel, spec, schedule)
    ]
    return _SEPARATOR_OF_TRITON.join(f"{name}," for name in (*names, "H"))


def tvm_parameters(kernel: str, spec: Spec, schedule: Schedule) -> str:
    """A line for each parameter of a TVM kernel, the number of programs first; tensors are handles."""
    lines = ["programs: T.int32"]
    for argument in kernel_arguments(kernel, spec, schedule):
        lines.append(f"{argument.name}_: T.handle" if argument.is_tensor else f"{argument.name}: T.int32")
    return _SEPARATOR_OF_TVM.join(f"{line}," for line in lines)


def tvm_buffers(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> str:
    """The statements that give a TVM kernel's handles their shapes, of which unknown sizes are named first."""
    arguments = [argument for argument in kernel_arguments(kernel, spec, schedule) if argument.is_tensor]
    shapes = [[_extent(axis, spec, schedule) for axis in argument.axes] for argument in arguments]
    unknown = [size for size in dict.fromkeys(size for shape in shapes for size in shape) if size.islower()]
    lines = [
        f"{', '.join(few)} = {', '.join(_kind(size, device) for size in few)}"
        for few in (unknown[i : i + _NAMES_TO_A_LINE] for i in range(0, len(unknown), _NAMES_TO_A_LINE))
    ]
    for argument, shape in zip(arguments, shapes, strict=True):
        lines.append(_buffer(argument, shape, dtype_of(argument, spec, schedule)))
    return _SEPARATOR_OF_TVM.join(lines)


def _of_triton(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    return {"parameters": triton_parameters(kernel, spec, schedule)}


def _of_tvm(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    return {
        "parameters": tvm_parameters(kernel, spec, schedule),
        "buffers": tvm_buffers(kernel, spec, schedule, device),
    }


_WRITERS: dict[str, Callable[[str, Spec, Schedule, Device], dict[str, str]]] = {
    "triton": _of_triton,
    "tvm": _of_tvm,
    "tvm_cuda": _of_tvm,
}
"""What writes arguments for each folder of templates."""


def _kind(size: str, device: Device) -> str:
    # On a CPU every offset has one of these as a factor, and is a number of 64 bits for it.
    return "T.int64()" if device.kind == "cpu" and size in ("heads", "tiles") else "T.int32()"


def _extent(axis: str, spec: Spec, schedule: Schedule) -> str:
    """A size as the source calls it: a constant of the file, a number, or a name that the call decides."""
    if axis in ("dim_k", "dim_v") and spec.problem.operator in _OF_ONE_MEMORY:
        return "D"
    if axis.startswith("padded_"):
        width = schedule.row_unit
        return str(-(-int(getattr(spec.problem, axis.removeprefix("padded_"))) // width) * width)
    return _CONSTANTS.get(axis, axis)


def _buffer(argument: Argument, shape: list[str], dtype: str) -> str:
    axes = ", ".join(shape) + ("," if len(shape) == 1 else "")
    # A tensor may be a slice of another: aligned to nothing but its numbers.
    align = BYTES_OF[dtype] if argument.type == INPUT else 4
    return f'{argument.name} = T.match_buffer({argument.name}_, ({axes}), "{dtype}", align={align})'
