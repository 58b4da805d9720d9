"""TVM kernels where one head holds a number that is not finite.

Most are the kernels of the tests against the oracle, which a machine compiles once. Only sizes of
16, 32 and 64 have no padding.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from codegen.device import cpu
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.schedules.tvm import TvmSchedule
from tests.codegen.backends.tvm.test_forward import SILU, With, tiled
from tests.support.cases import non_finite
from tests.support.cases.kernels import Case
from tests.support.cases.non_finite import LENGTHS, batch, packed
from tests.support.operators import run_attention
from trellis_ops.tokens import Tokens

SCHEDULE = default("tvm", Case().spec, cpu())
assert isinstance(SCHEDULE, TvmSchedule)
# Nine programs for each worker: some before, and some after the one with the number, have the same scratch.
HEADS = {"heads": 3 * SCHEDULE.threads}


def everywhere(name: str) -> Rule:
    return Rule(name, link=name, out=name, phi_eps=1e-2, step_size="token")


def write(name: str, step_size: str = "head") -> Rule:
    return Rule(name, phi_eps=1e-2, step_size=step_size)


@pytest.mark.parametrize(
    ("build", "chunk", "rule"),
    [
        (tiled("fused", 8), 20, write("ln_silu")),
        (tiled("pair", 8), 20, write("softmax")),
        (tiled("split", 8), 20, write("l2_silu")),
        (With(variant="fused"), 20, Rule("identity", link="l2_silu", out="l2_silu")),
        (tiled("fused", 16), 3, write("ln_silu", "token")),
        (tiled("pair", 16), 3, write("softmax", "token")),
        (tiled("fused", 16), 8, write("identity", "token")),
        *((With(variant="recurrent"), 1, everywhere(name)) for name in ("ln_silu", "l2_silu", "softmax")),
    ],
)
@pytest.mark.parametrize("of_lengths", [batch, packed])
def test_attention(build, chunk, rule, of_lengths):
    names = ("q", "k", "v", "target", "log_decay", "S_k", "S_v") if rule.step_size == "head" else None
    non_finite.check_attention(build, of_lengths(Case(chunk=chunk, rule=rule, **HEADS)), names)


@pytest.mark.parametrize(
    ("variant", "chunk", "dim_k", "dim_v", "slots"),
    [
        ("fused", 20, 24, 40, 60),
        ("fused", 20, 64, 64, 64),
        ("recurrent", 1, 60, 24, 40),
        ("recurrent", 1, 64, 64, 64),
    ],
)
def test_sizes(variant, chunk, dim_k, dim_v, slots):
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    names = ("k", "v", "log_decay", "S_v")
    case = packed(Case(chunk=chunk, rule=SILU, **sizes, **HEADS))
    non_finite.check_attention(With(variant=variant), case, names)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["fused", "recurrent"])
def test_nan_of_all_ones_in_half_precision(variant, dtype):
    """Rounded as a number its bits would be those of zero."""
    case = Case(chunk=1 if variant == "recurrent" else 20, dtype=dtype)
    inputs = case.inputs()
    for bits in (2**31 - 1, -1):
        ones = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        states = inputs.initial_state[0], ones.expand_as(inputs.initial_state[1]).clone()
        changed = dataclasses.replace(inputs, initial_state=states)
        y, _ = run_attention(With(variant=variant)(case.spec), changed, case.lengths)
        assert y.isnan().all()


@pytest.mark.parametrize(
    ("build", "chunk", "back"),
    [
        (tiled("fused", 16), 3, 63),
        (tiled("pair", 16), 3, 63),
        (tiled("fused", 8), 20, 63),
        (With(variant="recurrent"), 1, 0),
    ],
)
def test_earlier_tokens_further_back_than_a_tile(build, chunk, back):
    """And than the chunk, with any NaN of a token; token by token none."""
    case = Case(chunk=chunk, lengths=(110,), rule=write("softmax" if chunk == 1 else "ln_silu", "token"))
    compiled, inputs, token = build(case.spec), case.inputs(), 100
    clean, _ = run_attention(compiled, inputs, case.lengths)
    kept = min(token // chunk * chunk, token - back)
    for name in Tokens._fields:
        changed = getattr(inputs, name).clone()
        changed[:, token] = non_finite.NAN
        y, _ = run_attention(compiled, dataclasses.replace(inputs, **{name: changed}), case.lengths)
        assert torch.equal(y[:, :kept], clean[:, :kept]), name
        assert y[:, token].isnan().all(), name


def test_update():
    for tile in (4, 16):
        case = batch(Case("memory_update", {4: 1, 16: 20}[tile], dim_v=20, **HEADS))
        non_finite.check_update(tiled("update", tile), case, ("k", "target", "log_decay", "S_k"))


@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
def test_readout(operator):
    case = batch(Case(operator, 20, dim_v=20, **HEADS))
    read = "target" if operator.endswith("transposed") else "q"
    names = (read, "k", "chunk_states", "codes", "log_decay")
    non_finite.check_readout(tiled("readout", 16), case, names)


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_step(operator):
    case = Case(operator, lengths=(1,) * len(LENGTHS), **HEADS)
    gradient = ("G_k", "G_v") if operator == "trellis_step_chunked" else ()
    names = ("q", "k", "v", "target", "log_decay", "S_k", "S_v", *gradient)
    non_finite.check_step(With(), case, names)


def test_parts_and_steps_without_padding():
    whole = HEADS | {"dim_k": 64, "dim_v": 64, "slots": 64}
    non_finite.check_update(tiled("update", 16), batch(Case("memory_update", 20, **whole)), ("k", "S_k"))
    non_finite.check_readout(tiled("readout", 16), batch(Case("memory_readout", 20, **whole)), ("k", "codes"))
    case = Case("trellis_step", lengths=(1,) * len(LENGTHS), **whole)
    non_finite.check_step(With(), case, ("k", "v", "S_v"))


@pytest.mark.parametrize(
    ("chunk", "dim_k", "dim_v", "slots", "outer_gradient"),
    [
        (16, 24, 40, 60, "bilevel"),
        (16, 64, 64, 64, "bilevel"),
        (20, 16, 32, 64, "first_order"),
        (2, 32, 64, 16, "bilevel"),
    ],
)
def test_backward_of_sizes(chunk, dim_k, dim_v, slots, outer_gradient):
    sizes = HEADS | {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    of_lengths = batch if chunk == 16 else packed
    case = of_lengths(Case(chunk=chunk, rule=SILU, **sizes))
    non_finite.check_backward(With(), case, outer_gradient, ("k", "S_v", "dy"))


@pytest.mark.parametrize(
    ("chunk", "rule", "outer_gradient", "changes"),
    [
        *((16, everywhere(name), "bilevel", {}) for name in ("ln_silu", "l2_silu", "softmax")),
        (64, write("ln_silu"), "first_order", {"tile_tokens": 16}),
        (20, write("ln_silu"), "bilevel", {"checkpoint_spacing": 4, "tile_tokens": 16}),
        (1, Rule("ln_silu", link="identity", phi_eps=1e-2, step_size="token"), "bilevel", {}),
        (3, write("ln_silu"), "first_order", {}),
        (2, write("ln_silu"), "bilevel", {}),
    ],
)
def test_backward(chunk, rule, outer_gradient, changes):
    of_lengths = batch if chunk == 16 else packed
    case = of_lengths(Case(chunk=chunk, rule=rule, **HEADS))
    names = ("q", "k", "v", "target", "log_decay", "S_v", "dy", "dS_k")
    if rule.step_size == "token":
        names += ("step_size",)
    non_finite.check_backward(With(**changes), case, outer_gradient, names)
