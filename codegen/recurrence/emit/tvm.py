"""The kernels of any rule for CPUs, as the templates of TVM write them."""

from __future__ import annotations

from codegen.recurrence.emit.tvm_backward import Backward
from codegen.recurrence.emit.tvm_forward import Forward
from codegen.recurrence.emit.tvm_kernel import Kernel
from codegen.spec import Spec


def kernel(kernel: str, spec: Spec) -> Kernel:
    """What the template of one of `codegen.kernels.rule_arguments.KERNELS` is given as `token`."""
    return Forward(spec) if kernel == "recurrence" else Backward(spec)
