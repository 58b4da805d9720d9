"""The reverse of rules that are linear in their state, a tile at once, against autograd of the eager walk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.arguments import INPUT
from codegen.kernels.build import build
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.tvm import TvmSchedule
from tests.support.linear_rules import RULES, Named, Sizes, flat, inputs, per_head, sequences_of, spec_of
from trellis_ops.eager.recurrence import attention

WIDTH = cpu().vector_bits // 32
SCHEDULE = TvmSchedule("chunks_backward", WIDTH, WIDTH, 8, threads=2, checkpoint_spacing=2 * WIDTH)
WITH_BACKWARD = ("linear", "fixed", "gla", "deltanet", "gated_deltanet", "comba", "kda", "rwkv7", "erase_post")
LONG = Sizes(tokens=2 * WIDTH + 5)


def cotangents(given: Named, first: Named) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of y and of the final state."""
    return torch.randn(given["v"].shape).to(given["v"].dtype), torch.randn(first["S"].shape)


def chunked(
    rule: Rule,
    given: Named,
    first: Named,
    dy: torch.Tensor,
    dS: torch.Tensor,
    how: TvmSchedule = SCHEDULE,
    offsets: torch.Tensor | None = None,
    direction: str = "backward",
) -> Named:
    """The gradients by the names of tensors and states; what is written held NaN."""
    spec = spec_of(rule, given, direction=direction)
    operator = build(spec, how, cpu())
    where = sequences_of(given, offsets, operator.chunk_tokens)
    extent = vars(spec.problem) | {"sequences": where.count, "chunks": where.chunks}
    extent["tokens"] = spec.problem.batch * spec.problem.tokens
    tensors = flat(rule, given)
    for each in operator.arguments:
        if each.name not in tensors:
            dtype = given["q"].dtype if each.type == INPUT else torch.float32
            tensors[each.name] = torch.full([extent[axis] for axis in each.axes], float("nan"), dtype=dtype)
    tensors["S"].copy_(first["S"])
    tensors["dy"].copy_(dy.flatten(0, 1))
    tensors["dS"].copy_(dS)
    operator.forward(tensors, where)
    operator.backward(tensors, where)
    gradients = {name: tensors[f"d{name}"] for name in (*given, "S")}
    return {
        name: x.sum(0) if name in per_head(rule) else x.view((given | first)[name].shape)
        for name, x in gradients.items()
    }


