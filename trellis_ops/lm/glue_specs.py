"""Which specs a block calls between its products; its configuration decides them, so that they are known before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from codegen.kernels.glue.arguments import BACKWARD
from codegen.spec import Spec
from trellis_ops.dispatch.glue import spec_of
from trellis_ops.glue import called
from trellis_ops.glue.called import Called
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.specs.warming import DECODE, PACKED, TRAIN


def glue_specs(
    config: TrellisConfig, unit: tuple[bool, bool], kind: str, batch: int, tokens: int, dtype: torch.dtype
) -> list[Spec]:
    """What the kernels of `trellis_ops.glue` compute in a block of a model.

    Args:
        config: resolved.
        unit: whether q and k, and whether v, have length one.
        kind: one of `trellis_ops.specs.warming.KINDS`; a decode step has other kernels.
        batch, tokens: B and T of the model's call.
        dtype: of the residual stream.
    """
    if kind == DECODE:
        return []
    if kind == PACKED:
        batch, tokens = 1, batch * tokens
    found = _of_mixer(config, unit, batch, tokens, dtype) if config.conv_width > 1 else []
    # The last block of a prefill computes its last places only.
    for length in (tokens,) if kind == TRAIN else dict.fromkeys((tokens, 1)):
        found += _of_rows(config, kind, batch, length, dtype)
    if kind == TRAIN:
        found += [(f"{name}{BACKWARD}", call) for name, call in found]
    return [spec_of(name, call.sizes, dtype, call.inputs) for name, call in found if call.sizes is not None]


Named = list[tuple[str, Called]]


def _of_mixer(config: TrellisConfig, unit: tuple[bool, bool], batch: int, tokens: int, dtype: torch.dtype) -> Named:
    unit_keys, unit_values = unit
    keys, values, taps = config.key_width, config.value_width, config.conv_width
    shapes: list[tuple[int, ...]] = [(batch, tokens, keys), *([(batch, tokens, values)] if unit_values else [])]
    shapes += [(keys, taps), (keys, taps), (batch, taps - 1, keys)]
    given = list(_without_data(dtype, *shapes))
    return [("memory_inputs", called.memory_inputs(given, None, config.heads, unit_keys))]


def _of_rows(config: TrellisConfig, kind: str, batch: int, tokens: int, dtype: torch.dtype) -> Named:
    outer, heads = (batch, tokens), config.heads
    values = (*outer, heads, config.value_width // heads)
    mixed = list(_without_data(dtype, values, (*outer, config.value_width), values[-1:]))
    hidden = list(_without_data(dtype, (*outer, config.mlp_width), (*outer, config.mlp_width)))
    stream, weight = (*outer, config.width), (config.width,)
    normed = list(_without_data(dtype, stream, weight))
    found = [("gated_norm", called.gated_norm(mixed)), ("swiglu_gate", called.swiglu_gate(hidden))]
    found.append(("rms_norm", called.rms_norm(normed)))
    if kind != TRAIN:
        found.append(("add_rms_norm", called.rms_norm(list(_without_data(dtype, stream, stream, weight)))))
    return found


def _without_data(dtype: torch.dtype, *shapes: tuple[int, ...]) -> Iterator[Tensor]:
    return (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
