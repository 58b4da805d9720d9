"""The arguments and the launches of every kernel, whatever module declares it."""

from __future__ import annotations

from codegen.kernels import exact_update, launches, signatures
from codegen.kernels.arguments import Argument
from codegen.kernels.between import arguments as between
from codegen.kernels.glue import arguments as glue
from codegen.kernels.launches import Launch
from codegen.kernels.layer import arguments as layer
from codegen.kernels.pool import arguments as pool
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec


def kernel_arguments(kernel: str, spec: Spec, schedule: Schedule) -> tuple[Argument, ...]:
    """The arguments of a kernel, compiled for `spec` by `schedule`, in order.

    Raises:
        UnknownKernelError: no kernel has that name.
    """
    if kernel in layer.KERNELS:
        return layer.kernel_arguments(spec)
    if kernel in between.KERNELS:
        return between.kernel_arguments(spec)
    if kernel in glue.KERNELS:
        return glue.kernel_arguments(spec)
    if kernel == exact_update.KERNEL:
        return exact_update.kernel_arguments(spec, schedule)
    return pool.kernel_arguments(spec) if kernel == pool.KERNEL else signatures.kernel_arguments(kernel, spec, schedule)


def operator_arguments(spec: Spec) -> tuple[Argument, ...]:
    """What the operator of `spec` takes and gives, however it is compiled."""
    if spec.problem.operator in between.KERNELS:
        return between.kernel_arguments(spec)
    if spec.problem.layer is not None:
        return layer.kernel_arguments(spec)
    if glue.is_of_glue(spec):
        return glue.operator_arguments(spec)
    return pool.operator_arguments(spec) if pool.is_of_pool(spec) else signatures.operator_arguments(spec)


def launches_of(variant: str, backend: str) -> tuple[Launch, ...]:
    """The launches of a variant.

    Raises:
        UnknownBackendError: no such backend.
    """
    exact = exact_update.VARIANTS.get(variant)
    if exact is not None:
        return exact
    named = {**pool.VARIANTS, **layer.VARIANTS, **between.VARIANTS, **glue.VARIANTS}
    own = named.get(variant)
    return launches.launches_of(variant, backend) if own is None else (Launch(own),)


def launches_for(spec: Spec, schedule: Schedule) -> tuple[Launch, ...]:
    """The launches of an operator of `spec`, compiled by `schedule`."""
    return launches_of(schedule.variant, schedule.backend)


def kernels_of(variant: str, backend: str) -> tuple[str, ...]:
    """The templates that a variant is made of, each once."""
    return tuple(dict.fromkeys(launch.kernel for launch in launches_of(variant, backend)))


def is_of_a_backward(kernel: str) -> bool:
    """Whether only a reverse pass has that kernel.

    Raises:
        UnknownKernelError: no variant launches it.
    """
    others = (pool.KERNEL, exact_update.KERNEL, *layer.KERNELS, *between.KERNELS, *glue.KERNELS)
    return kernel not in others and launches.is_of_a_backward(kernel)
