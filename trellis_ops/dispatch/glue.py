"""Which kernel serves a call between the products of a block: found once for its sizes, its type and its threads."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from codegen.backends import Kernel
from codegen.input_maps import InputMaps
from codegen.limits.extent import MOST
from codegen.rule import Rule
from codegen.spec import MAX_DIM, Problem, Spec
from trellis_ops.calls.checks import DTYPES
from trellis_ops.dispatch import forced_schedule
from trellis_ops.dispatch.layer import kernel_of
from trellis_ops.dispatch.resolve import forced_implementation

_KERNELS: dict[Hashable, Kernel | None] = {}

_MOST_KERNELS = 4096
"""A server meets prompts of every length; then they are looked up again."""


@dataclass(frozen=True)
class Sizes:
    """Those of a call, as `codegen.spec.Problem` has them."""

    batch: int
    tokens: int
    heads: int
    dim_k: int
    dim_v: int


def kernel_for(
    operator: str, sizes: Sizes, dtype: torch.dtype, device: torch.device, inputs: InputMaps | None = None
) -> Kernel | None:
    """The kernel of a call of `operator`; None where eager PyTorch has to compute it.

    Raises:
        TrellisError: it does not compile.
    """
    if device.type != "cpu" or dtype not in DTYPES:
        return None
    surroundings = (torch.get_num_threads(), forced_implementation(None), forced_schedule.current())
    key = (operator, sizes, dtype, inputs, surroundings)
    try:
        return _KERNELS[key]
    except KeyError:
        pass
    if len(_KERNELS) >= _MOST_KERNELS:
        _KERNELS.clear()
    _KERNELS[key] = found = kernel_of(spec_of(operator, sizes, dtype, inputs)) if _fits(sizes) else None
    return found


def spec_of(operator: str, sizes: Sizes, dtype: torch.dtype, inputs: InputMaps | None = None) -> Spec:
    """What a kernel of `operator` computes; nothing of a memory enters it."""
    problem = Problem(operator, **vars(sizes), slots=1, chunk=1, dtype=DTYPES[dtype], inputs=inputs)
    return Spec(Rule(), problem)


def forget() -> None:
    """Look every kernel up again: after tuning."""
    _KERNELS.clear()


def _fits(sizes: Sizes) -> bool:
    """Whether there are tokens, no more than their offsets count, and rows that a kernel is compiled for."""
    widths = (sizes.dim_k, sizes.dim_v)
    return 0 < sizes.batch * sizes.tokens <= MOST and sizes.heads > 0 and min(widths) > 0 and max(widths) <= MAX_DIM
