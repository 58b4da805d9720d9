"""Rows less their means as rows of their own, in what Triton computes of a write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codegen import maps
from codegen.maps import MAPS
from codegen.maps.derive import TARGET, Write, Z, value_of, write_of
from codegen.maps.emit import pytorch as emit_torch
from codegen.maps.emit.triton_centring import code_program, push_program
from codegen.maps.expression import ZERO, Expr, add, mean, mul
from codegen.maps.lowering import Program, program
from codegen.maps.lowering.program import used
from codegen.maps.registry import LOSSES, Map, unnamed
from tests.support.relative_error import assert_close

CENTRED = [MAPS["ln_silu"], unnamed("layer_norm_of_tanh", maps.layer_norm(maps.tanh(Z)))]
EPS = 1e-6


def computed(made: Program, z: Tensor, target: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
    """The outputs of a program."""
    head, results = "computed(z, a, g, ct, eps)", ", ".join(map(emit_torch._result, made.outputs.values()))
    found = {"torch": torch}
    exec(emit_torch._function(head, "", made.definitions, f"({results},)"), found)
    of_rows: tuple[Tensor, ...] = found["computed"](z, target, torch.ones(16, dtype=z.dtype), cotangent, EPS)  # type: ignore[operator]
    return of_rows


def rows(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """z whose slots are so far apart, target and cotangent, standard normal in float32."""
    generator = torch.Generator().manual_seed(0)
    z, target, cotangent = (torch.randn(60, 16, generator=generator) for _ in range(3))
    return z[:, :1] + spread * z, target, cotangent


@pytest.mark.parametrize("of", [*MAPS.values(), *LOSSES.values(), *CENTRED[1:]], ids=lambda of: of.name)
def test_the_results_are_those_of_the_write(of: Map) -> None:
    write = write_of(of.expression, of.is_loss)
    given = [x.double() for x in rows(1.0)]
    wanted = computed(program({"u": write.u, "dz": write.dz, "da": write.da}), *given)
    found = (*computed(code_program(write, ()), *given), *computed(push_program(write, True, ()), *given))
    for name, actual, expected in zip(("u", "dz", "da"), found, wanted, strict=True):
        assert_close(actual, expected, 1e-12, name)
    assert_close(*computed(push_program(write, False, ()), *given), wanted[2], 1e-12, "da")


@pytest.mark.parametrize("of", CENTRED, ids=lambda of: of.name)
def test_the_sums_of_results_where_all_slots_are_nearly_equal(of: Map) -> None:
    write = write_of(of.expression, False)
    given = rows(0.003)
    for made in (code_program(write, ()), push_program(write, True, ())):
        exact, rounded = computed(made, *(x.double() for x in given)), computed(made, *given)
        for actual, expected in zip(rounded, exact, strict=True):
            off = (actual.double().sum(-1) - expected.sum(-1)).norm() / expected.norm()
            assert off < 1e-6, f"the sum is off by {off:.1e} of the row"


@pytest.mark.parametrize("of", CENTRED, ids=lambda of: of.name)
def test_the_target_is_read_for_the_centred_row_alone(of: Map) -> None:
    write = write_of(of.expression, False)
    for made in (code_program(write, ()), push_program(write, True, ())):
        readers = [each.name for each in made.definitions if "a" in each.uses]
        assert readers == ["mean_a", "centred_a"]
        assert all("a" not in used(x) for x in made.outputs.values())
        assert any(each.name == "keep" and "mean_centred_a_y" in each.uses for each in made.definitions)


@pytest.mark.parametrize("name", ["identity", "silu", "l2_silu", "softmax"])
def test_what_takes_no_mean_stays(name: str) -> None:
    write = write_of(MAPS[name].expression, False)
    assert str(code_program(write, ())) == str(program({"u": write.u}))
    assert str(push_program(write, True, ())) == str(program({"dz": write.dz, "dtarget": write.da}))


def u_alone(u: Expr) -> Write:
    """A write of which nothing but u is asked."""
    return Write(u, ZERO, ZERO, ZERO)


def test_a_row_that_only_the_result_takes_comes_last() -> None:
    made = code_program(u_alone(add(mul(3, TARGET), mul(-3, mean(TARGET)))), ())
    assert [each.name for each in made.definitions] == ["mean_a", "centred_a"]
    assert str(made).endswith("out u = 3 * centred_a")


def test_a_sum_beside_a_row_that_does_not_sum_to_nothing_keeps_the_target() -> None:
    y = value_of(maps.softmax(Z))
    made = code_program(u_alone(add(TARGET, mul(-1, mean(TARGET)), mean(mul(TARGET, y)))), ())
    assert "mean_a_weight" in {each.name for each in made.definitions}
