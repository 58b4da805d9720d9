"""The weights of a block for a decode step whose products are torch's: maps of one input side by side, as one map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.kernels.between.arguments import counterpart
from codegen.kernels.layer.layout import layout_of
from codegen.spec import Spec
from trellis_ops.lm.block import Block
from trellis_ops.lm.decode.packing import flat_vectors, vectors_of_block, vectors_of_norm
from trellis_ops.lm.mixer import TrellisMixer


@dataclass(frozen=True)
class Joined:
    """What a decode step reads of a block; maps have their module's type, all else is float32.

    Attributes:
        mixer_norm, mlp_norm: epsilon and weight of a norm.
        projections: the maps of q and k together, v, target and gate, `[outputs, width]`.
        gates: the maps of the forget gate and of a step size per token, a row for each head, `[rows, width]`.
        vectors: taps, biases, step sizes and the norm of a head's output, as `codegen.kernels.layer.layout` has them.
        out: the output map, where the module has it.
        gate_and_up: the two maps into the SwiGLU, `[2 hidden, width]`.
        down: the map out of it, where the module has it.
    """

    mixer_norm: Tensor
    projections: Tensor
    gates: Tensor
    vectors: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_and_up: Tensor
    down: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of what is copied."""
        read_in_place = (self.out, self.down)
        return sum(each.nbytes for each in vars(self).values() if not any(each is other for other in read_in_place))


@torch.no_grad()
def join_block(block: Block, mixer: Spec, norm: Spec) -> Joined:
    """The weights of a block whose mixer is a `TrellisMixer`, for the kernels of `mixer` and `norm`."""
    own = block.mixer
    assert isinstance(own, TrellisMixer)
    gates = [own.to_decay.weight, *([] if own.to_step_size is None else [own.to_step_size.weight])]
    return Joined(
        mixer_norm=flat_vectors(layout_of(counterpart(norm)), vectors_of_norm(block.mixer_norm)),
        projections=torch.cat([each.weight for each in (own.to_qk, own.to_v, own.to_target, own.to_gate)]),
        gates=torch.cat([each.float() for each in gates]),
        vectors=flat_vectors(layout_of(counterpart(mixer)), vectors_of_block(block)),
        out=own.to_out.weight.detach(),
        mlp_norm=flat_vectors(layout_of(counterpart(norm)), vectors_of_norm(block.mlp_norm)),
        gate_and_up=torch.cat([block.mlp.gate.weight, block.mlp.up.weight]),
        down=block.mlp.down.weight.detach(),
    )
