"""What TVM's own host function of a CUDA kernel launches: it is run here, on tensors that it is told are on a card.

Run it in a process of its own: the CUDA function and what selects a card are replaced in TVM's registry.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from codegen.backends.tvm.executable import executable
from codegen.backends.tvm.launch import lowered
from codegen.backends.tvm_cuda.launch import LaunchPlan
from codegen.device import NAMED
from codegen.kernels.build import parts
from codegen.render import render
from codegen.schedules.registry import default
from codegen.spec import Spec

HOPPER = NAMED["sm_90"]
_CUDA, _TYPE, _INDEX = 2, 8, 12  # In a DLTensor: the card's kind, and where kind and number lie, in bytes.

Launched = tuple[int, ...]


def both_launches(spec: Spec, sizes: Sequence[dict[str, int]]) -> list[tuple[Launched, Launched]]:
    """For each kernel of the default and each set of sizes: the numbers of TVM's launch, and those of the plan's.

    They are the CUDA function's parameters, the extents that TVM gives, and the bytes of shared memory.
    """
    schedule = default("tvm", spec, HOPPER)
    found = []
    for kernel, part in dict.fromkeys(parts(spec, schedule)):
        source = render(kernel, part, schedule, HOPPER)
        plan = lowered(source, HOPPER).plan
        host, launched = _host(executable(source, HOPPER), kernel, plan.function)
        for each in sizes:
            arguments = _arguments(plan, each)
            host(*(_on_a_card(one) if isinstance(one, torch.Tensor) else one for one in arguments))
            (given,) = launched
            launched.clear()
            launch = plan.launch(arguments, torch.device("cpu"))
            own = (*launch.values, launch.grid[0], launch.block[0], plan.shared_bytes)
            found.append((tuple(getattr(one, "value", one) or 0 for one in given), own))
    return found


def _host(made: Any, kernel: str, function: str) -> tuple[Any, list[tuple[Any, ...]]]:
    import tvm_ffi

    launched: list[tuple[Any, ...]] = []

    def launch(*given: Any) -> int:
        launched.append(given)
        return 0

    tvm_ffi.register_global_func(function, launch, override=True)
    tvm_ffi.register_global_func("__tvm_set_device", lambda *_: None, override=True)
    # Without the module of the card's code its function is looked up in the registry.
    made.mod.clear_imports()
    return made.jit()[kernel], launched


def _arguments(plan: LaunchPlan, sizes: dict[str, int]) -> list[torch.Tensor | int]:
    return [
        sizes[each.name]
        if each.shape is None
        else torch.zeros(
            [sizes[size] if isinstance(size, str) else size for size in each.shape], dtype=getattr(torch, each.dtype)
        )
        for each in plan.arguments
    ]


class _Capsule:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(self, **_: object) -> object:
        capsule = torch.utils.dlpack.to_dlpack(self.tensor)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        address = pointer(capsule, b"dltensor")
        ctypes.c_int32.from_address(address + _TYPE).value = _CUDA
        ctypes.c_int32.from_address(address + _INDEX).value = 0
        return capsule


def _on_a_card(tensor: torch.Tensor) -> Any:
    import tvm_ffi

    return tvm_ffi.from_dlpack(_Capsule(tensor))
