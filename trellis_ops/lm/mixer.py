"""The token mixer of TRELLIS: target, decay and step size beside q, k and v, and the two-pass memory.

Source: arXiv 2512.23852, figure 1. Target and decay have linear maps of their own and no convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trellis_ops.lm.sequences import Layout, Pooled
from trellis_ops.lm.sequences.parts import Index, Steps
from trellis_ops.lm.state.layer_state import LayerState, as_wide_as, state_dtype, wide
from trellis_ops.lm.token_mixer import TokenMixer, keep_start, put_rows, started
from trellis_ops.ops import trellis_attention, trellis_step
from trellis_ops.tokens import States, Tokens


class TrellisMixer(TokenMixer[LayerState]):
    """Mixes tokens through one two-pass memory per head, `[B, T, width]` to `[B, T, width]`."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the taps and the first state; set the forget gate and the step size to where they start."""
        super().reset_parameters()
        self.to_decay.bias.fill_(math.log(self.config.init_decay / (1.0 - self.config.init_decay)))
        step_size = self.config.init_step_size
        # The inverse of softplus; far above 1 it is gamma itself, whose exponential is no float64.
        self.step_size.fill_(step_size if step_size > 40.0 else math.log(math.expm1(step_size)))
        for first in (self.first_k, self.first_v):
            if first is not None:
                first.normal_(std=first.shape[-1] ** -0.5)

    def gates(self) -> list[nn.Module | nn.Parameter]:
        """The maps of the forget gate and the step size, and the step size of each head."""
        return [self.to_decay, self.step_size, *([] if self.to_step_size is None else [self.to_step_size])]

    def first_state(self, batch: int, like: Tensor) -> LayerState:
        """The state before the first token, on the device of `like` and with its type for the convolutions' tail."""
        zeros = {
            name: like.new_zeros(shape, dtype=like.dtype if name == "tail" else state_dtype(like.dtype))
            for name, shape in self.state_shapes(batch).items()
        }
        first = self._first_memories(batch)
        if first is not None:
            zeros["S_k"], zeros["S_v"] = (memory.clone() for memory in first)
        return LayerState(zeros["S_k"], zeros["S_v"], zeros.get("start_k"), zeros.get("start_v"), zeros["tail"])

    def state_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """The tensors of a layer's state by name, with their shapes."""
        heads, slots = self.config.heads, self.config.slots
        keys, values = (batch, heads, slots, self.dim_k), (batch, heads, slots, self.dim_v)
        starts = {"start_k": keys, "start_v": values} if self.config.keeps_starts else {}
        tail = (batch, self.config.conv_width - 1, self.config.key_width)
        return {"S_k": keys, "S_v": values, **starts, "tail": tail}

    def carried(self, state: LayerState) -> dict[str, Tensor]:
        """The memories and the tail; the chunk-start states hold nothing at the start of a chunk."""
        return {"S_k": state.S_k, "S_v": state.S_v, "tail": state.tail}

    def restored(self, tensors: Mapping[str, Tensor]) -> LayerState:
        """The state at the start of a chunk that `carried` took apart."""
        S_k, S_v = tensors["S_k"], tensors["S_v"]
        # A step moves the memories in place, and not what is kept of the chunk's start.
        starts = [torch.zeros_like(each) if self.config.keeps_starts else None for each in (S_k, S_v)]
        return LayerState(S_k, S_v, starts[0], starts[1], tensors["tail"])

    def has_length_one(self) -> tuple[bool, bool]:
        """Whether q and k, and whether v, are divided by their length."""
        return self.config.normalize_qkv, self.config.normalize_qkv

    def _add_inputs(self) -> None:
        config = self.config
        heads, slots = config.heads, config.slots
        self.to_target = nn.Linear(config.width, heads * slots, bias=False)
        self.to_decay = nn.Linear(config.width, heads)
        self.to_step_size = nn.Linear(config.width, heads, bias=False) if config.step_size == "token" else None
        self.step_size = nn.Parameter(torch.empty(heads))
        self.first_k = nn.Parameter(torch.empty(heads, slots, self.dim_k)) if config.learned_state else None
        self.first_v = nn.Parameter(torch.empty(heads, slots, self.dim_v)) if config.learned_state else None
        self._maps: dict[str, Any] = {
            "phi": config.phi,
            "link": config.link,
            "out": config.out,
            "phi_eps": config.phi_eps,
        }

    def _tokens(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tokens:
        target = self._heads(self.to_target(x))
        log_decay = F.logsigmoid(wide(self.to_decay(as_wide_as(x, self.to_decay))))
        step = wide(self.step_size)
        if self.to_step_size is not None:
            step = wide(self.to_step_size(as_wide_as(x, self.to_step_size))) + step
        # Under autocast the convolution and the normalisation may widen some of these; the operators want one type.
        return Tokens(q.to(target.dtype), k.to(target.dtype), v.to(target.dtype), target, log_decay, F.softplus(step))

    def _mix_alone(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        first = self._first_memories(layout.batch)
        y, _ = self._attend(self._tokens(x, q, k, v), first, layout.cu_seqlens, return_memories=False)
        return y

    def _mix_one(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: LayerState, begins: bool | Tensor) -> Tensor:
        return self._step(_each(self._tokens(x, q, k, v), (slice(None), 0)), state, begins)

    def _carry(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: LayerState, layout: Layout) -> Tensor:
        """y `[B, T, H, D_v]` of pieces of sequences, moving `state`.

        Three parts: tokens one by one to the end of the chunk that a row is in, whole chunks at once, and the rest,
        whose start state is kept because its chunk may go on.
        """
        tokens = self._tokens(x, q, k, v)
        if not self.config.keeps_starts:
            return self._attend_and_move(tokens, state, layout.cu_seqlens)
        found: list[Tensor] = []
        for part in layout.parts():
            if isinstance(part, Steps):
                found += [layout.as_tokens(y) for y in self._step_each(tokens, state, part)]
                continue
            self._keep_starts(state, part.begins)
            found.append(self._attend_and_move(_each(tokens, part.tokens), state, part.cu_seqlens))
        return layout.joined(found)

    def _mix_pooled(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, pools: Mapping[str, Tensor], sequences: Pooled
    ) -> Tensor:
        tokens, offsets = self._tokens(x, q, k, v), sequences.layout.cu_seqlens
        memories = pools["S_k"], pools["S_v"]
        rest: dict[str, Any] = {
            **self._maps,
            "gradient_state": (pools["start_k"], pools["start_v"]) if self.config.keeps_starts else None,
            "chunk_size": self.config.chunk if self.config.keeps_starts else 1,
            "state_indices": sequences.state_indices,
            "positions": sequences.positions,
            "first_state": None if sequences.fresh is None else self._first_memory(),
        }
        if offsets is None:
            return trellis_step(*_each(tokens, (slice(None), 0)), memories, **rest).unsqueeze(1)
        return trellis_attention(*tokens, initial_state=memories, cu_seqlens=offsets, **rest)[0]

    def _step_each(self, tokens: Tokens, state: LayerState, steps: Steps) -> list[Tensor]:
        if steps.rows is None:
            return [self._step(_each(tokens, index), state, begins=False) for index in steps.tokens]
        rows = steps.rows
        part = state.each(lambda tensor: tensor.index_select(0, rows))
        found = [self._step(_each(tokens, index), part, begins=False) for index in steps.tokens]
        put_rows(state, rows, part)
        return found

    def _keep_starts(self, state: LayerState, begins: bool | Tensor) -> None:
        """Keep the memories of rows whose chunk begins now: the operator returns others."""
        starts = state.starts()
        if isinstance(begins, Tensor) and starts is not None:
            pairs = zip(starts, state.memories(), strict=True)
            state.start_k, state.start_v = (started(start, memory, begins) for start, memory in pairs)
        elif begins is True:
            state.start_k, state.start_v = state.memories()

    def _attend_and_move(self, tokens: Tokens, state: LayerState, cu_seqlens: Tensor | None) -> Tensor:
        y, memories = self._attend(tokens, state.memories(), cu_seqlens, return_memories=True)
        assert memories is not None
        state.S_k, state.S_v = memories
        return y

    def _attend(
        self, tokens: Tokens, first: States | None, cu_seqlens: Tensor | None, *, return_memories: bool
    ) -> tuple[Tensor, States | None]:
        return trellis_attention(
            *tokens,
            chunk_size=self.config.chunk,
            initial_state=first,
            output_final_state=return_memories,
            cu_seqlens=cu_seqlens,
            outer_gradient=self.config.outer_gradient,
            **self._maps,
        )

    def _step(self, token: Tokens, state: LayerState, begins: bool | Tensor) -> Tensor:
        starts = state.starts()
        if starts is not None and begins is not False:
            for start, memory in zip(starts, state.memories(), strict=True):
                keep_start(start, memory, begins)
        return trellis_step(*token, state.memories(), gradient_state=starts, **self._maps)

    def _first_memories(self, batch: int) -> States | None:
        first = self._first_memory()
        if first is None:
            return None
        S_k, S_v = first
        return S_k.expand(batch, *S_k.shape), S_v.expand(batch, *S_v.shape)

    def _first_memory(self) -> States | None:
        """What a sequence starts from where that is learned, `[H, M, D]`."""
        if self.first_k is None or self.first_v is None:
            return None
        return wide(self.first_k), wide(self.first_v)


def _each(tokens: Tokens, index: Index) -> Tokens:
    """The tokens at `index`; a step_size `[H]` holds for all of them."""
    return tokens.each(lambda x: x if x.ndim == 1 else x[index])
