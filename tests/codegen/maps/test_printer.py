"""The order in which a printer writes factors and terms, which are rounded, and held in registers, in that order."""

from __future__ import annotations

from codegen.maps.emit.printer import Printer
from codegen.maps.expression import eps, input_row

Z, A = input_row("z"), input_row("a")


def printer(**settings: bool) -> Printer:
    return Printer({}, number=lambda x: str(int(x)), **settings)


def test_eps_stands_inside_of_a_square():
    """1 / sqrt(var + eps) may be as large as eps^-1/2, and its square is infinite where eps is small."""
    assert printer()(eps * Z**2) == "z * eps * z"
    assert printer()(eps * Z) == "z * eps"


def test_scalars_follow_the_terms_of_a_row_where_that_is_asked_for():
    assert printer()(Z - A + eps) == "z + eps - a"
    assert printer(scalars_last=True)(Z - A + eps) == "z - a + eps"


def test_a_row_without_a_positive_term_begins_with_its_scalars():
    assert printer(scalars_last=True)(1 - Z) == "1 - z"
