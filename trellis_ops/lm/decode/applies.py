"""Where the kernels of whole blocks may stand for the modules of a model: only if nobody could tell the difference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from codegen.kernels.layer.layout import layout_of
from codegen.layer import WEIGHTS
from trellis_ops.glue.surroundings import HOOKS, has_hooks_on_all, why_not_call
from trellis_ops.lm.block import Block, SwiGLU
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode.specs import block_spec, logits_spec
from trellis_ops.lm.mixer import TrellisMixer

FEWEST_TAPS = 2
MOST_ROWS = 64
"""Of a batch: products of more rows are matrix products, which torch has."""

MOST_NUMBERS = 2**31 - 1
"""Packed weights of a block, or of the map to logits."""

_KINDS = (Block, TrellisMixer, SwiGLU, nn.Linear, nn.RMSNorm)
_OF_BLOCK = ("step", "_feed_forward")
"""Methods that a kind of block shares with `Block`, if kernels know it."""

TYPES = (torch.float32, torch.bfloat16)
"""Of parameters."""

OVERRIDES = ("forward", "step")
"""Methods that an instance may have of its own."""


@dataclass(frozen=True)
class Parts:
    """What a decode step goes through.

    Attributes:
        config: resolved.
        blocks: `Block`s.
        output: the last norm, and the embedding the first rows of whose weight make the logits; None where kernels make
            no logits.
        holders: the modules that hold these.
        left_out: further modules that whoever takes the steps leaves out, none of which is seen at work.
    """

    config: TrellisConfig
    blocks: nn.ModuleList
    output: tuple[nn.RMSNorm, nn.Module] | None
    holders: tuple[nn.Module, ...]
    left_out: tuple[nn.Module, ...] = ()

    def modules(self) -> Iterator[nn.Module]:
        """Every module that the kernels stand for: blocks with what they are made of, and the last norm."""
        for block in self.blocks:
            yield from block.modules()
        if self.output is not None:
            yield self.output[0]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that the kernels read."""
        return itertools.chain(self.blocks.parameters(), *(each.parameters() for each in self.output or ()))

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next(self.parameters()).device

    def map_types(self) -> set[torch.dtype]:
        """The types of the linear maps of the blocks, but for those of gates."""
        gates = {each for block in self.blocks for each in cast(Block, block).mixer.gates()}
        maps = (each for each in self.blocks.modules() if isinstance(each, nn.Linear) and each not in gates)
        return {each.weight.dtype for each in maps}

    def are_narrow(self) -> bool:
        """Whether every linear map of the blocks, but those of gates, is narrower than float32."""
        return torch.float32 not in self.map_types()


class Model(Protocol):
    """A `torch.nn.Module` whose decode steps are taken."""

    def step_parts(self) -> Parts:
        """What a step goes through now."""


def why_not_model(parts: Parts) -> str | None:
    """Why no kernel of whole blocks serves a model as it is made now, in one sentence; None if they do."""
    reason = why_not_parts(parts, torch.device("cpu"))
    if reason is None and (numbers := _most_numbers(parts)) > MOST_NUMBERS:
        return f"a kernel would read {numbers:,} packed weights, and counts them in 32 bits"
    return reason


def why_not_parts(parts: Parts, device: torch.device) -> str | None:
    """Why no kernel on `device` may stand for the modules of a model, in one sentence; None if they may."""
    if parts.config.rule is not None:
        return "the rule is not TRELLIS: kernels of whole blocks have its memory only"
    width = parts.config.conv_width
    if width < FEWEST_TAPS:
        return f"conv_width is {width}: the kernels have convolutions of at least {FEWEST_TAPS} tokens"
    of_parameters = (_why_not_parameter(each, device) for each in parts.parameters())
    return next(filter(None, itertools.chain(map(_why_not_module, parts.modules()), of_parameters)), None)


def _most_numbers(parts: Parts) -> int:
    """The packed weights of the kernel that reads most."""
    config = parts.config
    specs = [block_spec(config, 1, WEIGHTS[0])] + ([] if parts.output is None else [logits_spec(config, 1, WEIGHTS[0])])
    return max(layout_of(spec).numbers for spec in specs)


def ends_early(block: nn.Module) -> bool:
    """Whether a last block may compute the places that are asked for only: no gradient is recorded, and nobody sees."""
    seen = torch.is_grad_enabled() or why_not_call() is not None or type(block).forward is not Block.forward
    return not seen and all(_why_not_module(each) is None for each in block.modules())


def _why_not_module(module: nn.Module) -> str | None:
    kind = type(module)
    if kind not in _KINDS and not _is_block(kind):
        return f"a {kind.__qualname__} is none of the modules that the kernels know"
    return _why_seen(module)


def is_seen(module: nn.Module) -> bool:
    """Whether somebody sees a module at work, or one that it has: by hooks, or by a method of its own."""
    return has_hooks_on_all() or any(_why_seen(each) is not None for each in module.modules())


def _why_seen(module: nn.Module) -> str | None:
    kind = type(module)
    if any(getattr(module, name) for name in HOOKS):
        return f"a {kind.__qualname__} has hooks"
    if any(name in vars(module) for name in OVERRIDES):
        return f"a {kind.__qualname__} has a method of its own"
    return None


def _is_block(kind: type[nn.Module]) -> bool:
    return issubclass(kind, Block) and all(getattr(kind, name) is getattr(Block, name) for name in _OF_BLOCK)


def _why_not_parameter(parameter: Tensor, device: torch.device) -> str | None:
    if type(parameter) not in (nn.Parameter, Tensor):
        return f"a parameter is a {type(parameter).__qualname__}"
    if parameter.device != device or parameter.dtype not in TYPES:
        found = f"{parameter.dtype} on {parameter.device}"
        return f"a parameter is {found}: the kernels take float32 and bfloat16, all on {device}"
    if parameter.is_inference():
        return "a parameter was made under inference_mode, which does not count its changes"
    return None
