"""The maps and inner losses of a rule in eager PyTorch, as `codegen.maps` derives and writes them.

Everything acts on the last axis, of M slots or D channels, in the type it is given (float32 or float64). Where ATen has
one kernel for what would be several, it is taken, so that this implementation is a fair baseline. Not so where what it
has differentiated once is differentiated again: ATen's double backward of a layer norm takes the mean and the deviation
for constants within a function transform, and loses all digits where the slots are nearly equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import get_interpreter_stack

from codegen.maps import find
from codegen.maps.emit import pytorch as emit_torch
from codegen.rule import READOUT_EPS


def apply_map(name: str, x: Tensor, eps: float = READOUT_EPS) -> Tensor:
    """The map that a rule calls `name`, over the last axis of x."""
    fused = None if _is_transformed() else _FUSED_VALUES.get(name)
    y: Tensor = (fused or _generated(name, "value"))(x, eps)
    return y


def inner_gradient(name: str, z: Tensor, target: Tensor, eps: float) -> Tensor:
    """u = J_phi(z)^T (phi(z) - alpha), or the gradient at z of a loss.

    Args:
        name: what a rule calls phi.
        z: `[..., M]`.
        target: the targets, broadcast against z.
        eps: `Rule.phi_eps`.

    Returns:
        u, shaped as z.
    """
    fused = None if _is_differentiated_again(z, target) or _is_transformed() else _FUSED_GRADIENTS.get(name)
    u: Tensor = (fused or _generated(name, "write_gradient"))(z, target, eps)
    # That of a loss which is linear in z has the shape of the targets.
    return u.expand_as(z)


def pull_back(name: str, x: Tensor, cotangent: Tensor) -> Tensor:
    """J(x)^T cotangent of the map that a rule calls `name`, as `link` or `out` (B14); both are `[..., M]`."""
    pulled: Tensor = _generated(name, "pull_back")(x, cotangent, READOUT_EPS)
    return pulled


def prepare_write(name: str, z: Tensor, target: Tensor, eps: float) -> tuple[Tensor, ...]:
    """What `push_write` needs of a write, whichever cotangent comes; arguments as in `inner_gradient`."""
    parts: tuple[Tensor, ...] = _generated(name, "prepare_write")(z, target, eps)
    return parts


def push_write(name: str, parts: tuple[Tensor, ...], du: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The cotangents of z and target, of a write that `prepare_write` saw (B8, B9)."""
    dz, dtarget = _generated(name, "push_write")(parts, du, eps)
    return dz, dtarget


def _generated(name: str, function: str) -> Callable[..., Any]:
    return emit_torch.functions(find(name))[function]


def _is_differentiated_again(z: Tensor, target: Tensor) -> bool:
    # ATen's second derivative of layer norm loses the digits of nearly equal slots. torch.compile takes it yet.
    wanted = torch.is_grad_enabled() and (z.requires_grad or target.requires_grad)
    return wanted and not torch.compiler.is_compiling()


def _is_transformed() -> bool:
    # torch.compile refuses to look into what is generated; more than one derivative is refused there before.
    return not torch.compiler.is_compiling() and bool(get_interpreter_stack())


# torch.compile takes the function that this returns as it is, and does not look into how it is made.
_generated._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _ln_silu(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(F.silu(x), x.shape[-1:], eps=eps)


def _ln_silu_gradient(z: Tensor, target: Tensor, eps: float) -> Tensor:
    sigma = torch.sigmoid(z)
    s = z * sigma
    shape = list(s.shape[-1:])
    y, mean, rstd = torch.native_layer_norm(s, shape, None, None, eps)
    backward = torch.ops.aten.native_layer_norm_backward
    e: Tensor = backward(y - target, s, shape, mean, rstd, None, None, [True, False, False])[0]
    # silu' = sigma + s (1 - sigma).
    return e * torch.lerp(s, s.new_ones(()), sigma)


_FUSED_VALUES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, eps: x,
    "silu": lambda x, eps: F.silu(x),
    "ln_silu": _ln_silu,
    "softmax": lambda x, eps: torch.softmax(x, dim=-1),
}
_FUSED_GRADIENTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"ln_silu": _ln_silu_gradient}
