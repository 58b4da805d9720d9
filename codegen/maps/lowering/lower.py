"""From expressions to the program that computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from codegen.maps.expression import Expr
from codegen.maps.lowering.naming import Namer
from codegen.maps.lowering.passes import rewritten, set_apart
from codegen.maps.lowering.program import Program


def program(
    outputs: Mapping[str, Expr], taken: Iterable[str] = (), early: bool = False, apart: Expr | None = None
) -> Program:
    """The program that computes `outputs`, in their order.

    Args:
        outputs: expressions.
        taken: names that it must not use besides those of inputs.
        early: write rows whose scale is known late without it, so that fewer sums follow one another.
        apart: an input; what does not depend on it is computed by itself, for it may be computed before.
    """
    roots = rewritten(tuple(outputs.values()), early)
    namer = Namer(roots if apart is None else set_apart(roots, apart), taken)
    if apart is not None:
        namer.keep_apart(apart)
    return namer.program(tuple(outputs))
