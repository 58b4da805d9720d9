"""A decode step of a layer in eager PyTorch, product by product, as its modules compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codegen.kernels.layer.layout import PANEL, layout_of
from codegen.spec import LOGITS_STEP, Spec
from trellis_ops.eager import forward as eager
from tuner.measure.timed import Timed
from tuner.verify.inputs import Inputs
from tuner.verify.layer_oracle import matrices_of, vectors_of

Named = dict[str, Tensor]

_MOVED = ("S_k", "S_v", "tail")


def layer_call(spec: Spec, inputs: Inputs, made: Callable[[Any], Any]) -> Timed:
    """The call on `inputs`, with weights in float32, made into what is to be timed."""
    matrices = {name: matrix.float() for name, matrix in matrices_of(spec, inputs.tensors).items()}
    vectors = {name: vector.float() for name, vector in vectors_of(spec, inputs.tensors).items()}
    tensors = dict(inputs.tensors) | {name: inputs[name].clone() for name in _MOVED if name in inputs.tensors}
    call = made(_logits if spec.problem.operator == LOGITS_STEP else _block)

    def reset() -> None:
        for name in _MOVED:
            if name in tensors:
                tensors[name].copy_(inputs[name])

    return Timed(lambda: call(spec, tensors, matrices, vectors), reset)


def _logits(spec: Spec, tensors: Mapping[str, Tensor], matrices: Named, vectors: Named) -> Tensor:
    normed = F.rms_norm(tensors["x"], tensors["x"].shape[1:], vectors["norm"], float(vectors["eps"]))
    return F.linear(normed, matrices["embedding"])


def _block(spec: Spec, tensors: Mapping[str, Tensor], matrices: Named, vectors: Named) -> Tensor:
    x, eps = tensors["x"], float(vectors["eps"])
    layout = layout_of(spec)
    x = x + F.linear(_mixed(spec, tensors, matrices, vectors), matrices["out"])[:, : x.shape[1]]
    both = F.linear(F.rms_norm(x, x.shape[1:], vectors["mlp_norm"], eps), matrices["gate_up"])
    gate, up = both.view(len(x), -1, 2, PANEL).unbind(2)
    hidden = (F.silu(gate) * up).flatten(1)[:, : layout.matrices["down"].columns]
    return x + F.linear(hidden, matrices["down"])[:, : x.shape[1]]


def _mixed(spec: Spec, tensors: Mapping[str, Tensor], matrices: Named, vectors: Named) -> Tensor:
    x, eps, heads = tensors["x"], float(vectors["eps"]), spec.problem.heads
    projections = layout_of(spec).matrices["projections"]
    made = F.linear(F.rms_norm(x, x.shape[1:], vectors["mixer_norm"], eps), matrices["projections"])
    starts = {name: projections.start(name) for name in projections.parts}
    part = {name: made[:, start : start + projections.parts[name]] for name, start in starts.items()}
    window = torch.cat([tensors["tail"], part["qk"][:, None]], 1)
    tensors["tail"].copy_(window[:, 1:])
    rows = {name: (window * vectors[f"taps_{name}"].view(window.shape[1:])).sum(1) for name in ("q", "k")}
    tokens = {name: row.reshape(len(x), heads, -1) for name, row in {**rows, "v": part["v"]}.items()}
    assert spec.problem.layer is not None
    if spec.problem.layer.unit:
        tokens = {name: F.normalize(row, dim=-1, eps=eps) for name, row in tokens.items()}
    step_size = vectors["step_size"]
    y = eager.step(
        q=tokens["q"],
        k=tokens["k"],
        v=tokens["v"],
        target=part["target"].reshape(len(x), heads, -1),
        log_decay=F.logsigmoid(part["decay"] + vectors["decay_bias"]),
        step_size=F.softplus(part["step_size"] + step_size) if "step_size" in part else step_size,
        state=(tensors["S_k"], tensors["S_v"]),
        rule=spec.rule,
        gradient_state=(tensors["G_k"], tensors["G_v"]) if "G_k" in tensors else None,
    )
    return F.rms_norm(y, y.shape[2:], vectors["out_norm"], eps).flatten(1) * F.gelu(part["gate"])
