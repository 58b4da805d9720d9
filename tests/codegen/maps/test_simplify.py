"""What the simplifier finds by itself, and that its text is the same in every process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from codegen import maps
from codegen.maps import MAPS
from codegen.maps.derive import COTANGENT, TARGET, Z, pull_back, value_of, write_of
from codegen.maps.emit import pytorch as emit_torch
from codegen.maps.expression import Expr, total
from codegen.maps.lowering import program
from codegen.maps.simplify import multiplied_out
from codegen.maps.traversal import nodes


def reductions(*outputs: Expr) -> int:
    made = program({f"out_{i}": x for i, x in enumerate(outputs)})
    return len([each for each in made.definitions if each.reduction])


def test_a_centred_row_sums_to_nothing_and_a_softmax_to_one() -> None:
    y, p = value_of(maps.layer_norm(Z)), value_of(maps.softmax(Z))
    assert multiplied_out(total(y)) is maps.expression.ZERO
    assert multiplied_out(total(p)) is maps.expression.ONE


def test_the_large_terms_of_ln_silu_cancel() -> None:
    """u = silu' (keep y - a + mean a) / sd, keep = eps / sd^2 + mean(a y): nothing of y - y but its rounded mean."""
    text = str(program({"u": write_of(MAPS["ln_silu"].expression, False).u}))
    assert "keep = mean_a_y + eps * (inverse ** 2)" in text
    assert text.endswith("out u = inverse * silu_d1 * (shift - a + keep * y)")


def test_below_its_floor_l2_silu_divides_by_a_constant() -> None:
    text = str(program({"u": write_of(MAPS["l2_silu"].expression, False).u}))
    assert "keep = where(sum_s_squared > 1e-12, sum_a_y, 1)" in text


@pytest.mark.parametrize(
    ("name", "of_u", "of_both"), [("ln_silu", 5, 8), ("l2_silu", 2, 4), ("softmax", 3, 5), ("silu", 0, 0)]
)
def test_no_more_reductions_than_by_hand(name: str, of_u: int, of_both: int) -> None:
    write = write_of(MAPS[name].expression, False)
    assert reductions(write.u) == of_u
    assert reductions(write.dz, write.da) == of_both


def test_what_comes_of_a_step_from_max_in_softmax_cancels() -> None:
    (result,) = pull_back(value_of(maps.softmax(Z)), COTANGENT, [Z])
    assert not any(node.op == "where" for node in nodes(result))


@pytest.mark.parametrize("text", ["z - z", "z / z - 1", "(z + a) * (z - a) - z ** 2 + a ** 2"])
def test_what_is_nothing_is_found_to_be(text: str) -> None:
    assert multiplied_out(maps.text.parsed(text, ("z", "a"))) is maps.expression.ZERO


def test_texts_are_the_same_in_every_process() -> None:
    code = (
        "from codegen.maps import MAPS; from codegen.maps.emit.pytorch import source\n"
        "print(*(source(each) for each in {}))"
    )
    forwards, backwards = (
        subprocess.run(
            [sys.executable, "-c", code.format(order)],
            capture_output=True,
            check=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for order, seed in (("MAPS.values()", "1"), ("sorted(MAPS.values(), key=str)", "2"))
    )
    assert sorted(forwards.split("# ")) == sorted(backwards.split("# "))
    assert emit_torch.source(MAPS["softmax"]) in forwards
    assert TARGET is not COTANGENT
