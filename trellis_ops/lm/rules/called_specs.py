"""Which specs the token mixer of a block calls; its configuration decides them, so that they are known before."""

from __future__ import annotations

from dataclasses import replace

from codegen.recurrence.of_rule import used_chunk_states
from codegen.spec import CHUNKED_STEP, Problem, Spec, effective_chunk
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.rules.named import rule_inputs
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.specs.warming import DECODE, PACKED, TRAIN


def called_spec(config: TrellisConfig, kind: str, batch: int, tokens: int, dtype: str) -> Spec:
    """What a mixer calls per layer.

    Args:
        config: resolved.
        kind: one of `trellis_ops.specs.warming.KINDS`.
        batch, tokens: B and T of the model's call.
        dtype: of q, k and v.
    """
    is_trellis = config.rule is None
    substeps = 1 if config.rule is None else rule_inputs(config.rule).substeps
    sizes = Problem(
        operator="trellis_attention" if is_trellis else "memory_attention",
        batch=batch,
        heads=config.heads,
        dim_k=config.key_width // config.heads,
        dim_v=config.value_width // config.heads,
        slots=config.slots if config.record.passes == 2 else config.value_width // config.heads,
        dtype=dtype,
    )
    if kind == DECODE:
        return Spec(config.record, replace(sizes, operator=_step_of(config), tokens=1, chunk=1))
    if kind == PACKED:
        batch, tokens = 1, batch * tokens
    direction = "forward"
    if kind == TRAIN:
        direction = "backward_first_order" if is_first_order(config.outer_gradient) else "backward"
    tokens *= substeps
    chunk = effective_chunk(config.chunk, tokens)
    return Spec(config.record, replace(sizes, batch=batch, tokens=tokens, chunk=chunk, direction=direction))


def _step_of(config: TrellisConfig) -> str:
    if config.rule is None:
        return "trellis_step_chunked" if config.keeps_starts else "trellis_step"
    return CHUNKED_STEP if config.keeps_starts and used_chunk_states(config.record, True) else "memory_step"
