"""One decode step of a model by a kernel for each block, with weights that are packed once."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from codegen.backends import Kernel, held
from codegen.spec import next_power_of_two
from trellis_ops.dispatch.layer import kernel_of
from trellis_ops.dispatch.put_back import put_back
from trellis_ops.dispatch.resolve import forced_implementation
from trellis_ops.glue import why_not_call
from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode import applies, between
from trellis_ops.lm.decode.applies import Model, Parts
from trellis_ops.lm.decode.between import lie_apart
from trellis_ops.lm.decode.held_pools import HeldPools
from trellis_ops.lm.decode.held_state import HeldState, held_state, where
from trellis_ops.lm.decode.packing import Packed, pack_block, pack_logits
from trellis_ops.lm.decode.specs import block_spec, block_states, logits_spec
from trellis_ops.lm.decode.watch import Watch, watch
from trellis_ops.lm.state import LayerState, TrellisState

_TAIL = "tail"

increment_version = torch._C._increment_version


@dataclass(frozen=True)
class Kernels:
    """Compiled for some number of rows.

    Attributes:
        block: of a block.
        logits: of the map to logits; None where modules make them.
        layers: of each block its packed weights and vectors, as its kernel holds them.
        last: the same of the logits.
    """

    block: Kernel
    logits: Kernel | None
    layers: tuple[tuple[Any, ...], ...]
    last: tuple[Any, ...]


@dataclass
class Decoder:
    """Packed weights of a model, and the kernels that read them.

    Attributes:
        watched: what they were packed from.
        modules: the blocks.
        blocks: of each block.
        logits: of the last norm and the embedding; None where modules make the logits.
        config: of the model.
        asked: the type that was asked for.
        weights: the type that they are packed in.
        states: the tensors of a layer's state in the order of its kernel.
        left_out: the modules that whoever takes the steps leaves out, as `Parts` has them.
        pools: those of the layers, where their states lie in pools, as kernels take them; None before they are looked
            at.
        kernels: by the number of rows, whether their states lie in pools, the threads that torch may use, and what is
            forced.
    """

    watched: Watch
    modules: nn.ModuleList
    blocks: tuple[Packed, ...]
    logits: Packed | None
    config: TrellisConfig
    asked: str
    weights: str
    states: tuple[str, ...]
    left_out: tuple[nn.Module, ...]
    pools: HeldPools | None = None
    kernels: dict[Hashable, Kernels | None] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Bytes of what is packed."""
        return sum(each.nbytes for each in (*self.blocks, self.logits) if each is not None)

    def kernels_for(self, batch: int, *, pooled: bool = False) -> Kernels | None:
        """The kernels for so many rows, of states in pools if `pooled`; None where no backend has them.

        Raises:
            TrellisError: one does not compile.
        """
        key = (batch, pooled, torch.get_num_threads(), forced_implementation(None))
        if key not in self.kernels:
            rows = next_power_of_two(batch)
            block = kernel_of(block_spec(self.config, rows, self.weights, pooled=pooled))
            logits = None if self.logits is None else kernel_of(logits_spec(self.config, rows, self.weights))
            missing = block is None or (self.logits is not None and logits is None)
            self.kernels[key] = None if missing else self._holding(cast(Kernel, block), logits)
        return self.kernels[key]

    def _holding(self, block: Kernel, logits: Kernel | None) -> Kernels:
        layers = tuple((held(block, each.weights), held(block, each.vectors)) for each in self.blocks)
        if logits is None or self.logits is None:
            return Kernels(block, None, layers, ())
        return Kernels(block, logits, layers, (held(logits, self.logits.weights), held(logits, self.logits.vectors)))

    def step_block(
        self,
        kernels: Kernels,
        index: int,
        x: Tensor,
        where: tuple[Tensor, ...],
        state: LayerState,
        moved: list[Tensor],
    ) -> bool:
        """Move the rows x `[B, width]` and the state through a block; False, and nothing was written, if refused.

        The kernel compares types, shapes, strides and devices itself, before it writes.

        Args:
            moved: gets the tensors that were written to, or may have been.
        """
        tensors = self.tensors_of(state)
        try:
            if not lie_apart(tensors):
                return False
            kernels.block(x.shape[0], x, *where, *tensors, *kernels.layers[index])
        except (AttributeError, ValueError, TypeError):
            return False
        except BaseException:
            moved += tensors
            raise
        moved += tensors
        if state.tail.dtype != torch.float32:
            put_back(state.tail, tensors[self.states.index(_TAIL)])
        return True

    def tensors_of(self, state: LayerState) -> tuple[Tensor, ...]:
        """The state of a layer as its kernel takes it; the tail has the type of the weights, and there float32."""
        return tuple([state.tail.float() if name == _TAIL else getattr(state, name) for name in self.states])

    def logits_of(self, kernels: Kernels, x: Tensor) -> Tensor:
        """Logits `[B, vocabulary]` of the last block's rows."""
        assert kernels.logits is not None
        logits = x.new_empty(x.shape[0], self.config.vocab_size)
        kernels.logits(x.shape[0], x, *kernels.last, logits)
        return logits


