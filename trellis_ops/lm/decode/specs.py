"""What the kernels of a model's decode step compute, as specs."""

from __future__ import annotations

from dataclasses import replace

from codegen.kernels.layer.arguments import CHUNK_START, state_names
from codegen.layer import WEIGHTS, Layer
from codegen.rule import Rule
from codegen.spec import BLOCK_STEP, LOGITS_STEP, MIXER_STEP, NORM_STEP, SWIGLU_STEP, Problem, Spec
from trellis_ops.lm.config import TrellisConfig


def block_spec(config: TrellisConfig, batch: int, weights: str, *, pooled: bool = False) -> Spec:
    """A block of a model of TRELLIS, for one token of each of `batch` rows, with weights of the type `weights`.

    The states of the rows lie in pools if `pooled`.
    """
    heads = config.heads
    problem = Problem(
        BLOCK_STEP,
        batch=batch,
        tokens=1,
        heads=heads,
        dim_k=config.key_width // heads,
        dim_v=config.value_width // heads,
        slots=config.slots,
        chunk=config.chunk if config.keeps_starts else 1,
        layer=Layer(config.width, config.mlp_width, config.conv_width, config.normalize_qkv, weights, pooled),
    )
    rule = Rule(config.phi, link=config.link, out=config.out, phi_eps=config.phi_eps, step_size=config.step_size)
    return Spec(rule, problem)


def block_states(config: TrellisConfig) -> tuple[str, ...]:
    """The tensors of a layer's state in the order of its kernel, as `trellis_ops.lm.state.LayerState` calls them."""
    return tuple(name.replace(CHUNK_START, "start_") for name in state_names(block_spec(config, 1, WEIGHTS[0])))


def logits_spec(config: TrellisConfig, batch: int, weights: str) -> Spec:
    """The last norm of a model and its map to logits; nothing of a memory enters it."""
    layer = Layer(config.width, config.vocab_size, weights=weights)
    return Spec(Rule(), Problem(LOGITS_STEP, batch=batch, tokens=1, heads=1, chunk=1, layer=layer))


def norm_spec(config: TrellisConfig, batch: int, dtype: str) -> Spec:
    """A norm of the residual stream, whose rows have the type `dtype`, as all of them; what it lacks is 1."""
    problem = Problem(NORM_STEP, batch=batch, tokens=1, heads=1, chunk=1, dtype=dtype, layer=Layer(config.width, 1))
    return Spec(Rule(), problem)


def mixer_spec(config: TrellisConfig, batch: int, dtype: str) -> Spec:
    """A token mixer from its projections to its output map, of rows of the type `dtype`."""
    block = block_spec(config, batch, WEIGHTS[0])
    layer = Layer(config.width, 1, config.conv_width, config.normalize_qkv)
    return Spec(block.rule, replace(block.problem, operator=MIXER_STEP, dtype=dtype, layer=layer))


def swiglu_spec(config: TrellisConfig, batch: int, dtype: str) -> Spec:
    """The product in a SwiGLU, of rows of the type `dtype`."""
    layer = Layer(1, config.mlp_width)
    return Spec(Rule(), Problem(SWIGLU_STEP, batch=batch, tokens=1, heads=1, chunk=1, dtype=dtype, layer=layer))
