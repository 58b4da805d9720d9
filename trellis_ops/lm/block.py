"""The block of the reference model: a memory, then a SwiGLU, both behind a norm and beside a residual stream.

Source: arXiv 2512.23852, figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codegen.spec import Spec
from trellis_ops import glue
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.glue_specs import glue_specs
from trellis_ops.lm.mixer import TrellisMixer
from trellis_ops.lm.norms import added_and_normed, normed
from trellis_ops.lm.rules.mixer import RuleMixer
from trellis_ops.lm.sequences import Layout, Pooled
from trellis_ops.lm.state import AnyLayerState
from trellis_ops.lm.token_mixer import AnyMixer


@torch.no_grad()
def draw_maps(model: nn.Module, layers: int) -> None:
    """Draw the weights of embeddings and linear maps anew, and set norms to one.

    Linear maps come from N(0, 1 / (4 fan_in)), those into the residual stream smaller by the root of 2 `layers`.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.5 * module.embedding_dim**-0.5)
        elif isinstance(module, nn.Linear):
            std = 0.5 * module.in_features**-0.5
            into_residual = name.endswith((".to_out", ".down"))
            module.weight.normal_(std=std * (2 * layers) ** -0.5 if into_residual else std)
        elif isinstance(module, nn.RMSNorm):
            module.weight.fill_(1.0)


class SwiGLU(nn.Module):
    """The feed-forward half of a block: down(silu(gate(x)) * up(x)), arXiv 2002.05202."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to `[..., width]`."""
        gate, up = self.gate(x), self.up(x)
        if glue.replaces_modules(gate, up):
            hidden = glue.swiglu_gate(gate, up, overwrite=glue.makes_anew(self.gate))
        else:
            hidden = F.silu(gate) * up
        mixed: Tensor = self.down(hidden)
        return mixed


class Block(nn.Module):
    """x + Memory(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))."""

    def __init__(self, config: TrellisConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mixer: AnyMixer = TrellisMixer(config) if config.rule is None else RuleMixer(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp_width)

    def forward(
        self, x: Tensor, state: AnyLayerState | None, layout: Layout, *, return_state: bool, kept: int = 0
    ) -> tuple[Tensor, AnyLayerState | None]:
        """`[B, T, width]` to the same, or to its last `kept` places; see `TokenMixer.forward`."""
        mixed, state = self.mixer(normed(self.mixer_norm, x), state, layout, return_state=return_state, kept=kept)
        x, read = added_and_normed(self.mlp_norm, x[:, -kept:], mixed)
        return x + self.mlp(read), state

    def step(self, x: Tensor, state: AnyLayerState, begins: bool | Tensor) -> Tensor:
        """`[B, width]` to the same, moving `state` in place; `begins` as `TrellisState.begins` gives it."""
        return self._feed_forward(x + self.mixer.step(self.mixer_norm(x), state, begins))

    def pooled(self, x: Tensor, pools: Mapping[str, Tensor], sequences: Pooled) -> Tensor:
        """The next tokens of sequences whose states lie in pools, as `TokenMixer.pooled` has them."""
        return self._feed_forward(x + self.mixer.pooled(self.mixer_norm(x), pools, sequences))

    def called_specs(self, kind: str, batch: int, tokens: int) -> list[Spec]:
        """The specs between the products in a call of `kind`, see `trellis_ops.warm_up`; those of memories not."""
        weight = self.mlp_norm.weight
        if torch.is_autocast_enabled(weight.device.type) or weight.dtype not in glue.TYPES:
            return []
        return glue_specs(self.mixer.config, self.mixer.has_length_one(), kind, batch, tokens, weight.dtype)

    def _feed_forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(self.mlp_norm(x))
        return x + mixed
