"""What the public functions do with `state_indices`: their arguments in the order of the operator on pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from codegen.errors import GradientError
from codegen.rule import Rule
from trellis_ops.calls import arguments
from trellis_ops.calls.called_rule import Called, called
from trellis_ops.operators import autocast, transforms
from trellis_ops.operators.plan import is_plain, wants_gradient
from trellis_ops.pool.operators import pool, run
from trellis_ops.tokens import Tokens

_RULES: dict[tuple[object, ...], Called] = {}
_MOST_RULES = 1024


class Pools(NamedTuple):
    """The states of a call on a pool, as its user gave them.

    Attributes:
        state: a tuple of pools.
        starts: those from the start of the chunk; None where chunks have one token.
        first: what fresh rows start from; None for zeros.
        state_indices, positions: of the rows.
    """

    state: Any
    starts: Any
    first: Any
    state_indices: Any
    positions: Any


def call(
    name: str,
    rule: Called,
    given: Sequence[Tensor],
    pools: Pools,
    *,
    cu_seqlens: Tensor | None = None,
    chunk_size: int = 1,
    implementation: str | None = None,
) -> Tensor:
    """y of a call on states in a pool.

    Args:
        name: of the public function.
        rule: of the call.
        given: in the order of the record.
        pools, cu_seqlens, chunk_size, implementation: of the call.

    Raises:
        GradientError: a gradient is wanted.
        As the public functions otherwise.
    """
    state_indices, positions = _row("state_indices", pools.state_indices), _row("positions", pools.positions)
    state, starts = _states("state", pools.state), _states("gradient_state (chunk_state)", pools.starts)
    first = _states("first_state", pools.first)
    tokens = autocast.lower_of_rule(given, [each.is_input for each in rule.taken])
    chunk_size = arguments.numbers_of_call(1.0, chunk_size)[1]
    rows = (state_indices, positions, cu_seqlens)
    every = (*tokens, *state, *starts, *first, *rows)
    if is_plain(every):
        return run(tokens, state, starts, first, *rows, rule.text, chunk_size, implementation)
    if wants_gradient(every):
        advice = "states in a pool are for inference; leave out state_indices, or call it under torch.no_grad()"
        raise GradientError(name=f"{name} with state_indices", advice=advice)
    transforms.refuse(name, every)
    y: Tensor = pool(tokens, state, starts, first, *rows, rule.text, chunk_size, implementation)
    return y


def trellis(
    name: str,
    given: tuple[Tensor, ...],
    pools: Pools,
    maps: tuple[str, str, str, float],
    cu_seqlens: Tensor | None,
    chunk_size: int,
    implementation: str | None,
) -> Tensor:
    """As `call`, of TRELLIS' own operators, whose maps are phi, link, out and the epsilon of phi."""
    phi, link, out, phi_eps = maps
    phi_eps, _ = arguments.numbers_of_call(phi_eps)
    named = dict(zip(Tokens._fields, given, strict=True))
    arguments.require_types(named, {}, {"phi": phi, "link": link, "out": out}, implementation)
    *_, step_size = given
    rule = _trellis_rule(phi, link, out, phi_eps, step_size.ndim)
    return call(name, rule, given, pools, cu_seqlens=cu_seqlens, chunk_size=chunk_size, implementation=implementation)


def refuse_final_states(output_final_state: object) -> None:
    """Refuse to return states: the pool holds them.

    Raises:
        TypeError: it is anything but False.
    """
    if output_final_state is not False:
        said = f"output_final_state is {output_final_state!r}"
        raise TypeError(f"{said}, but must be False with state_indices: the pool holds the states")


def refuse_without_indices(**given: object) -> None:
    """Refuse arguments that only a call on a pool has.

    Raises:
        TypeError: one is given.
    """
    for name, value in given.items():
        if value is not None:
            raise TypeError(f"{name} is given, but says where a row of a pool begins; give state_indices too")


def _trellis_rule(phi: str, link: str, out: str, phi_eps: float, step_rank: int) -> Called:
    """The rule of TRELLIS' own operators, whose maps are settings; torch.compile takes it as it is."""
    key = (phi, link, out, phi_eps, step_rank)
    found = _RULES.get(key)
    if found is None:
        if len(_RULES) >= _MOST_RULES:
            _RULES.clear()
        found = _RULES[key] = called(Rule(phi, link, out, phi_eps), step_rank)
    return found


_trellis_rule._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _row(name: str, given: Any) -> Tensor:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is {given!r}, but must be a torch.Tensor [N]: one number for each row")
    return given


def _states(name: str, given: Any) -> list[Tensor]:
    if given is None:
        return []
    if not isinstance(given, tuple | list):
        raise TypeError(f"{name} is {type(given).__name__}, but must be a tuple of torch.Tensor")
    for place, x in enumerate(given):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}[{place}] is {x!r}, but must be a torch.Tensor")
    return list(given)
