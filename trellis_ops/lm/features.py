"""The part of a model between the embedding and the logits: its blocks, run on embeddings and a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.errors import GradientError, ShapeError
from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.sequences import Layout, Rows
from trellis_ops.lm.sequences.arranged import arranged
from trellis_ops.lm.state.fitting import Wanted
from trellis_ops.lm.state.layer_state import AnyLayerState, state_dtype
from trellis_ops.lm.state.model_state import TrellisState, check_state, require_state
from trellis_ops.lm.state.place import Place


@dataclass(frozen=True)
class StateKind:
    """Which states the blocks of a configuration go on from.

    Attributes:
        config: a resolved configuration.
        rule: the key of its rule.
        period: tokens after which positions begin again at 0: C, or 1 where no starts of chunks are kept.
    """

    config: TrellisConfig
    rule: str
    period: int

    @classmethod
    def of(cls, config: TrellisConfig) -> StateKind:
        """That of a resolved configuration."""
        return cls(config, config.record.key(), config.chunk if config.keeps_starts else 1)

    def state(self, layers: Sequence[AnyLayerState], place: Place) -> TrellisState:
        """A state of this kind."""
        state = TrellisState(tuple(layers), place, self.rule, self.period)
        state.fits = self
        return state

    def check(self, state: TrellisState, blocks: Sequence[Block], like: Tensor, batch: int | None = None) -> None:
        """Raise unless `state` is of this kind.

        Args:
            state: what to check.
            blocks: of the model.
            like: a tensor on the device of the model, of the type of its weights.
            batch: rows that it must have; None for any number.

        Raises:
            StateError, ShapeError, DtypeError, DeviceMismatchError, SizeError: what differs, by name.
            TypeError: what is no state.
        """
        require_state(state, self.rule)
        batch = state.batch if batch is None else batch
        wanted = []
        for block in blocks:
            shapes = block.mixer.state_shapes(batch)
            types = {name: None if name == "tail" else state_dtype(like.dtype) for name in shapes}
            wanted.append({name: Wanted(shape, types[name], like.device) for name, shape in shapes.items()})
        check_state(state, wanted, batch, self.period, self.rule)
        state.fits = self


def features(
    blocks: Sequence[Block],
    kind: StateKind,
    x: Tensor,
    state: TrellisState | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    return_state: bool = True,
    kept: int = 0,
) -> tuple[Tensor, TrellisState | None]:
    """What the last block makes of embeddings, before the last norm, and the state after them.

    Each block is called as a module, with (x, layer state or None, layout, return_state=...), the last one with `kept`
    where that is given, so that hooks, LoRA and gradient checkpointing of one's own act on it. Gradients flow to x and
    to the parameters of the blocks.

    Args:
        blocks: `Block` modules of any model, in order.
        kind: of the configuration that the blocks were made with.
        x: embeddings `[B, T, width]`, or `[1, total, width]` of packed sequences.
        state: where to go on, with a row for each sequence; it is left as it was. None starts sequences.
        attention_mask: `[B, T]`, bool or an integer type, 1 for tokens and 0 for padding on the left or on the right of
            a row's tokens. Padding is not read: a padded row gives what it gives alone.
        cu_seqlens: `[N + 1]`, offsets of N sequences packed into B = 1; nothing passes from one to the next.
        return_state: whether to return the state.
        kept: n, to return the last n of the T places only, 0 for all; in rows without padding, all at one position, the
            last block then computes nothing behind its memory for the others.

    Returns:
        `[B, T, width]`, or its last n places, zero at padding, and the state or None.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError: x, a mask or offsets that do not fit.
        MaskError: a mask with a hole, a row without tokens, or other numbers than 0 and 1.
        SequenceError: offsets that do not describe the tokens.
        GradientError: a gradient is wanted from inside a chunk.
        And what `StateKind.check` raises of a state.
    """
    if x.ndim != 3 or 0 in x.shape:
        raise ShapeError(name="embeddings", shape=list(x.shape), expected="[B, T, width] with B >= 1 and T >= 1")
    found = arranged(x, attention_mask, cu_seqlens, stall=return_state or state is not None)
    if state is not None:
        kind.check(state, blocks, x, found.sequences)
        _check_gradient(kind, state, blocks, x)
    layout = found.layout(0 if state is None else state.place, kind.period)
    y, layers = _run(blocks, found.taken(x, layout), state, layout, return_state, kept)
    return found.put_back(y, layout)[:, -kept:], kind.state(layers, layout.after()) if return_state else None


def carried(blocks: Sequence[Block], state: TrellisState) -> dict[str, Tensor]:
    """The tensors of a state at the start of a chunk, by name with the layer before; `restored` has it again."""
    found = [block.mixer.carried(layer) for block, layer in zip(blocks, state.layers, strict=True)]
    return {f"{index}.{name}": each for index, layer in enumerate(found) for name, each in layer.items()}


def restored(blocks: Sequence[Block], kind: StateKind, tensors: Mapping[str, Tensor]) -> TrellisState:
    """The state at the start of a chunk that `carried` took apart."""
    layers = []
    for index, block in enumerate(blocks):
        begin = f"{index}."
        own = {name.removeprefix(begin): each for name, each in tensors.items() if name.startswith(begin)}
        layers.append(block.mixer.restored(own))
    return kind.state(layers, 0)


def _run(
    blocks: Sequence[Block], x: Tensor, state: TrellisState | None, layout: Layout, return_state: bool, kept: int
) -> tuple[Tensor, list[AnyLayerState]]:
    layers: list[AnyLayerState] = []
    for index, block in enumerate(blocks):
        before = None if state is None else state.layers[index]
        ends = kept and index == len(blocks) - 1 and isinstance(layout, Rows)
        x, layer = block(x, before, layout, return_state=return_state, **({"kept": kept} if ends else {}))
        if layer is not None:
            layers.append(layer)
    return x, layers


def _check_gradient(kind: StateKind, state: TrellisState, blocks: Sequence[Block], x: Tensor) -> None:
    inside = isinstance(state.place, Tensor) or state.place != 0
    if not inside or not torch.is_grad_enabled():
        return
    if x.requires_grad or any(each.requires_grad for block in blocks for each in block.parameters()):
        advice = f"call it under torch.no_grad(), or give pieces of a multiple of C={kind.config.chunk} tokens"
        raise GradientError(name="going on from inside a chunk", advice=advice)
