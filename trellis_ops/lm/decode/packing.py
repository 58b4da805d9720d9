"""Weights of a block, or of the map to logits, in the layout that their kernel streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codegen.errors import UnknownMapError
from codegen.kernels.layer.layout import PANEL, Layout, Matrix, layout_of, padded
from codegen.layer import WEIGHTS
from codegen.spec import Spec
from trellis_ops.lm.block import Block
from trellis_ops.lm.mixer import TrellisMixer

_LEVELS = 127
"""Of int8 on either side of zero."""


def known_weights(weights: str) -> str:
    """`weights`, a type that weights are packed in.

    Raises:
        UnknownMapError: there is no such type.
    """
    if weights not in WEIGHTS:
        raise UnknownMapError(role="decode_weights", name=weights, known=", ".join(WEIGHTS))
    return weights


@dataclass(frozen=True)
class Packed:
    """What a kernel of a layer reads besides its row of the residual stream.

    Attributes:
        weights: `[numbers]`, float32, bfloat16 or int8, as `codegen.kernels.layer.layout` orders them.
        vectors: `[vector_numbers]`, float32: norms, taps, biases, and the scales of int8.
    """

    weights: Tensor
    vectors: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.weights.nbytes + self.vectors.nbytes


@torch.no_grad()
def pack_block(block: Block, spec: Spec) -> Packed:
    """The weights of a block whose mixer is a `TrellisMixer`, for the kernel of `spec`."""
    mixer = block.mixer
    assert isinstance(mixer, TrellisMixer)
    projections = {
        "qk": mixer.to_qk.weight,
        "v": mixer.to_v.weight,
        "target": mixer.to_target.weight,
        "gate": mixer.to_gate.weight,
        "decay": mixer.to_decay.weight,
    }
    if mixer.to_step_size is not None:
        projections["step_size"] = mixer.to_step_size.weight
    matrices = {
        "projections": projections,
        "out": {"out": mixer.to_out.weight},
        "gate_up": {"gate": block.mlp.gate.weight, "up": block.mlp.up.weight},
        "down": {"down": block.mlp.down.weight},
    }
    return _packed(spec, matrices, vectors_of_block(block))


def vectors_of_block(block: Block) -> dict[str, Tensor]:
    """The weights of a block that are no matrix, by the names of `codegen.kernels.layer.layout`."""
    mixer = block.mixer
    assert isinstance(mixer, TrellisMixer)
    return {
        "eps": _eps(mixer.config.norm_eps),
        "mixer_norm": block.mixer_norm.weight,
        "taps_q": mixer.conv_q.T,
        "taps_k": mixer.conv_k.T,
        "decay_bias": mixer.to_decay.bias,
        "step_size": F.softplus(mixer.step_size.float()) if mixer.to_step_size is None else mixer.step_size,
        "out_norm": mixer.norm.weight,
        "mlp_norm": block.mlp_norm.weight,
    }


def vectors_of_norm(norm: torch.nn.RMSNorm) -> dict[str, Tensor]:
    """The weight and the epsilon of a norm, likewise."""
    assert norm.weight is not None and norm.eps is not None
    return {"eps": _eps(norm.eps), "norm": norm.weight}


def flat_vectors(layout: Layout, vectors: Mapping[str, Tensor]) -> Tensor:
    """Vectors in the order of a layout, `[vector_numbers]`, float32, where its widest one is."""
    device = max(vectors.values(), key=Tensor.numel).device
    return torch.cat([vectors[name].flatten().float().to(device) for name in layout.vectors])


@torch.no_grad()
def pack_logits(norm: torch.nn.RMSNorm, embedding: Tensor, spec: Spec) -> Packed:
    """The norm before the logits, and the embedding `[vocabulary, width]` that makes them."""
    return _packed(spec, {"embedding": {"embedding": embedding}}, vectors_of_norm(norm))


def _eps(eps: float) -> Tensor:
    return torch.tensor([eps], dtype=torch.float32, device="cpu")


def _packed(spec: Spec, matrices: Mapping[str, Mapping[str, Tensor]], vectors: Mapping[str, Tensor]) -> Packed:
    layout, layer, own = layout_of(spec), spec.problem.layer, dict(vectors)
    assert layer is not None
    weights = torch.empty(layout.numbers, dtype=getattr(torch, layer.weights))
    for name, matrix in layout.matrices.items():
        panels = _panels(matrix, matrices[name])
        if matrix.scales is not None:
            panels, own[f"{name}_scales"] = quantized(panels.float())
        # Words of inputs are then the rows of a panel, and its outputs lie side by side.
        place = weights[matrix.first : matrix.first + matrix.numbers]
        place.view(matrix.panels, matrix.words, PANEL, -1).copy_(_in_words(matrix, panels).transpose(1, 2))
    return Packed(weights, flat_vectors(layout, own))


def quantized(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[..., outputs, inputs]` as int8 with the scale of each output, `[..., outputs]`, float32.

    The largest weight of an output becomes 127 or -127; outputs that are all zero have scale 1.
    """
    scale = weights.abs().amax(-1) / _LEVELS
    scale = torch.where(scale > 0, scale, 1.0)
    return (weights / scale[..., None]).round_().to(torch.int8), scale


def _panels(matrix: Matrix, parts: Mapping[str, Tensor]) -> Tensor:
    """The weights `[panels, PANEL, inputs]`, zeros past the last output."""
    if matrix.name == "gate_up":
        of_each = [_in_panels(_filled(weight, padded(len(weight)))) for weight in parts.values()]
        return torch.stack(of_each, 1).flatten(0, 1)
    rows = torch.cat([parts[name] for name in matrix.parts])
    return _in_panels(_filled(rows, matrix.panels * PANEL))


def _in_words(matrix: Matrix, panels: Tensor) -> Tensor:
    """The weights `[panels, PANEL, words, inputs of a word]`, zeros past the last input."""
    together = len(matrix.order)
    filled = F.pad(panels, (0, matrix.words * together - matrix.columns))
    return filled.view(*panels.shape[:2], matrix.words, together)[..., list(matrix.order)]


def _in_panels(rows: Tensor) -> Tensor:
    return rows.view(-1, PANEL, rows.shape[1])


def _filled(weight: Tensor, outputs: int) -> Tensor:
    return F.pad(weight, (0, 0, 0, outputs - len(weight)))
