"""Where the kernels of whole blocks may stand for the modules of a model: only if nobody could tell the difference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._C._functorch import get_interpreter_stack
from torch.nn.modules import module as module_hooks

from trellis_ops.calls import values
from trellis_ops.lm.block import Block, SwiGLU
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.mixer import TrellisMixer

FEWEST_TAPS = 2
MOST_ROWS = 64
"""Of a batch: products of more rows are matrix products, which torch has."""

_KINDS = (Block, TrellisMixer, SwiGLU, nn.Linear, nn.RMSNorm)
OVERRIDES = ("forward", "step")
"""Methods that an instance may have of its own."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Where a module keeps what is called beside its forward."""


def modules_of(blocks: nn.ModuleList, norm: nn.Module) -> Iterator[nn.Module]:
    """Every module that the kernels stand for: blocks with what they are made of, and the last norm."""
    for block in blocks:
        yield from block.modules()
    yield norm


def why_not_model(config: TrellisConfig, blocks: nn.ModuleList, norm: nn.Module, embedding: Tensor) -> str | None:
    """Why no kernel of whole blocks serves a model as it is made now, in one sentence; None if they do."""
    if config.rule is not None:
        return "the rule is not TRELLIS: kernels of whole blocks have its memory only"
    if config.conv_width < FEWEST_TAPS:
        return f"conv_width is {config.conv_width}: the kernels have convolutions of at least {FEWEST_TAPS} tokens"
    for module in modules_of(blocks, norm):
        reason = _why_not_module(module)
        if reason is not None:
            return reason
    parameters = itertools.chain(blocks.parameters(), norm.parameters(), (embedding,))
    return next(filter(None, map(_why_not_parameter, parameters)), None)


def why_not_call() -> str | None:
    """Why what surrounds a call needs to see the modules at work, in one sentence; None if nothing does."""
    if torch.compiler.is_compiling():
        return "torch.compile traces the call"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if values.enabled():
        return f"{values.VARIABLE} asks for checks of values between the operators"
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    if modes or get_interpreter_stack() is not None:
        return "a mode or a function transform of torch looks at every operation"
    if module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks:
        return "there are hooks on all modules"
    return None


def _why_not_module(module: nn.Module) -> str | None:
    kind = type(module)
    if kind not in _KINDS:
        return f"a {kind.__qualname__} is none of the modules that the kernels know"
    if any(getattr(module, name) for name in HOOKS):
        return f"a {kind.__qualname__} has hooks"
    if any(name in vars(module) for name in OVERRIDES):
        return f"a {kind.__qualname__} has a method of its own"
    return None


def _why_not_parameter(parameter: Tensor) -> str | None:
    if type(parameter) not in (nn.Parameter, Tensor):
        return f"a parameter is a {type(parameter).__qualname__}"
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return f"a parameter is {parameter.dtype} on {parameter.device}: the kernels take float32 on CPUs"
    if parameter.is_inference():
        return "a parameter was made under inference_mode, which does not count its changes"
    return None