def walked(
    rule: Rule,
    given: Named,
    first: Named,
    dy: torch.Tensor,
    dS: torch.Tensor,
    offsets: torch.Tensor | None = None,
    direction: str = "backward",
) -> Named:
    """The same by autograd."""
    wide = {name: x.double().requires_grad_() for name, x in (given | first).items()}
    own = {name: wide[name] for name in given}, {name: wide[name] for name in first}
    order = "first_order" if direction == "backward_first_order" else "bilevel"
    y, final = attention(rule, *own, cu_seqlens=offsets, outer_gradient=order)
    total = (y * dy).sum() + (final["S"] * dS).sum()
    found = torch.autograd.grad(total, list(wide.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(wide, found, strict=True))


def require_close(found: Named, wanted: Named, bound: float) -> None:
    assert found.keys() == wanted.keys()
    for name, exact in wanted.items():
        assert (found[name].double() - exact).norm() <= bound * exact.norm(), name


@pytest.mark.parametrize("name", WITH_BACKWARD)
def test_all_gradients_of_a_batch(name: str) -> None:
    rule = RULES[name]
    call = inputs(rule, LONG)
    ends = cotangents(*call)
    require_close(chunked(rule, *call, *ends), walked(rule, *call, *ends), 1e-4)


@pytest.mark.parametrize("name", ["gla", "gated_deltanet", "kda"])
def test_packed_sequences_that_are_empty_or_end_inside_a_segment(name: str) -> None:
    rule, offsets = RULES[name], torch.tensor([0, 0, 17, 17, 62, 63, 98])
    call = inputs(rule, Sizes(batch=1, tokens=98), sequences=6)
    ends = cotangents(*call)
    require_close(chunked(rule, *call, *ends, offsets=offsets), walked(rule, *call, *ends, offsets), 1e-4)


@pytest.mark.parametrize("name", ["linear", "comba"])
def test_z_as_a_constant(name: str) -> None:
    rule = replace(RULES[name], read="before")
    call = inputs(rule, LONG)
    ends = cotangents(*call)
    found = chunked(rule, *call, *ends, direction="backward_first_order")
    require_close(found, walked(rule, *call, *ends, direction="backward_first_order"), 1e-4)


@pytest.mark.parametrize(("tile", "width", "accumulators"), [(8, 8, 12), (16, 4, 4)])
def test_tiles_of_any_shape(tile: int, width: int, accumulators: int) -> None:
    rule, how = RULES["gated_deltanet"], TvmSchedule("chunks_backward", tile, width, accumulators, 1, 32)
    call = inputs(rule, Sizes(tokens=70, dim_k=5, dim_v=3))
    ends = cotangents(*call)
    require_close(chunked(rule, *call, *ends, how), walked(rule, *call, *ends), 1e-4)


def test_bfloat16() -> None:
    rule = RULES["gated_deltanet"]
    call = inputs(rule, LONG, torch.bfloat16)
    ends = cotangents(*call)
    require_close(chunked(rule, *call, *ends), walked(rule, *call, *ends), 2e-2)


@pytest.mark.parametrize("name", ["kda", "rwkv7"])
def test_strong_gates(name: str) -> None:
    rule = RULES[name]
    given, first = inputs(rule, LONG)
    gates = given["log_decay"]
    gates.copy_(torch.tensor([-1e-3, -5.0, -80.0, -torch.inf])[torch.randint(0, 4, gates.shape)])
    ends = cotangents(given, first)
    found = chunked(rule, given, first, *ends)
    assert (found["log_decay"][gates == -torch.inf] == 0).all()
    wanted = walked(rule, given, first, *ends)
    wanted["log_decay"] = wanted["log_decay"].nan_to_num(0.0)
    require_close(found, wanted, 1e-4)


@pytest.mark.parametrize("name", ["linear", "gla", "gated_deltanet", "comba", "kda", "rwkv7", "erase_post"])
def test_gates_that_keep_little_have_all_digits_of_their_gradient(name: str) -> None:
    """The recipe of docs/peers.md for strong forgetting, where sums of rows times their cotangents would cancel."""
    rule = RULES[name]
    given, first = inputs(rule, LONG)
    gates = given["log_decay"]
    gates.copy_(torch.nn.functional.logsigmoid(torch.rand(gates.shape)) / 0.1)
    ends = cotangents(given, first)
    require_close(chunked(rule, given, first, *ends), walked(rule, given, first, *ends), 3e-6)


@pytest.mark.parametrize("name", ["gated_deltanet", "kda"])
def test_a_head_that_is_not_finite_stays_alone(name: str) -> None:
    rule = RULES[name]
    given, first = inputs(rule, LONG)
    ends = cotangents(given, first)
    clean = chunked(rule, given, first, *ends)
    given["k"][0, 9, 0] = torch.nan
    found = chunked(rule, given, first, *ends)
    assert found["v"][0, 9, 0].isnan().all()
    for each in ("q", "k", "v", "log_decay"):
        assert torch.equal(found[each][0, :, 1:], clean[each][0, :, 1:])
        assert torch.equal(found[each][1], clean[each][1])


@pytest.mark.parametrize(
    ("rule", "how", "reason"),
    [
        (RULES["gsa"], SCHEDULE, "two passes"),
        (replace(RULES["linear"], out="ln_silu"), SCHEDULE, "a map of the readout"),
        (RULES["linear"], replace(SCHEDULE, tile_tokens=32, checkpoint_spacing=16), "is no multiple of tile_tokens 32"),
    ],
)
def test_what_has_no_such_reverse(rule: Rule, how: TvmSchedule, reason: str) -> None:
    given, _ = inputs(rule, LONG)
    assert reason in str(why_illegal(spec_of(rule, given, direction="backward"), how, cpu()))


def test_defaults() -> None:
    for name, variant in (("kda", "chunks_backward"), ("rwkv7", "chunks_backward"), ("gsa", "recurrence_backward")):
        spec = spec_of(RULES[name], inputs(RULES[name], LONG)[0], direction="backward")
        how = TvmSchedule.default(spec, cpu())
        assert how.variant == variant
        assert why_illegal(spec, how, cpu()) is None
