"""What every token mixer of a block shares: projections, short convolutions, norm, gate, output map, and the tail.

Source: arXiv 2512.23852, figure 1. q and k come from one shared linear map followed by a short causal depthwise
convolution each; v has a linear map of its own and no convolution.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codegen.spec import Spec
from trellis_ops import glue
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.rules.called_specs import called_spec
from trellis_ops.lm.sequences import Layout, Pooled
from trellis_ops.lm.state.layer_state import LayerState, RuleLayerState

State = TypeVar("State", LayerState, RuleLayerState)


class TokenMixer(nn.Module, Generic[State]):
    """Mixes tokens through one memory or two per head, `[B, T, width]` to `[B, T, width]`.

    Args:
        config: a resolved configuration.
    """

    def __init__(self, config: TrellisConfig) -> None:
        super().__init__()
        self.config: TrellisConfig = config
        heads, width = config.heads, config.width
        self.dim_k: int = config.key_width // heads
        self.dim_v: int = config.value_width // heads
        self.to_qk: nn.Linear = nn.Linear(width, config.key_width, bias=False)
        self.conv_q: nn.Parameter = nn.Parameter(torch.empty(config.key_width, config.conv_width))
        self.conv_k: nn.Parameter = nn.Parameter(torch.empty(config.key_width, config.conv_width))
        self.to_v: nn.Linear = nn.Linear(width, config.value_width, bias=False)
        self._add_inputs()
        self.to_gate: nn.Linear = nn.Linear(width, config.value_width, bias=False)
        self.norm: nn.RMSNorm = nn.RMSNorm(self.dim_v, eps=config.norm_eps)
        self.to_out: nn.Linear = nn.Linear(config.value_width, width, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the taps and set the norm to one; linear maps are drawn by the model."""
        for taps in (self.conv_q, self.conv_k):
            bound = self.config.conv_width**-0.5
            taps.uniform_(-bound, bound)
        self.norm.weight.fill_(1.0)

    def forward(
        self, x: Tensor, state: State | None, layout: Layout, *, return_state: bool = True, kept: int = 0
    ) -> tuple[Tensor, State | None]:
        """Mix `[B, T, width]`, going on from `state`, or starting sequences; `layout` says where they are in x.

        Without a state to start from and to return, all tokens go through one call of the operator. The state given is
        left as it was, and the one returned shares no memory with it. Only the last `kept` places are returned, 0 for
        all: what follows the memory is not computed for the others.
        """
        shared, v = self.to_qk(x), self._heads(self.to_v(x))
        q, k, v, tails = self._read(shared, v, None if state is None else state.tail, layout)
        if state is None and not return_state:
            return self._finish(x[:, -kept:], self._mix_alone(x, q, k, v, layout)[:, -kept:]), None
        state = self.first_state(layout.batch, shared) if state is None else state.each(torch.clone)
        y = self._carry(x, q, k, v, state, layout)
        state.tail = tails
        return self._finish(x[:, -kept:], y[:, -kept:]), state if return_state else None

    def step(self, x: Tensor, state: State, begins: bool | Tensor) -> Tensor:
        """Mix one token `[B, width]` and move `state` in place; `begins` as `TrellisState.begins` gives it."""
        shared = self.to_qk(x)[:, None]
        window = torch.cat([state.tail.to(shared.dtype), shared], 1)
        state.tail.copy_(window[:, 1:])
        q, k, v = self._made_unit(*self._convolved(window), self._heads(self.to_v(x)[:, None]))
        return self._finish(x, self._mix_one(x[:, None], q, k, v, state, begins))

    def pooled(self, x: Tensor, pools: Mapping[str, Tensor], sequences: Pooled) -> Tensor:
        """Mix the next tokens of sequences whose states lie in pools, and move their slots in place; no gradient.

        Args:
            x: `[N, 1, width]`, one token of each sequence, or `[1, total, width]`, as `sequences.layout` has them.
            pools: the tensors of a layer's state by name, `[capacity, ...]`, float32, contiguous behind the first axis;
                those without elements may be left out.
            sequences: whose tokens they are.

        Returns:
            As x.
        """
        shared, v, has_tail = self.to_qk(x), self._heads(self.to_v(x)), self.config.conv_width > 1
        before = sequences.load(pools["tail"], 0.0) if has_tail else None
        q, k, v, tails = self._read(shared, v, before, sequences.layout)
        if has_tail:
            sequences.store(pools["tail"], tails)
        return self._finish(x, self._mix_pooled(x, q, k, v, pools, sequences))

    def called_specs(self, kind: str, batch: int, tokens: int) -> list[Spec]:
        """The specs of a call of `kind`, see `trellis_ops.warm_up`; none of float64, which has no kernels."""
        weight = self.to_v.weight
        device, dtype = weight.device.type, weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if dtype == torch.float64:
            return []
        return [called_spec(self.config, kind, batch, tokens, str(dtype).removeprefix("torch."))]

    @abstractmethod
    def gates(self) -> list[nn.Module | nn.Parameter]:
        """What makes gates and step sizes: float32 in a model of half precision, where it is loaded as such."""

    @abstractmethod
    def first_state(self, batch: int, like: Tensor) -> State:
        """The state before the first token, on the device of `like` and with its type for the convolutions' tail."""

    @abstractmethod
    def state_shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """The tensors of a layer's state by name, with their shapes."""

    @abstractmethod
    def carried(self, state: State) -> dict[str, Tensor]:
        """What of a state goes on at the start of a chunk, by name: all but what is kept of the chunk's start."""

    @abstractmethod
    def restored(self, tensors: Mapping[str, Tensor]) -> State:
        """The state at the start of a chunk that `carried` took apart."""

    @abstractmethod
    def has_length_one(self) -> tuple[bool, bool]:
        """Whether q and k, and whether v, are divided by their length as soon as they are made."""

    @abstractmethod
    def _add_inputs(self) -> None:
        """Make the parameters of what the memory takes beside q, k and v."""

    @abstractmethod
    def _mix_alone(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """y `[B, T, H, D_v]` of whole sequences; q, k and v `[B, T, H, D]` are as `_read` gives them."""

    @abstractmethod
    def _carry(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: State, layout: Layout) -> Tensor:
        """y `[B, T, H, D_v]` of pieces of sequences, moving `state`, which is nobody else's."""

    @abstractmethod
    def _mix_one(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: State, begins: bool | Tensor) -> Tensor:
        """y `[B, H, D_v]` of one token, x `[B, 1, width]`, moving the tensors of `state` in place."""

    @abstractmethod
    def _mix_pooled(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, pools: Mapping[str, Tensor], sequences: Pooled
    ) -> Tensor:
        """y `[B, T, H, D_v]` of tokens as `pooled` has them, moving the slots of all pools but that of the tail."""

    def _read(
        self, shared: Tensor, v: Tensor, before: Tensor | None, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v `[B, T, H, D]`, and the convolutions' inputs that the next tokens see, `[N, W - 1, H D_k]`.

        Args:
            shared: the input of both convolutions, `[B, T, H D_k]`.
            v: `[B, T, H, D_v]`, as its linear map gives it.
            before: the inputs before the first tokens, `[N, W - 1, H D_k]`; None for zeros.
            layout: where sequences are.
        """
        kept = self.config.conv_width - 1
        if kept and glue.replaces_modules(shared, v, self.conv_q, self.conv_k):
            return self._read_by_kernel(shared, v, before, layout)
        window = layout.window(before, shared, kept)
        q, k = self._convolved(window)
        q, k, v = self._made_unit(layout.at_tokens(q), layout.at_tokens(k), v)
        return q, k, v, layout.tails(window)

    def _read_by_kernel(
        self, shared: Tensor, v: Tensor, before: Tensor | None, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config, (unit_keys, unit_values) = self.config, self.has_length_one()
        shape = (layout.batch, config.conv_width - 1, config.key_width)
        tails = shared.new_zeros(shape) if before is None else before.to(shared.dtype)
        q, k, unit, after = glue.memory_inputs(
            shared,
            v.flatten(-2) if unit_values else None,
            self.conv_q,
            self.conv_k,
            tails,
            layout.cu_seqlens,
            heads=config.heads,
            unit_keys=unit_keys,
            eps=config.norm_eps,
            overwrite=glue.makes_anew(self.to_v),
        )
        return q, k, v if unit is None else unit, after

    def _convolved(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """q and k of the convolutions' input, `[B, conv_width - 1 + T, H D_k]`, before they are parted into heads."""
        return glue.causal_convolution(window, self.conv_q), glue.causal_convolution(window, self.conv_k)

    def _made_unit(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k `[..., H D_k]` as `[..., H, D_k]`, and they and v `[..., H, D_v]` of length one where they are."""
        q, k = self._heads(q), self._heads(k)
        unit_keys, unit_values = self.has_length_one()
        if unit_keys:
            q, k = self._unit(q), self._unit(k)
        return q, k, self._unit(v) if unit_values else v

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=self.config.norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.config.heads, -1)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        gate, norm = self.to_gate(x), self.norm
        if glue.is_plain_norm(norm) and glue.replaces_modules(y, gate, norm.weight):
            mixed = glue.gated_norm(y, gate, norm.weight, eps=norm.eps, overwrite=glue.makes_anew(self.to_gate))
        else:
            mixed = norm(y).flatten(-2) * F.gelu(gate)
        found: Tensor = self.to_out(mixed)
        return found


AnyMixer = TokenMixer[Any]


def put_rows(state: State, rows: Tensor, part: State) -> None:
    """Put the rows of `part` in the place of `rows` of `state`, whose tensors move in place."""
    whole = state.tensors()
    for name, tensor in part.tensors().items():
        whole[name].index_copy_(0, rows, tensor)


def started(start: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
    """`memory` in the rows of the mask `begins [B]`, whose chunk begins, and `start` in the others."""
    return torch.where(begins.view(-1, *(1,) * (start.ndim - 1)), memory, start)


def keep_start(start: Tensor, begun: Tensor, begins: bool | Tensor) -> None:
    """Put `begun`, the memory now, into `start` where a chunk begins: in all rows or none, or by a mask `[B]`."""
    if isinstance(begins, Tensor):
        start.copy_(started(start, begun, begins))
    elif begins:
        start.copy_(begun)
