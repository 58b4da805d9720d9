"""What stands between the products of a block, a kernel each, with a reverse pass: for many tokens, on CPUs.

- `memory_inputs`: q, k and v from the projections of a token mixer, by short convolutions and lengths of one.
- `gated_norm`: the norm and the gate behind the memories.
- `swiglu_gate`: the gate of a feed-forward.
- `rms_norm`, `add_rms_norm`: the norms of the residual stream, and what is added to it before.

Each is a registered operator of torch, so that autograd, torch.compile and torch.vmap take it; elsewhere, and in
float64, eager PyTorch computes it. `replaces_modules` says where a model may call them in the place of its modules.
"""

from __future__ import annotations

from trellis_ops.eager.glue import causal_convolution
from trellis_ops.glue.calls import add_rms_norm, gated_norm, memory_inputs, rms_norm, swiglu_gate
from trellis_ops.glue.surroundings import TYPES, is_plain_norm, makes_anew, replaces_modules, why_not_call

__all__ = [
    "TYPES",
    "add_rms_norm",
    "causal_convolution",
    "gated_norm",
    "is_plain_norm",
    "makes_anew",
    "memory_inputs",
    "replaces_modules",
    "rms_norm",
    "swiglu_gate",
    "why_not_call",
]
