"""The token mixer of a block: projections, short convolutions, the two-pass memory, norm, gate and output map.

Source: arXiv 2512.23852, figure 1. q and k come from one shared linear map followed by a short causal depthwise
convolution each; v, target and decay have linear maps of their own and no convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.state import LayerState, state_dtype
from trellis_ops.ops import trellis_attention, trellis_step
from trellis_ops.tokens import States, Tokens


class TrellisMixer(nn.Module):
    """Mixes tokens through one two-pass memory per head, `[B, T, width]` to `[B, T, width]`.

    Args:
        config: a resolved configuration.
    """

    def __init__(self, config: TrellisConfig) -> None:
        super().__init__()
        self.config = config
        heads, width = config.heads, config.width
        self.dim_k, self.dim_v = config.key_width // heads, config.value_width // heads
        self.to_qk = nn.Linear(width, config.key_width, bias=False)
        self.conv_q = nn.Parameter(torch.empty(config.key_width, config.conv_width))
        self.conv_k = nn.Parameter(torch.empty(config.key_width, config.conv_width))
        self.to_v = nn.Linear(width, config.value_width, bias=False)
        self.to_target = nn.Linear(width, heads * config.slots, bias=False)
        self.to_decay = nn.Linear(width, heads)
        self.to_step_size = nn.Linear(width, heads, bias=False) if config.step_size == "token" else None
        self.step_size = nn.Parameter(torch.empty(heads))
        self.to_gate = nn.Linear(width, config.value_width, bias=False)
        self.norm = nn.RMSNorm(self.dim_v, eps=config.norm_eps)
        self.to_out = nn.Linear(config.value_width, width, bias=False)
        self.first_k = nn.Parameter(torch.empty(heads, config.slots, self.dim_k)) if config.learned_state else None
        self.first_v = nn.Parameter(torch.empty(heads, config.slots, self.dim_v)) if config.learned_state else None
        self._maps: dict[str, Any] = {
            "phi": config.phi,
            "link": config.link,
            "out": config.out,
            "phi_eps": config.phi_eps,
        }
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the taps and the first state; set the forget gate and the step size to where they start."""
        for taps in (self.conv_q, self.conv_k):
            bound = self.config.conv_width**-0.5
            taps.uniform_(-bound, bound)
        self.to_decay.bias.fill_(math.log(self.config.init_decay / (1.0 - self.config.init_decay)))
        step_size = self.config.init_step_size
        # The inverse of softplus; far above 1 it is gamma itself, whose exponential is no float64.
        self.step_size.fill_(step_size if step_size > 40.0 else math.log(math.expm1(step_size)))
        self.norm.weight.fill_(1.0)
        for first in (self.first_k, self.first_v):
            if first is not None:
                first.normal_(std=first.shape[-1] ** -0.5)

    def forward(
        self, x: Tensor, state: LayerState | None = None, position: int = 0, *, return_state: bool = True
    ) -> tuple[Tensor, LayerState | None]:
        """Mix `[B, T, width]`, going on from `state` at `position` inside its chunk, or starting a sequence.

        Without a state to start from and to return, all tokens go through one `trellis_attention`. The state given is
        left as it was, and the one returned shares no memory with it.
        """
        shared = self.to_qk(x)
        tail = F.pad(shared[:, :0], (0, 0, self.config.conv_width - 1, 0)) if state is None else state.tail
        window = torch.cat([tail.to(shared.dtype), shared], 1)
        tokens = self._tokens(x, window)
        if state is None and not return_state:
            y, _ = self._attend(tokens, self._first_memories(x.shape[0]))
            return self._finish(x, y), None
        state = self.first_state(x.shape[0], shared) if state is None else state.clone()
        y = self._carry(tokens, state, position)
        state.tail = window[:, x.shape[1] :].clone()
        return self._finish(x, y), state if return_state else None

    def step(self, x: Tensor, state: LayerState, position: int) -> Tensor:
        """Mix one token `[B, width]` and move `state` in place."""
        shared = self.to_qk(x)[:, None]
        window = torch.cat([state.tail.to(shared.dtype), shared], 1)
        state.tail.copy_(window[:, 1:])
        y = self._step(_each(self._tokens(x[:, None], window), 0), state, position)
        return self._finish(x, y)

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

    def _tokens(self, x: Tensor, window: Tensor) -> Tokens:
        """Project x `[B, T, width]`; `window` is the convolutions' input `[B, conv_width - 1 + T, H D_k]`."""
        q = self._heads(causal_convolution(window, self.conv_q))
        k = self._heads(causal_convolution(window, self.conv_k))
        v = self._heads(self.to_v(x))
        if self.config.normalize_qkv:
            q, k, v = (F.normalize(each, dim=-1, eps=self.config.norm_eps) for each in (q, k, v))
        target = self._heads(self.to_target(x))
        # A forget gate near 1 loses its meaning in half precision.
        log_decay = F.logsigmoid(_wide(self.to_decay(x)))
        step = (
            _wide(self.step_size) if self.to_step_size is None else _wide(self.to_step_size(x)) + _wide(self.step_size)
        )
        # Under autocast the convolution and the normalisation may widen some of these; the operators want one type.
        return Tokens(q.to(target.dtype), k.to(target.dtype), v.to(target.dtype), target, log_decay, F.softplus(step))

    def _carry(self, tokens: Tokens, state: LayerState, position: int) -> Tensor:
        """Read and write all tokens, moving `state`; y `[B, T, H, D_v]`.

        Three pieces: tokens one by one to the end of the chunk that `state` is in, whole chunks at once, and the rest,
        whose start state is kept because its chunk may go on.
        """
        length, chunk = tokens.q.shape[1], self.config.chunk
        if not self.config.keeps_starts:
            return self._attend_and_move(tokens, state)
        ragged = min(length, -position % chunk)
        pieces = [self._step(_each(tokens, t), state, position + t)[:, None] for t in range(ragged)]
        whole = length - (length - ragged) % chunk
        for first, end in ((ragged, whole), (whole, length)):
            if first < end:
                state.start_k, state.start_v = state.memories()
                pieces.append(self._attend_and_move(_each(tokens, slice(first, end)), state))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    def _attend_and_move(self, tokens: Tokens, state: LayerState) -> Tensor:
        y, memories = self._attend(tokens, state.memories(), return_memories=True)
        assert memories is not None
        state.S_k, state.S_v = memories
        return y

    def _attend(
        self, tokens: Tokens, first: States | None, return_memories: bool = False
    ) -> tuple[Tensor, States | None]:
        return trellis_attention(
            *tokens,
            chunk_size=self.config.chunk,
            initial_state=first,
            output_final_state=return_memories,
            outer_gradient=self.config.outer_gradient,
            **self._maps,
        )

    def _step(self, token: Tokens, state: LayerState, position: int) -> Tensor:
        starts = state.starts()
        if starts is not None and position % self.config.chunk == 0:
            starts[0].copy_(state.S_k)
            starts[1].copy_(state.S_v)
        return trellis_step(*token, state.memories(), gradient_state=starts, **self._maps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.config.heads, -1)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        gate = F.gelu(self.to_gate(x))
        mixed: Tensor = self.to_out(self.norm(y).flatten(-2) * gate)
        return mixed

    def _first_memories(self, batch: int) -> States | None:
        if self.first_k is None or self.first_v is None:
            return None
        S_k, S_v = _wide(self.first_k), _wide(self.first_v)
        return S_k.expand(batch, *S_k.shape), S_v.expand(batch, *S_v.shape)


def _each(tokens: Tokens, index: int | slice) -> Tokens:
    """The tokens at `index`; a step_size `[H]` holds for all of them."""
    return tokens.each(lambda x: x if x.ndim == 1 else x[:, index])


def _wide(x: Tensor) -> Tensor:
    """In float32, or as it is in float64."""
    return x.to(state_dtype(x.dtype))


def causal_convolution(window: Tensor, taps: Tensor) -> Tensor:
    """Depthwise convolution: window `[B, W - 1 + T, channels]`, taps `[channels, W]` to `[B, T, channels]`.

    A sum of W shifted products, which stays in the layout of the linear maps before and after it.
    """
    length = window.shape[1] - taps.shape[1] + 1
    convolved = window[:, :length] * taps[:, 0]
    for offset in range(1, taps.shape[1]):
        convolved = torch.addcmul(convolved, window[:, offset : offset + length], taps[:, offset])
    return convolved
