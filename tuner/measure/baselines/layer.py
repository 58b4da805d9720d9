"""A decode step of a layer, or of its parts between products, in eager PyTorch, as its modules compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codegen.kernels.between.arguments import KERNELS, counterpart
from codegen.kernels.layer.layout import PANEL, layout_of
from codegen.spec import LOGITS_STEP, MIXER_STEP, NORM_STEP, Spec
from trellis_ops.eager import forward as eager
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import Inputs
from tuner.verify.layer_oracle import matrices_of, vectors_of

Named = dict[str, Tensor]

_MOVED = ("S_k", "S_v", "tail")


def layer_call(spec: Spec, inputs: Inputs, made: Callable[[Any], Any]) -> Timed:
    """The call on `inputs`, with weights in float32, made into what is to be timed."""
    between = spec.problem.operator in KERNELS
    of_inputs: Mapping[str, Tensor] = {} if between else matrices_of(spec, inputs.tensors)
    matrices = {name: matrix.float() for name, matrix in of_inputs.items()}
    has_vectors = "vectors" in inputs.tensors
    of_vectors = vectors_of(spec, inputs.tensors) if has_vectors else {}
    vectors = {name: vector.float() for name, vector in of_vectors.items()}
    tensors = dict(inputs.tensors) | {name: inputs[name].clone() for name in _MOVED if name in inputs.tensors}
    call = made(_between if between else _logits if spec.problem.operator == LOGITS_STEP else _block)

    def reset() -> None:
        for name in _MOVED:
            if name in tensors:
                tensors[name].copy_(inputs[name])

    return Timed(lambda: call(spec, tensors, matrices, vectors), reset)


def _between(spec: Spec, tensors: Mapping[str, Tensor], matrices: Named, vectors: Named) -> Tensor:
    if spec.problem.operator == NORM_STEP:
        x = tensors["x"].float()
        return F.rms_norm(x, x.shape[1:], vectors["norm"], float(vectors["eps"]))
    if spec.problem.operator == MIXER_STEP:
        part = _parted(spec, tensors["projected"].float())
        gates = torch.split(F.linear(tensors["normed"].float(), tensors["gates"]), spec.problem.heads, -1)
        part |= dict(zip(("decay", "step_size"), gates, strict=False))
        return _memories(spec, tensors, vectors, part)
    gate, up = tensors["gate_and_up"].float().chunk(2, -1)
    return F.silu(gate) * up


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
    x, eps = tensors["x"], float(vectors["eps"])
    made = F.linear(F.rms_norm(x, x.shape[1:], vectors["mixer_norm"], eps), matrices["projections"])
    return _memories(spec, tensors, vectors, _parted(spec, made))


def _parted(spec: Spec, made: Tensor) -> Named:
    """The projections by name; those that are not in the row are empty."""
    projections = layout_of(counterpart(spec)).matrices["projections"]
    starts = {name: projections.start(name) for name in projections.parts}
    return {name: made[:, start : start + projections.parts[name]] for name, start in starts.items()}


def _memories(spec: Spec, tensors: Mapping[str, Tensor], vectors: Named, part: Named) -> Tensor:
    eps, heads, count = float(vectors["eps"]), spec.problem.heads, len(part["qk"])
    window = torch.cat([tensors["tail"], part["qk"][:, None]], 1)
    tensors["tail"].copy_(window[:, 1:])
    rows = {name: (window * vectors[f"taps_{name}"].view(window.shape[1:])).sum(1) for name in ("q", "k")}
    tokens = {name: row.reshape(count, heads, -1) for name, row in {**rows, "v": part["v"]}.items()}
    assert spec.problem.layer is not None
    if spec.problem.layer.unit:
        tokens = {name: F.normalize(row, dim=-1, eps=eps) for name, row in tokens.items()}
    step_size = vectors["step_size"]
    y = eager.step(
        q=tokens["q"],
        k=tokens["k"],
        v=tokens["v"],
        target=part["target"].reshape(count, heads, -1),
        log_decay=F.logsigmoid(part["decay"] + vectors["decay_bias"]),
        step_size=F.softplus(part["step_size"] + step_size) if "step_size" in part else step_size,
        state=(tensors["S_k"], tensors["S_v"]),
        rule=spec.rule,
        gradient_state=(tensors["G_k"], tensors["G_v"]) if "G_k" in tensors else None,
    )
    return F.rms_norm(y, y.shape[2:], vectors["out_norm"], eps).flatten(1) * F.gelu(part["gate"])
