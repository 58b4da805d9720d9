"""The expressions that a call of a map stands for."""

from __future__ import annotations

from codegen.maps import registry
from codegen.maps.derive import pullback_of, value_of, write_of
from codegen.maps.expression import Expr
from codegen.recurrence.program import APPLY, PULL, Call


def expressions(call: Call) -> dict[str, Expr]:
    """What each output of a call is, over rows named by its roles."""
    made = registry.find(call.of)
    if call.function == APPLY:
        return {"y": value_of(made.expression)}
    if call.function == PULL:
        return {"dz": pullback_of(made.expression)}
    write = write_of(made.expression, made.is_loss)
    found = {"u": write.u, "dz": write.dz, "da": write.da, "dg": write.dg}
    return {each: found[each] for each in call.gives}
