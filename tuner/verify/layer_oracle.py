"""A decode step of a whole block, of its parts between products, and of the map to logits, in plain PyTorch.

Source: the equations of the model, arXiv 2512.23852, figure 1. Of the packed layout it takes where things lie, and the
memories are those of `trellis_ops.reference`; it shares no other expression with the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from codegen.kernels.between.arguments import counterpart
from codegen.kernels.layer.layout import PANEL, layout_of
from codegen.spec import LOGITS_STEP, MIXER_STEP, NORM_STEP, SWIGLU_STEP, Spec
from trellis_ops import reference

Named = dict[str, Tensor]


def step(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    """What the kernel of `spec` writes, by name, in float64."""
    operator = spec.problem.operator
    if operator == SWIGLU_STEP:
        return {"hidden": _gated(*tensors["gate_and_up"].double().chunk(2, -1))}
    vectors = vectors_of(spec, tensors)
    if operator == NORM_STEP:
        return {"normed": _normed(tensors["x"].double(), vectors["norm"], vectors["eps"])}
    if operator == MIXER_STEP:
        mixed, written = _between_products(spec, tensors, vectors)
        return {"mixed": mixed} | written
    matrices = matrices_of(spec, tensors)
    if operator == LOGITS_STEP:
        x = _normed(tensors["x"].double(), vectors["norm"], vectors["eps"])
        return {"logits": x @ _of(spec, matrices["embedding"], "embedding").T}
    return _block(spec, tensors, matrices, vectors)


def _block(spec: Spec, tensors: Mapping[str, Tensor], matrices: Named, vectors: Named) -> Named:
    x, eps = tensors["x"].double(), vectors["eps"]
    mixed, written = _mixer(spec, tensors, matrices, vectors, _normed(x, vectors["mixer_norm"], eps))
    x = x + mixed @ _of(spec, matrices["out"], "out").T
    normed = _normed(x, vectors["mlp_norm"], eps)
    pairs = (normed @ matrices["gate_up"].T).view(len(x), -1, 2, PANEL)
    gate, up = (pairs[:, :, each].flatten(1) for each in (0, 1))
    hidden = _gated(gate, up)
    down = _of(spec, matrices["down"], "down")
    return {"x": x + hidden[:, : down.shape[1]] @ down.T} | written


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    """What a SwiGLU multiplies before its last map."""
    return gate / (1 + torch.exp(-gate)) * up


def _mixer(
    spec: Spec, tensors: Mapping[str, Tensor], matrices: Named, vectors: Named, x: Tensor
) -> tuple[Tensor, Named]:
    """What the gated memories of all heads give, `[B, H D_v]`, and the states and the tail after the token."""
    projections = layout_of(spec).matrices["projections"]
    return _memories(spec, tensors, vectors, _parted(spec, x @ matrices["projections"].T, list(projections.parts)))


def _between_products(spec: Spec, tensors: Mapping[str, Tensor], vectors: Named) -> tuple[Tensor, Named]:
    """The same from what the projections made of the normed rows, and the maps of the gates."""
    names = list(layout_of(counterpart(spec)).matrices["projections"].parts)
    part = _parted(spec, tensors["projected"].double(), names[: names.index("decay")])
    gates = torch.split(tensors["normed"].double() @ tensors["gates"].double().T, spec.problem.heads, -1)
    part |= dict(zip(("decay", "step_size"), gates, strict=False))
    return _memories(spec, tensors, vectors, part)


def _parted(spec: Spec, made: Tensor, names: list[str]) -> Named:
    """The projections of these names in a row of them."""
    projections = layout_of(counterpart(spec)).matrices["projections"]
    return {name: made[:, projections.start(name) :][:, : projections.parts[name]] for name in names}


def _memories(spec: Spec, tensors: Mapping[str, Tensor], vectors: Named, part: Named) -> tuple[Tensor, Named]:
    heads, rows_before = spec.problem.heads, tensors["tail"].double()
    count = len(rows_before)
    window = torch.cat([rows_before, part["qk"][:, None]], 1)
    rows = {name: (window * vectors[f"taps_{name}"].view(window.shape[1:])).sum(1) for name in ("q", "k")}
    tokens = {name: row.reshape(count, heads, -1) for name, row in {**rows, "v": part["v"]}.items()}
    assert spec.problem.layer is not None
    if spec.problem.layer.unit:
        lengths = {name: row.square().sum(-1, keepdim=True).sqrt() for name, row in tokens.items()}
        tokens = {name: row / torch.maximum(lengths[name], vectors["eps"]) for name, row in tokens.items()}
    log_decay = -torch.log1p(torch.exp(-(part["decay"] + vectors["decay_bias"])))
    step_size = vectors["step_size"]
    if "step_size" in part:
        step_size = torch.log1p(torch.exp(part["step_size"] + step_size))
    state = (tensors["S_k"].double(), tensors["S_v"].double())
    starts = _starts(tensors, state)
    y, (s_k, s_v) = reference.step(
        q=tokens["q"],
        k=tokens["k"],
        v=tokens["v"],
        target=part["target"].reshape(count, heads, -1),
        log_decay=log_decay,
        step_size=step_size,
        state=state,
        rule=spec.rule,
        gradient_state=starts,
    )
    gate = part["gate"]
    opened = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    written = {"S_k": s_k, "S_v": s_v, "tail": window[:, 1:]}
    if starts is not None:
        written |= dict(zip(("G_k", "G_v"), starts, strict=True))
    return _normed(y, vectors["out_norm"], vectors["eps"]).flatten(1) * opened, written


def _starts(tensors: Mapping[str, Tensor], state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The states at the start of the chunk: those of now where a row begins one."""
    if "G_k" not in tensors:
        return None
    begins = (tensors["positions"] == 0).view(-1, 1, 1, 1)
    s_k, s_v = state
    kept_k, kept_v = tensors["G_k"].double(), tensors["G_v"].double()
    return torch.where(begins, s_k, kept_k), torch.where(begins, s_v, kept_v)


def _normed(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def matrices_of(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    """The packed matrices as rows of outputs, `[outputs in whole panels, inputs]`, scaled."""
    found = {}
    for name, matrix in layout_of(spec).matrices.items():
        numbers = tensors["weights"][matrix.first : matrix.first + matrix.numbers].double()
        words = numbers.view(matrix.panels, matrix.words, PANEL, -1)
        # The places of a word in the order of the inputs that they hold.
        inputs = words[..., torch.tensor(matrix.order).argsort()].transpose(1, 2).flatten(2)
        rows = inputs.flatten(0, 1)[:, : matrix.columns]
        if matrix.scales is not None:
            rows = rows * tensors["vectors"][matrix.scales : matrix.scales + len(rows), None].double()
        found[name] = rows
    return found


def vectors_of(spec: Spec, tensors: Mapping[str, Tensor]) -> Named:
    """The packed numbers that are no matrix, by name."""
    places = layout_of(counterpart(spec)).vectors.items()
    return {name: tensors["vectors"][each.first : each.first + each.length].double() for name, each in places}


def _of(spec: Spec, rows: Tensor, name: str) -> Tensor:
    """A matrix without the outputs that pad it."""
    return rows[: layout_of(spec).matrices[name].outputs]
