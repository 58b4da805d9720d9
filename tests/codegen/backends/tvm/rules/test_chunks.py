"""The tokens of a tile at once, for rules that are linear in their state, against the eager walk in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.recurrence.forms import why_no_chunk_form
from codegen.rule import Rule
from codegen.rules import NAMED
from codegen.schedules.legality import why_illegal
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Problem, Spec
from tests.support.linear_rules import LINEAR, RULES, Named, Sizes, flat, inputs, sequences_of, spec_of
from trellis_ops.eager.recurrence import attention

WIDTH = cpu().vector_bits // 32


def schedule(rule: Rule, tile: int = WIDTH, width: int = WIDTH, accumulators: int = 8) -> TvmSchedule:
    return TvmSchedule("chunks", width if rule.decay in ("slot", "channel") else tile, width, accumulators, threads=2)


def chunked(
    rule: Rule, given: Named, first: Named, how: TvmSchedule, offsets: torch.Tensor | None = None, chunk: int = 1
) -> tuple[torch.Tensor, ...]:
    """y and the final states, of outputs that held NaN."""
    operator = build(spec_of(rule, given, chunk), how, cpu())
    final = {name: x.clone() for name, x in first.items()}
    y = torch.full_like(given["v"].flatten(0, 1), float("nan"))
    operator.forward(flat(rule, given) | final | {"y": y}, sequences_of(given, offsets))
    return y.view_as(given["v"]), *final.values()


def walked(
    rule: Rule, given: Named, first: Named, offsets: torch.Tensor | None = None, chunk: int = 1
) -> tuple[torch.Tensor, ...]:
    """The same token by token, in float64."""
    wide = ({name: x.double() for name, x in named.items()} for named in (given, first))
    y, final = attention(rule, *wide, chunk_size=chunk, cu_seqlens=offsets)
    return y, *final.values()


def require_close(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], bound: float) -> None:
    for x, exact in zip(found, wanted, strict=True):
        assert (x.double() - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("name", [name for name in RULES if name != "in_place"])
def test_a_batch_with_initial_states(name: str) -> None:
    rule = RULES[name]
    call = inputs(rule, Sizes())
    require_close(chunked(rule, *call, schedule(rule)), walked(rule, *call), 1e-5)


@pytest.mark.parametrize("name", ["linear", "kda", "rwkv7", "gsa"])
def test_packed_sequences_that_are_empty_or_end_inside_a_tile(name: str) -> None:
    rule, offsets = RULES[name], torch.tensor([0, 0, 17, 17, 50, 51, 83])
    call = inputs(rule, Sizes(batch=1, tokens=83), sequences=6)
    require_close(chunked(rule, *call, schedule(rule), offsets), walked(rule, *call, offsets), 1e-5)


@pytest.mark.parametrize(("tile", "width", "accumulators"), [(8, 4, 4), (32, 8, 12)])
@pytest.mark.parametrize("name", ["comba", "erase_post"])
def test_tiles_of_any_shape(name: str, tile: int, width: int, accumulators: int) -> None:
    rule = RULES[name]
    call = inputs(rule, Sizes(batch=1, tokens=77), sequences=1)
    require_close(chunked(rule, *call, schedule(rule, tile, width, accumulators)), walked(rule, *call), 1e-5)


@pytest.mark.parametrize(("dim_k", "dim_v"), [(1, 1), (3, 70), (100, 5)])
@pytest.mark.parametrize("name", ["gla", "deltanet"])
def test_widths_that_fill_no_vector(name: str, dim_k: int, dim_v: int) -> None:
    rule = RULES[name]
    call = inputs(rule, Sizes(heads=1, dim_k=dim_k, dim_v=dim_v))
    require_close(chunked(rule, *call, schedule(rule)), walked(rule, *call), 1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("name", ["linear", "kda"])
def test_half_precision(name: str, dtype: torch.dtype, bound: float) -> None:
    rule = RULES[name]
    call = inputs(rule, Sizes(), dtype)
    require_close(chunked(rule, *call, schedule(rule)), walked(rule, *call), bound)


@pytest.mark.parametrize("name", ["linear", "gated_deltanet", "kda", "rwkv7", "gsa"])
def test_strong_gates_forget_exactly(name: str) -> None:
    rule = RULES[name]
    given, first = inputs(rule, Sizes())
    gates = given["log_decay"]
    gates.copy_(torch.tensor([-1e-3, -5.0, -80.0, -torch.inf])[torch.randint(0, 4, gates.shape)])
    require_close(chunked(rule, given, first, schedule(rule)), walked(rule, given, first), 1e-5)


@pytest.mark.parametrize("name", ["linear", "kda"])
def test_a_head_that_is_not_finite_stays_alone(name: str) -> None:
    rule = RULES[name]
    given, first = inputs(rule, Sizes())
    clean = chunked(rule, given, first, schedule(rule))
    given["v"][0, 3, 0], given["k"][0, 9, 0], given["log_decay"][0, 5, 0] = torch.inf, torch.nan, torch.nan
    y, S = chunked(rule, given, first, schedule(rule))
    assert y[0, 5:, 0].isnan().all() and S[0, 0].isnan().all()
    for x, before in zip((y, S), clean, strict=True):
        others = torch.ones(x.shape, dtype=torch.bool)
        if x is y:
            others[0, :, 0] = False
        else:
            others[0, 0] = False
        assert torch.equal(x[others], before[others])


def test_a_readout_at_the_start_of_the_chunk() -> None:
    rule, chunk = RULES["in_place"], 2 * WIDTH
    call, offsets = inputs(rule, Sizes(batch=1, tokens=5 * WIDTH + 3)), torch.tensor([0, WIDTH + 1, 5 * WIDTH + 3])
    found = chunked(rule, *call, schedule(rule), offsets, chunk)
    require_close(found, walked(rule, *call, offsets, chunk), 1e-5)
    problem = Problem("memory_attention", chunk=chunk + 1)
    assert "has whole tiles" in str(why_illegal(Spec(rule, problem), schedule(rule), cpu()))
    assert TvmSchedule.default(Spec(rule, problem), cpu()).variant == "recurrence"


def test_the_chunk_of_a_hebbian_loss_is_any() -> None:
    call = inputs(LINEAR, Sizes())
    require_close(chunked(LINEAR, *call, schedule(LINEAR), chunk=7), walked(LINEAR, *call, chunk=7), 1e-5)


@pytest.mark.parametrize(
    ("name", "chunk", "has"),
    [
        *(
            (name, 1, True)
            for name in ("linear", "gla", "deltanet", "gated_deltanet", "comba", "kda", "gdn2", "rwkv7", "gsa", "abc")
        ),
        *((name, 1, False) for name in ("trellis", "oja", "ttt_linear", "titans", "yaad", "omeganet")),
        *((name, 1, False) for name in ("infini", "mesanet", "lattice", "memora", "in_place_ttt")),
        *(("linear", 16, True), ("deltanet", 16, False), ("rwkv7", 16, False), ("in_place_ttt", 64, True)),
    ],
)
def test_which_rules_have_the_form(name: str, chunk: int, has: bool) -> None:
    rule = NAMED[name].rule
    problem = Problem("memory_attention", heads=1, chunk=chunk)
    assert (why_no_chunk_form(rule, chunk) is None) is has
    assert (why_illegal(Spec(rule, problem), schedule(rule), cpu()) is None) is has
    assert (TvmSchedule.default(Spec(rule, problem), cpu()).variant == "chunks") is has
    assert TvmSchedule.default(Spec(rule, replace(problem, tokens=32)), cpu()).variant == "recurrence"


def test_a_decay_of_columns_has_tiles_of_one_vector() -> None:
    spec = Spec(RULES["gla"], Problem("memory_attention"))
    how = replace(schedule(RULES["gla"], width=4), tile_tokens=8)
    assert "tile_tokens must be 4" in str(why_illegal(spec, how, cpu()))
