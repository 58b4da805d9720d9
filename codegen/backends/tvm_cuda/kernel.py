"""Kernels of CUDA that the driver has loaded, and where they run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codegen.backends.tvm_cuda.driver import CudaDriver, CudaFunction
from codegen.backends.tvm_cuda.launch import LaunchPlan
from codegen.errors import KernelArgumentError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """Where kernels run: a card, through the driver.

    Attributes:
        driver: that loads and launches.
        where: tensors must be there.
        stream: the handle of the stream that a launch goes to, asked at each.
    """

    driver: CudaDriver
    where: torch.device
    stream: Callable[[], int]

    def kernel(self, image: bytes, plan: LaunchPlan) -> CudaKernel:
        """The kernel of some machine code, loaded there.

        Raises:
            CudaDriverError: the driver refused it.
        """
        function = self.driver.function(image, plan.function, plan.shared_bytes, self.where.index or 0)
        return CudaKernel(plan, function, self)


@dataclass(frozen=True)
class CudaKernel:
    """A loaded kernel; calling it checks its arguments and puts one launch on the current stream."""

    plan: LaunchPlan
    function: CudaFunction
    place: Place

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Launch `programs` blocks; none if there is nothing to do, which the driver would call an error."""
        launch = self.plan.launch((programs, *arguments), self.place.where)
        if 0 not in launch.grid:
            self.function.launch(launch, self.place.stream())


@dataclass(frozen=True)
class CompiledCuda:
    """A compiled kernel, which is loaded on a card by the first call with tensors there.

    Attributes:
        plan: how calls of it become launches.
        image: its machine code.
    """

    plan: LaunchPlan
    image: bytes = field(repr=False)
    _loaded: dict[torch.device, CudaKernel] = field(default_factory=dict, repr=False)

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run `programs` independent programs on the card of the arguments, on its current stream.

        Raises:
            KernelArgumentError: no argument is a tensor.
            CudaDriverError: the driver refused the kernel, or the launch.
        """
        import torch

        where = next((each.device for each in arguments if isinstance(each, torch.Tensor)), None)
        if where is None:
            given = f"{len(arguments)} arguments, none of them a tensor"
            raise KernelArgumentError(kernel=self.plan.function, problem=given, expected="those of its plan")
        kernel = self._loaded.get(where)
        if kernel is None:
            kernel = self._loaded.setdefault(where, place_of(where).kernel(self.image, self.plan))
        kernel(programs, *arguments)


def place_of(where: torch.device) -> Place:
    """The card that `where` names, with torch's current stream of it."""
    import torch

    return Place(_driver(), where, lambda: int(torch.cuda.current_stream(where).cuda_stream))


@functools.cache
def _driver() -> CudaDriver:
    return CudaDriver()
