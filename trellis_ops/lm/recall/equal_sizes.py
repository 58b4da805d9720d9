"""Sizes at which the model of any rule has the parameters and the state bytes of one of TRELLIS."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

from codegen.errors import SizeError
from codegen.rule import SOLVE
from codegen.spec import MAX_DIM, MAX_SLOTS
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.recall.cell import Cell
from trellis_ops.lm.rules.mixer import rule_state_shapes
from trellis_ops.lm.rules.named import forgets, rule_inputs
from trellis_ops.lm.weights.undrawn import undrawn

_CLOSE = 0.04
"""Share of the state bytes by which sizes may miss, to be square and multiples of four."""

_UNEVEN = 4
"""By how much D_k and D_v may differ."""

_FLOAT_BYTES = 4


def of_equal_cost(reference: Cell, rule: str) -> Cell:
    """The cell of a rule whose model costs what that of a cell of TRELLIS does.

    A rule of two passes has other slots; one of one pass other D_k and D_v, near each other; C is that of the rule's
    layer; the width of the SwiGLU makes up for the parameters. Windows of a text are apart where the memory does not
    forget, as they are in the sources.

    Args:
        reference: a cell of TRELLIS, of either task.
        rule: a name, or a text.

    Raises:
        UnknownRuleError, RuleError: a rule that there is not.
        SizeError: no sizes that are allowed give as few parameters.
    """
    sized = _sized(replace(reference, seed=0, task="recall", text="", pairs=()), rule)
    carry = reference.carry and (reference.task != "text" or forgets(rule))
    return replace(reference, rule=rule, carry=carry, **{name: getattr(sized, name) for name in _SIZES})


_SIZES = ("slots", "chunk", "dim_k", "dim_v", "mlp")


@functools.lru_cache(maxsize=256)
def _sized(reference: Cell, rule: str) -> Cell:
    if TrellisConfig(rule=rule).rule is None:
        return replace(reference, rule=rule, mlp=reference.config().mlp_width)
    with undrawn():
        model = TrellisLM(reference.config())
        parameters, state_bytes = model.count_parameters(), model.first_state(1).nbytes()
    own = replace(reference, rule=rule, chunk=rule_inputs(rule).chunk)
    found = min(_candidates(own), key=lambda each: _distance(each, state_bytes))
    narrow, wide = (_parameters(replace(found, mlp=mlp)) for mlp in (1, 2))
    mlp = 1 + round((parameters - narrow) / (wide - narrow))
    if mlp < 1:
        raise SizeError(name=f"parameters of {rule}", value=narrow, expected=f"at most {parameters}, as trellis has")
    return replace(found, mlp=mlp)


def _candidates(cell: Cell) -> Iterator[Cell]:
    rule = cell.config().record
    if rule.passes == 2 and rule.link != SOLVE:
        yield from (replace(cell, slots=slots) for slots in range(1, MAX_SLOTS + 1))
        return
    most = min(MAX_DIM, 4 * cell.dim)
    for dim_k in range(1, most + 1):
        for dim_v in range(max(1, dim_k - _UNEVEN), min(most, dim_k + _UNEVEN) + 1):
            yield replace(cell, dim_k=dim_k, dim_v=dim_v)


def _distance(cell: Cell, state_bytes: int) -> tuple[float, ...]:
    """What is least for the best sizes: close enough, then multiples of four, then square, then the closest."""
    shapes = rule_state_shapes(cell.config(), 1).values()
    missed = abs(math.log(cell.layers * _FLOAT_BYTES * sum(map(math.prod, shapes)) / state_bytes))
    if missed > _CLOSE:
        return missed, 0.0, 0.0, 0.0
    return 0.0, cell.dim_k % 4 + cell.dim_v % 4, abs(cell.dim_k - cell.dim_v), missed


def _parameters(cell: Cell) -> int:
    with undrawn():
        return TrellisLM(cell.config()).count_parameters()
