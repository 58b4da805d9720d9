"""Which kernel takes a layer of a model one token further: a tuned winner, the default, or none."""

from __future__ import annotations

from dataclasses import replace

import torch

from codegen.backends import Kernel
from codegen.device import cpu
from codegen.schedules.registry import first_choice
from codegen.spec import Spec, of_rows
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch.resolve import Resolution, forced_implementation, resolve
from trellis_ops.dispatch.served import operator_of
from trellis_ops.specs import recorded


def resolved(spec: Spec) -> Resolution:
    """What serves `spec` on the threads that torch may use: a backend with a schedule, or eager and why."""
    forced = forced_implementation(None)
    # Triton has no kernel of whole blocks: whoever asked for it still gets its kernels of the memories.
    own = forced if forced in (None, "eager", first_choice(cpu())) else "eager"
    return resolve(Request(spec, torch.device("cpu"), float64=False), own)


def kernel_of(spec: Spec) -> Kernel | None:
    """The kernel of `spec` on the threads that torch may use, which is recorded; None where modules have to compute it.

    Raises:
        TrellisError: it does not compile.
    """
    operator = operator_of(resolved(spec), spec)
    if operator is None:
        return None
    # What is tuned for rows serves pools.
    recorded.record(replace(spec, problem=of_rows(spec.problem)), "cpu")
    return operator.kernels[0]
