"""What one call of an exported CUDA kernel launches: which addresses and numbers, on what grid.

TVM's host function decides this where TVM is; exported, it is data, and the checks that TVM makes are made here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from codegen.errors import DtypeError, KernelArgumentError, KernelDeviceError, LayoutError, ShapeError

if TYPE_CHECKING:
    import torch

Size = int | str
"""A number, or the name of one: of an argument, or of a size that tensors have in common."""

Extent = tuple[Size, Size, Size]

_MOST_NUMBERS = 2**31 - 1

_Identifier = msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=128)


class Argument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the kernel is called with at one place.

    Attributes:
        name: as the template calls it.
        dtype: as torch calls it; a plain number is "int32".
        shape: of a tensor; None for a plain number.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...] | None = None


@dataclass(frozen=True)
class Launch:
    """One launch, worked out.

    Attributes:
        values: of the CUDA function's parameters, in its order.
        are_addresses: which of them are addresses; the others are 32-bit integers.
        grid, block: blocks of the grid, threads of a block, along x, y and z.
    """

    values: tuple[int, ...]
    are_addresses: tuple[bool, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


class LaunchPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """How calls of a kernel become launches.

    Attributes:
        function: name of the CUDA function.
        arguments: of the kernel, the number of programs first.
        passed: the CUDA function's parameters in its order, by the names of arguments and sizes.
        grid, block: blocks of the grid, threads of a block, along x, y and z.
        shared_bytes: dynamic shared memory of a block.
    """

    function: Annotated[str, _Identifier]
    arguments: tuple[Argument, ...]
    passed: tuple[str, ...]
    grid: Extent
    block: Extent
    shared_bytes: int

    def launch(self, given: Sequence[torch.Tensor | int], where: torch.device) -> Launch:
        """The launch of a call with `given`, tensors on `where`.

        Raises:
            KernelArgumentError: more or fewer arguments, or a number where a tensor belongs or the other way round.
            DtypeError, KernelDeviceError, LayoutError, ShapeError: a tensor that the kernel cannot take.
        """
        if len(given) != len(self.arguments):
            names = ", ".join(each.name for each in self.arguments)
            raise KernelArgumentError(kernel=self.function, problem=f"{len(given)} arguments", expected=names)
        numbers: dict[str, int] = {}
        addresses: dict[str, int] = {}
        for argument, value in zip(self.arguments, given, strict=True):
            if argument.shape is None:
                numbers[argument.name] = _number(self.function, argument, value)
            else:
                addresses[argument.name] = _address(self.function, argument, value, where, numbers)
        values = addresses | numbers
        passed = tuple(values[name] for name in self.passed)
        return Launch(passed, self._are_addresses, _resolved(self.grid, numbers), _resolved(self.block, numbers))

    @functools.cached_property
    def _are_addresses(self) -> tuple[bool, ...]:
        tensors = {each.name for each in self.arguments if each.shape is not None}
        return tuple(name in tensors for name in self.passed)


def _number(function: str, argument: Argument, value: torch.Tensor | int) -> int:
    if not isinstance(value, int):
        problem = f"{argument.name} of type {type(value).__name__}"
        raise KernelArgumentError(kernel=function, problem=problem, expected="a whole number there")
    if not 0 <= value <= _MOST_NUMBERS:
        raise KernelArgumentError(kernel=function, problem=f"{argument.name}={value}", expected="0 to 2**31 - 1")
    return value


def _address(
    function: str, argument: Argument, value: torch.Tensor | int, where: torch.device, numbers: dict[str, int]
) -> int:
    if isinstance(value, int):
        problem = f"{argument.name}={value}"
        raise KernelArgumentError(kernel=function, problem=problem, expected="a tensor there")
    name = argument.name
    if value.device != where:
        raise KernelDeviceError(name=name, device=value.device, expected=where)
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != argument.dtype:
        raise DtypeError(name=name, dtype=dtype, expected=argument.dtype)
    _match(argument, tuple(value.shape), numbers)
    if not value.is_contiguous():
        raise LayoutError(name=name, strides=value.stride())
    return value.data_ptr()


def _match(argument: Argument, shape: tuple[int, ...], numbers: dict[str, int]) -> None:
    """Compare a tensor's shape with what it should be; sizes that are named there first are kept in `numbers`."""
    assert argument.shape is not None
    if len(shape) == len(argument.shape):
        expected = tuple(
            numbers.setdefault(size, given) if isinstance(size, str) else size
            for size, given in zip(argument.shape, shape, strict=True)
        )
        if shape != expected:
            raise ShapeError(name=argument.name, shape=shape, expected=expected)
    else:
        raise ShapeError(name=argument.name, shape=shape, expected=f"{len(argument.shape)} dimensions")
    # Offsets in the kernel are 32-bit integers.
    if functools.reduce(int.__mul__, shape, 1) > _MOST_NUMBERS:
        raise ShapeError(name=argument.name, shape=shape, expected="fewer than 2**31 numbers; split the call")


def _resolved(extent: Extent, numbers: dict[str, int]) -> tuple[int, int, int]:
    x, y, z = (numbers[size] if isinstance(size, str) else size for size in extent)
    return x, y, z
