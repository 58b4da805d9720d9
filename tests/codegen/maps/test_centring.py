"""The target less its mean as one row, in the code that trellis_fused has for Triton."""

from __future__ import annotations

import pytest

from codegen import maps
from codegen.maps import MAPS
from codegen.maps.derive import TARGET, Z, value_of, write_of
from codegen.maps.emit.triton_centring import centring_program
from codegen.maps.expression import add, mean, mul
from codegen.maps.lowering import program
from codegen.maps.lowering.program import used
from codegen.maps.registry import Map, unnamed

CENTRED = [MAPS["ln_silu"], unnamed("layer_norm_of_tanh", maps.layer_norm(maps.tanh(Z)))]


@pytest.mark.parametrize("of", CENTRED, ids=lambda of: of.name)
def test_the_target_is_read_for_the_centred_row_alone(of: Map) -> None:
    made = centring_program("u", write_of(of.expression, False).u, TARGET, ())
    readers = [each.name for each in made.definitions if "a" in each.uses]
    assert readers == ["mean_a", "centred_a"]
    assert "a" not in used(made.outputs["u"])
    assert any(each.name == "keep" and "mean_centred_a_y" in each.uses for each in made.definitions)


@pytest.mark.parametrize("name", ["identity", "silu", "l2_silu", "softmax"])
def test_a_code_that_takes_no_mean_of_the_target_stays(name: str) -> None:
    u = write_of(MAPS[name].expression, False).u
    assert str(centring_program("u", u, TARGET, ())) == str(program({"u": u}))


def test_a_row_that_only_the_result_takes_comes_last() -> None:
    made = centring_program("x", add(mul(3, TARGET), mul(-3, mean(TARGET))), TARGET, ())
    assert [each.name for each in made.definitions] == ["mean_a", "centred_a"]
    assert str(made).endswith("out x = 3 * centred_a")


def test_a_sum_beside_a_row_that_does_not_sum_to_nothing_keeps_the_target() -> None:
    y = value_of(maps.softmax(Z))
    made = centring_program("x", add(TARGET, mul(-1, mean(TARGET)), mean(mul(TARGET, y))), TARGET, ())
    assert "mean_a_weight" in {each.name for each in made.definitions}
