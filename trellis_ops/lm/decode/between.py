"""A decode step whose matrix products are torch's, with a kernel for what stands between two of them: on GPUs.

A block launches eight kernels: a norm, one product for all projections of the token mixer, the mixer itself, its output
map, which adds to the residual stream, then a norm, one product, silu(gate) up, and the map out of the SwiGLU.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn import functional as F

from codegen.backends import Kernel
from codegen.kernels.between.arguments import counterpart, programs_of_row
from codegen.kernels.layer.layout import layout_of
from codegen.spec import MIXER_STEP, Spec, next_power_of_two
from trellis_ops.dispatch import layer
from trellis_ops.dispatch.resolve import forced_implementation
from trellis_ops.glue import why_not_call
from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode import applies
from trellis_ops.lm.decode.applies import Model, Parts
from trellis_ops.lm.decode.joined import Joined, join_block
from trellis_ops.lm.decode.packing import flat_vectors, vectors_of_norm
from trellis_ops.lm.decode.specs import block_states, mixer_spec, norm_spec, swiglu_spec
from trellis_ops.lm.decode.watch import Watch, watch
from trellis_ops.lm.state import LayerState, TrellisState
from trellis_ops.lm.state.place import positions_on

_TAIL = "tail"


@dataclass(frozen=True)
class Kernels:
    """Compiled for some number of rows.

    Attributes:
        norm, mixer, swiglu: what stands between the products.
        heads, parts: programs of the mixer and of the SwiGLU that share a row.
    """

    norm: Kernel
    mixer: Kernel
    swiglu: Kernel
    heads: int
    parts: int


@dataclass
class Between:
    """A model's weights as the products of a step read them, and the kernels between these.

    Attributes:
        watched: what they were made from.
        modules: the blocks.
        blocks: of each block.
        last: the vectors of the last norm, and the map to logits; None where modules make the logits.
        config: of the model.
        dtype, device: of its maps.
        states: the tensors of a layer's state in the order of the mixer's kernel.
        taken: the layout of each layer's state when it was last looked at.
        kernels: by the number of rows, and what is forced.
    """

    watched: Watch
    modules: nn.ModuleList
    blocks: tuple[Joined, ...]
    last: tuple[Tensor, Tensor] | None
    config: TrellisConfig
    dtype: torch.dtype
    device: torch.device
    states: tuple[str, ...]
    taken: dict[int, Hashable] = field(default_factory=dict)
    kernels: dict[Hashable, Kernels | None] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Bytes of what is copied."""
        return sum(each.nbytes for each in self.blocks)

    def kernels_for(self, batch: int) -> Kernels | None:
        """The kernels for so many rows; None where they cannot be had.

        Raises:
            TrellisError: one does not compile.
        """
        key = (batch, forced_implementation(None))
        if key not in self.kernels:
            specs = specs_of(self.config, next_power_of_two(batch), self.dtype)
            norm, mixer, swiglu = (layer.kernel_of(spec, self.device) for spec in specs)
            heads, parts = (programs_of_row(spec) for spec in specs[1:])
            if norm is None or mixer is None or swiglu is None:
                self.kernels[key] = None
            else:
                self.kernels[key] = Kernels(norm, mixer, swiglu, heads, parts)
        return self.kernels[key]

    def where(self, positions: Tensor) -> tuple[Tensor, ...]:
        """The positions of the rows, on the device, as the mixer takes them; none where no starts are kept."""
        return (positions.to(torch.int64),) if self.config.keeps_starts else ()

    def states_of(self, index: int, named: Mapping[str, Tensor], batch: int) -> tuple[Tensor, ...]:
        """The state of a layer in the order of the mixer; none where its kernel, which looks at nothing, cannot run."""
        tensors = tuple([named[name] for name in self.states if name in named])
        layout = tuple([(each.data_ptr(), each.shape, each.stride(), each.dtype, each.device) for each in tensors])
        if self.taken.get(index) != layout:
            shapes = cast(Block, self.modules[index]).mixer.state_shapes(batch)
            if named.keys() != shapes.keys() or not lie_apart(tensors):
                return ()
            if not all(self._is_taken(name, each, shapes[name]) for name, each in named.items()):
                return ()
            self.taken[index] = layout
        return tensors

    def _is_taken(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> bool:
        dtype = self.dtype if name == _TAIL else torch.float32
        lies_well = tensor.is_contiguous() and tensor.device == self.device and tensor.shape == shape
        return type(tensor) is Tensor and tensor.dtype == dtype and lies_well

    def step_block(
        self, kernels: Kernels, index: int, x: Tensor, where: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> None:
        """Move the rows x `[B, width]` and the state, as `states_of` has it, through a block, in place."""
        own, rows = self.blocks[index], x.shape[0]
        normed, mixed = torch.empty_like(x), x.new_empty(rows, own.out.shape[1])
        kernels.norm(rows, x, own.mixer_norm, normed)
        projected = F.linear(normed, own.projections)
        try:
            kernels.mixer(rows * kernels.heads, normed, projected, own.gates, own.vectors, *where, *state, mixed)
        finally:
            increment_version(state)
        x.addmm_(mixed, own.out.T)
        kernels.norm(rows, x, own.mlp_norm, normed)
        gate_and_up, hidden = F.linear(normed, own.gate_and_up), x.new_empty(rows, own.down.shape[1])
        kernels.swiglu(rows * kernels.parts, gate_and_up, hidden)
        x.addmm_(hidden, own.down.T)

    def logits_of(self, kernels: Kernels, x: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` of the last block's rows."""
        assert self.last is not None
        norm, embedding = self.last
        normed = torch.empty_like(x)
        kernels.norm(x.shape[0], x, norm, normed)
        return F.linear(normed, embedding)


def specs_of(config: TrellisConfig, rows: int, dtype: torch.dtype) -> list[Spec]:
    """The specs of the norm, the mixer and the SwiGLU, for so many rows of a type."""
    return [each(config, rows, _name_of(dtype)) for each in (norm_spec, mixer_spec, swiglu_spec)]


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def serve(device: torch.device) -> bool:
    """Whether these kernels are what serves models on `device`, or what is forced."""
    return layer.serves(MIXER_STEP, device)


@torch.no_grad()
def step(model: Model, x: Tensor, state: TrellisState) -> Tensor | None:
    """Logits `[B, vocabulary]` after a token; None, and nothing was written, where the modules have to compute.

    Args:
        model: whose step it is; its `step_parts` have an output.
        x: the embeddings of the token of each row, `[B, width]`, overwritten.
        state: moved in place but for its positions. A block whose state no kernel takes, such as one that is not
            contiguous, is computed by its modules.

    Raises:
        TrellisError: a kernel does not compile.
    """
    found = ready(model, x)
    if found is None:
        return None
    return found[0].logits_of(found[1], _through_blocks(*found, x.contiguous(), state))


@torch.no_grad()
def blocks(model: Model, x: Tensor, state: TrellisState) -> Tensor | None:
    """What the last block makes of a token, `[B, width]`; as `step`, without the logits."""
    found = ready(model, x)
    return None if found is None else _through_blocks(*found, x.contiguous(), state)


def ready(model: Model, x: Tensor) -> tuple[Between, Kernels] | None:
    """Weights and kernels for rows such as x `[B, width]`; None where the modules have to compute.

    Raises:
        TrellisError: a kernel does not compile.
    """
    if x.shape[0] > applies.MOST_ROWS or type(x) is not Tensor or why_not_call(x.device.type) is not None:
        return None
    found = _between_of(model)
    if found is None or (found.dtype, found.device) != (x.dtype, x.device):
        return None
    kernels = found.kernels_for(x.shape[0])
    return None if kernels is None else (found, kernels)


def why_not_model(parts: Parts) -> str | None:
    """Why these kernels do not serve a model as it is made now, in one sentence; None if they do."""
    device = parts.device
    reason = applies.why_not_parts(parts, device)
    if reason is None and len(parts.map_types()) > 1:
        names = ", ".join(sorted(map(str, parts.map_types())))
        return f"the linear maps have several types, {names}"
    return reason


def lie_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two contiguous tensors share memory."""
    spans = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
    return all(start + size <= following for (start, size), (following, _) in pairwise(spans))


def _through_blocks(between: Between, kernels: Kernels, x: Tensor, state: TrellisState) -> Tensor:
    where = between.where(positions_on(state.place, x.shape[0], x.device))
    for index, own in enumerate(state.layers):
        assert isinstance(own, LayerState)
        tensors = between.states_of(index, own.tensors(), x.shape[0])
        if tensors:
            between.step_block(kernels, index, x, where, tensors)
        else:
            x = cast(Block, between.modules[index]).step(x, own, state.begins()).contiguous()
    return x


_KNOWN: weakref.WeakKeyDictionary[nn.Module, Between] = weakref.WeakKeyDictionary()


def _between_of(model: Model) -> Between | None:
    """The weights of a model, joined anew where it has changed; None where its modules have to compute."""
    owner = cast(nn.Module, model)
    known = _KNOWN.get(owner)
    if known is not None and known.watched.is_unchanged():
        return known
    _KNOWN.pop(owner, None)
    parts = model.step_parts()
    if why_not_model(parts) is not None:
        return None
    made = _joined(parts)
    _KNOWN[owner] = made
    return made


def copied_bytes(model: nn.Module) -> int:
    """Bytes of what is copied of a model now; 0 before its first step."""
    known = _KNOWN.get(model)
    return 0 if known is None else known.nbytes()


def forget(model: nn.Module) -> None:
    """Drop what is copied of a model; its next step copies it again."""
    _KNOWN.pop(model, None)


def _joined(parts: Parts) -> Between:
    config, (dtype,) = parts.config, parts.map_types()
    watched = watch(parts.holders, parts.modules(), () if parts.output is None else parts.output[1:])
    norm, mixer, _ = specs_of(config, 1, dtype)
    joined = tuple(join_block(cast(Block, each), mixer, norm) for each in parts.blocks)
    last = None
    if parts.output is not None:
        last_norm, embedding = parts.output
        rows = cast(Tensor, embedding.weight).detach()[: config.vocab_size]
        last = flat_vectors(layout_of(counterpart(norm)), vectors_of_norm(last_norm)), rows
    return Between(watched, parts.blocks, joined, last, config, dtype, parts.device, block_states(config))