def fused_step(model: Model, weights: str, x: Tensor, state: TrellisState) -> Tensor | None:
    """Logits `[B, vocabulary]` after a token, by kernels of blocks; None, and nothing was written, without them.

    They are those of whole blocks, or on GPUs those of `trellis_ops.lm.decode.between`.

    Args:
        model: whose step it is; its `step_parts` have an output.
        weights: the type to pack its weights in, one of `codegen.layer.WEIGHTS`; "float32" packs those of a model with
            narrower ones in bfloat16. On GPUs weights have the type of the modules'.
        x: the embeddings of the token of each row, `[B, width]`; overwritten where they are float32.
        state: moved in place but for its positions. A block whose state no kernel takes, such as one that is not
            contiguous, is computed by its modules.

    Raises:
        TrellisError: a kernel does not compile.
    """
    if between.serve(x.device):
        return between.step(model, x, state)
    found = ready(model, weights, x)
    if found is None:
        return None
    decoder, kernels = found
    return decoder.logits_of(kernels, _through_blocks(decoder, kernels, x, state)).to(x.dtype)


def fused_blocks(model: Model, weights: str, x: Tensor, state: TrellisState) -> Tensor | None:
    """What the last block makes of a token, `[B, width]` of the type of `x`; as `fused_step`, without the logits."""
    if between.serve(x.device):
        return between.blocks(model, x, state)
    found = ready(model, weights, x)
    return None if found is None else _through_blocks(found[0], found[1], x, state).to(x.dtype)


def ready(model: Model, weights: str, x: Tensor, *, pooled: bool = False) -> tuple[Decoder, Kernels] | None:
    """Packed weights and kernels for rows such as x `[B, width]`; None where the modules have to compute.

    The states of the rows lie in pools if `pooled`.

    Raises:
        TrellisError: a kernel does not compile.
    """
    return ready_for(model, weights, x.shape[0], pooled=pooled) if type(x) is Tensor else None


def ready_for(model: Model, weights: str, batch: int, *, pooled: bool = False) -> tuple[Decoder, Kernels] | None:
    """As `ready`, for `batch` rows that are a plain tensor.

    Raises:
        TrellisError: a kernel does not compile.
    """
    if batch > applies.MOST_ROWS or why_not_call() is not None:
        return None
    decoder = _decoder_of(model, weights)
    kernels = None if decoder is None else decoder.kernels_for(batch, pooled=pooled)
    return None if decoder is None or kernels is None else (decoder, kernels)


def _through_blocks(decoder: Decoder, kernels: Kernels, x: Tensor, state: TrellisState) -> Tensor:
    known = held_state(kernels.block, state, decoder.states)
    if known is not None:
        return _through_held(decoder, kernels, x, state, known)
    narrow, x = x.dtype, x.float()
    positions = where(state)
    moved: list[Tensor] = []
    try:
        for index, layer in enumerate(state.layers):
            assert isinstance(layer, LayerState)
            if not decoder.step_block(kernels, index, x, positions, layer, moved):
                x = _by_modules(decoder, index, x.to(narrow), state)
    finally:
        # At once: after each block, its counters would come from memory one by one.
        increment_version(moved)
    return x


def _through_held(decoder: Decoder, kernels: Kernels, x: Tensor, state: TrellisState, known: HeldState) -> Tensor:
    narrow, x = x.dtype, x.float()
    rows = (x.shape[0], held(kernels.block, x), *known.where(state))
    try:
        for index, own in enumerate(known.layers):
            try:
                kernels.block(*rows, *own, *kernels.layers[index])
            except (AttributeError, ValueError, TypeError):
                # Refused, and nothing was written.
                x.copy_(_by_modules(decoder, index, x.to(narrow), state))
    finally:
        increment_version(known.tensors)
    return x


def _by_modules(decoder: Decoder, index: int, x: Tensor, state: TrellisState) -> Tensor:
    return cast(Block, decoder.modules[index]).step(x, state.layers[index], state.begins()).float()


_DECODERS: weakref.WeakKeyDictionary[nn.Module, Decoder] = weakref.WeakKeyDictionary()


def _decoder_of(model: Model, weights: str) -> Decoder | None:
    """The packed weights of a model, made anew where it has changed; None where its modules have to compute.

    They are kept beside the model and go with it: copies, pickles and state dicts of it have no part of them.
    """
    owner = cast(nn.Module, model)
    known = _DECODERS.get(owner)
    if known is not None and known.asked == weights and known.watched.is_unchanged():
        return known
    _DECODERS.pop(owner, None)
    parts = model.step_parts()
    if applies.why_not_model(parts) is not None:
        return None
    made = _packed(parts, weights)
    _DECODERS[owner] = made
    return made


def packed_bytes(model: nn.Module) -> int:
    """Bytes of what is packed of a model now; 0 before its first step."""
    known = _DECODERS.get(model)
    return between.copied_bytes(model) + (0 if known is None else known.nbytes())


def forget(model: nn.Module) -> None:
    """Drop what is packed of a model; its next step packs it again."""
    _DECODERS.pop(model, None)
    between.forget(model)


def packed_type(parts: Parts, asked: str) -> str:
    """The type that the weights of a model are packed in: what was asked, and bfloat16 for those that have no more."""
    return "bfloat16" if asked == "float32" and parts.are_narrow() else asked


def _packed(parts: Parts, asked: str) -> Decoder:
    config, weights = parts.config, packed_type(parts, asked)
    modules = itertools.chain(parts.modules(), parts.left_out)
    watched = watch(parts.holders, modules, () if parts.output is None else parts.output[1:])
    block = block_spec(config, 1, weights)
    blocks = tuple(pack_block(cast(Block, each), block) for each in parts.blocks)
    last = None
    if parts.output is not None:
        norm, embedding = parts.output
        rows = cast(Tensor, embedding.weight)[: config.vocab_size]
        last = pack_logits(norm, rows, logits_spec(config, 1, weights))
    given = (config, asked, weights, block_states(config), parts.left_out)
    return Decoder(watched, parts.blocks, blocks, last, *given)
