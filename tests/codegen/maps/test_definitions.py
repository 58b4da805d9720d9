"""What a map or a loss is refused for at its definition, with an error that says what to write instead."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codegen import maps
from codegen.errors import MapTextError
from codegen.maps import define, define_loss, find
from codegen.rule import Rule
from codegen.spec import Problem, Spec, spec_of_key

Formula = Callable[..., Any]


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda z: z**100, "exponent 100 is beyond 64"),
        (lambda z: (z**64) ** 64, "exponent 4096 is beyond 64"),
    ],
)
def test_a_formula_whose_text_is_refused(formula: Formula, reason: str) -> None:
    with pytest.raises(MapTextError, match=reason):
        define("defined", formula)
    with pytest.raises(MapTextError, match=reason):
        define_loss("defined", lambda z, a: formula(z - a))


def test_a_text_whose_own_text_is_refused() -> None:
    with pytest.raises(MapTextError, match="exponent 4096 is beyond 64"):
        find("defined(z) = (z ** 64) ** 64")


@pytest.mark.parametrize("depth", [250, 5000])
def test_a_formula_that_nests_too_deeply(depth: int) -> None:
    def formula(z: Any) -> Any:
        for _ in range(depth):
            z = maps.exp(z)
        return z

    with pytest.raises(MapTextError, match="nest"):
        define("deep", formula)


@pytest.mark.parametrize(
    "name", ["x²", "é", "\uff58", "def", "lambda", "None", "", "5a", "a b", "a\n", "a-b", "a" * 65], ids=ascii
)
def test_a_name_that_is_no_identifier(name: str) -> None:
    with pytest.raises(MapTextError, match="a name is an ASCII letter"):
        define(name, lambda z: z * 2)
    with pytest.raises(MapTextError, match="a name is an ASCII letter"):
        define_loss(name, lambda z, a: z * a)


def test_a_text_with_a_name_that_is_no_identifier() -> None:
    with pytest.raises(MapTextError, match="a name is an ASCII letter"):
        find("x²(z) = z")


def test_a_name_may_begin_with_an_underscore() -> None:
    of = define("_hidden", lambda z: z * 2)
    spec = Spec(Rule(of), Problem())
    assert spec_of_key(spec.key()) == spec
    assert find(str(of)).expression is of.expression


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        (lambda z: maps.min(z, 1e39), "1e39|1e\\+39"),
        (lambda z: z + 10**400, "1e400"),
        (lambda z: z - 10**5000, "1e5000"),
        (lambda z: 1e308 * (10 * z), "1e309"),
        (lambda z: (2 * z) ** 10**9, "2 \\*\\* 1000000000"),
        (lambda z: maps.where(z > 1e300, z, 0), "1e\\+300"),
        (lambda z: z / (1e-60 + z * z), "1e-60"),
    ],
)
def test_a_constant_beyond_float32(formula: Formula, shown: str) -> None:
    with pytest.raises(MapTextError, match=f"(?s)({shown}).* beyond the range of float32, in which kernels compute"):
        define("large", formula)


def test_a_text_with_a_constant_beyond_float32() -> None:
    with pytest.raises(MapTextError, match=r"it has the constant 1e\+39, which is beyond the range of float32"):
        find("large(z) = min(z, 1e39)")


@pytest.mark.parametrize(
    "formula",
    [lambda z: 1e30 * z / (1e30 + 1e30 * z**2), lambda z: 1e-23 * z],
    ids=["too_large", "too_small"],
)
def test_a_constant_of_a_derivative_beyond_float32(formula: Formula) -> None:
    with pytest.raises(MapTextError, match=r"its derivative needs the constant .* beyond the range of float32"):
        define("steep", formula)


def test_a_constant_of_a_loss_beyond_float32_only_in_its_derivative() -> None:
    with pytest.raises(MapTextError, match=r"its derivative needs the constant .* beyond the range of float32"):
        define_loss("steep", lambda z, a: (2e38 / 3) * (z - a) ** 3)


@pytest.mark.parametrize("number", [3.4e38, -3.4028234663852886e38, 1.2e-38, 1.5e-45])
def test_a_constant_within_float32_is_taken(number: float) -> None:
    of = define("within", lambda z: maps.max(z, number))
    assert pickle.loads(pickle.dumps(of)).expression is of.expression


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda z: maps.max(z, 1, 2), r"max takes .* not 3; write max\(max"),
        (lambda z: maps.min(z, 1, 2), r"min takes .* not 3; write min\(min"),
        (lambda z: maps.min(z), r"min takes .* not 1; write .*-max\(-x\)"),
        (lambda z: z + maps.log(0), r"log\(0\) is no finite number"),
        (lambda z: z * maps.exp(1000), r"exp\(1000\) is no finite number"),
        (lambda z: z * maps.exp(10**400), r"exp\(1e400 .*\) is no finite number"),
        (lambda z: z * maps.sqrt(-8), r"-8 \*\* 0.5 is no real number"),
        (lambda z: z * maps.rsqrt(0), r"0 \*\* -0.5 divides by 0"),
        (lambda z: z / 0, r"0 \*\* -1 divides by 0"),
        (lambda z: z / (z - z), r"0 \*\* -1 divides by 0"),
        (lambda z: z * float("nan"), "finite numbers only"),
        (lambda z: z > 0, r"comparison z > 0 .* write where\(z > 0, 1, 0\)"),
        (lambda z: z * (z > 0), r"comparison z > 0 .* write where\(z > 0, 1, 0\)"),
        (lambda z: maps.where((z > 0) > 0, z, 0), r"comparison z > 0 .* write where\(z > 0, 1, 0\)"),
        (lambda z: np.float64(2) < z, r"comparison z > 2 .* write where\(z > 2, 1, 0\)"),
    ],
)
def test_a_formula_without_finite_numbers(formula: Formula, reason: str) -> None:
    with pytest.raises(MapTextError, match=reason):
        define("defined", formula)
    with pytest.raises(MapTextError, match=reason):
        define_loss("defined", lambda z, a: formula(z))


@pytest.mark.parametrize("text", ["z > 0", "z * (z > 0)", "z / 0", "z + log(0)", "z * (-8) ** 0.5"])
def test_a_text_without_finite_numbers(text: str) -> None:
    with pytest.raises(MapTextError, match="write"):
        find(f"defined(z) = {text}")


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda z: maps.where(z == 0, z, 1), r"not by False; .* write abs\(x\) <= c"),
        (lambda z: maps.where(z, z, 1), "chooses by a comparison"),
        (lambda z: np.float32(2) * z, "write a Python int or float"),
        (lambda z: z * np.float32(2), "write a Python int or float"),
        (lambda z: np.int64(2) + z, "write a Python int or float"),
        (lambda z: z ** np.float32(2), "write a Python int or float"),
        (lambda z: np.ones(2) * z, "write a Python int or float"),
        (lambda z: z**z, r"write .* exp\(y \* log\(x\)\)"),
        (lambda z: z**True, "True is no number"),
        (lambda z: None, "None is neither a number nor an expression"),
        (5, r"function such as lambda z: z \*\* 3, not 5"),
    ],
)
def test_a_formula_of_a_wrong_type(formula: Formula, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        define("defined", formula)


@pytest.mark.parametrize("name", [5, None, [], b"name"])
def test_a_name_of_a_wrong_type(name: Any) -> None:
    with pytest.raises(TypeError, match="the name of a map is a str"):
        define(name, lambda z: z * 2)


def test_numbers_of_numpy_that_are_floats_are_numbers_on_either_side() -> None:
    two = np.float64(2)
    z = maps.registry._Z
    assert two * z is z * two is 2 * z
    assert z**two is z**2
    assert (two - z) is 2 - z


def test_the_root_of_0_is_0() -> None:
    assert define("rooted", lambda z: z + maps.sqrt(0)).formula == "z"
