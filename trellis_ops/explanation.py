"""What a call would run, and why: the answer of `explain`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from codegen.spec import Spec
from trellis_ops import memory, ops
from trellis_ops.calls import arguments, family_arguments
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import ranks, served
from trellis_ops.dispatch.resolve import Resolution
from trellis_ops.operators import registered
from trellis_ops.operators.family import rule_of


@dataclass(frozen=True)
class Explanation:
    """How a call is served.

    Attributes:
        spec: text key of what is computed.
        implementation: "eager" or the name of a backend, "tvm" or "triton".
        origin: "forced schedule", "forced", "exact winner", "bucket winner", "default schedule", "fallback" or "the
            leader's selection".
        schedule: text key of the schedule; None for eager.
        device: key of the device.
        record: file of the tuning record behind it; None without one.
        notes: one sentence for each better choice that was passed over.
    """

    spec: str
    implementation: str
    origin: str
    schedule: str | None
    device: str
    record: str | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"spec            {self.spec}",
            f"device          {self.device}",
            f"implementation  {self.implementation} ({self.origin})",
            f"schedule        {self.schedule or '-'}",
            f"record          {self.record or '-'}",
        ]
        return "\n".join([*lines, *(f"note            {note}" for note in self.notes)])


def explain(operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which implementation and schedule a call would use, on which device, from which record, and why not a better one.

    Nothing is compiled or run. Of a winner that an earlier call could not compile it says so, and what ran instead.

    Args:
        operator: `trellis_attention`, `trellis_step`, `memory_attention`, `memory_step`, `memory_update` or
            `memory_readout`.
        *args, **kwargs: exactly what the call would be given.

    Raises:
        What the call itself would raise for bad arguments.

    Example:
        >>> print(explain(trellis_attention, q, k, v, target, log_decay, step_size, chunk_size=16))  # doctest: +SKIP
    """
    call = inspect.signature(operator).bind(*args, **kwargs)
    call.apply_defaults()
    given = dict(call.arguments)
    implementation = given.pop("implementation")
    if given.get("state_indices") is not None:
        raise ValueError("explain knows no call on a pool; leave out what concerns the pool, state_indices first")
    given = {name: value for name, value in given.items() if name not in _OF_POOLS.get(operator.__name__, ())}
    request = _REQUESTS[operator.__name__](given)
    return explanation_of(request.spec, served.as_served(ranks.expected_of(request, implementation), request.spec))


def explanation_of(spec: Spec, found: Resolution) -> Explanation:
    """What `explain` says of a call of `spec` that is served so."""
    return Explanation(
        spec=spec.key(),
        implementation=found.implementation,
        origin=found.origin,
        schedule=None if found.schedule is None else found.schedule.key(),
        device=found.device.key(),
        record=None if found.match is None else str(found.match.path),
        notes=found.notes,
    )


def _attention(given: dict[str, Any]) -> Request:
    arguments.flag("output_final_state", given.pop("output_final_state"))
    s_k, s_v = _pair(given, "initial_state")
    return registered.attention_request(**given, S_k=s_k, S_v=s_v)


def _update(given: dict[str, Any]) -> Request:
    state = given.pop("initial_state")
    return registered.update_request(**given, S=state)


def _step(given: dict[str, Any]) -> Request:
    s_k, s_v = arguments.pair_of_states("state", given.pop("state"))
    g_k, g_v = _pair(given, "gradient_state")
    return registered.step_request(**given, S_k=s_k, S_v=s_v, G_k=g_k, G_v=g_v)


def _pair(given: dict[str, Any], name: str) -> tuple[Any, Any]:
    states = given.pop(name)
    return (None, None) if states is None else arguments.pair_of_states(name, states)


def _of_any_rule(given: dict[str, Any]) -> Request:
    settings = ("initial_state", "output_final_state", "cu_seqlens", "chunk_size", "outer_gradient")
    own = {name: given.pop(name) for name in settings}
    made, tensors = memory.called_with(given.pop("rule"), given.pop("erase"), given)
    initial = list(own["initial_state"] or ())
    cu_seqlens, chunk_size, outer_gradient = own["cu_seqlens"], own["chunk_size"], own["outer_gradient"]
    if made.maps is None:
        rule = rule_of(made.text)
        return family_arguments.attention_request(rule, tensors, initial, cu_seqlens, chunk_size, outer_gradient)
    every: list[Any] = [*tensors, *(initial or (None, None)), cu_seqlens, *made.maps, chunk_size, outer_gradient]
    return registered.attention_request(*every)


def _step_of_any_rule(given: dict[str, Any]) -> Request:
    state, starts = list(given.pop("state")), list(given.pop("chunk_state") or ())
    made, tensors = memory.called_with(given.pop("rule"), given.pop("erase"), given)
    if made.maps is None:
        return family_arguments.step_request(rule_of(made.text), tensors, state, starts)
    every: list[Any] = [*tensors, *state, *(starts or (None, None)), *made.maps]
    return registered.step_request(*every)


_OF_POOLS = {
    ops.trellis_attention.__name__: ("state_indices", "positions", "first_state", "gradient_state"),
    ops.trellis_step.__name__: ("state_indices", "positions", "first_state", "chunk_size"),
    memory.memory_attention.__name__: ("state_indices", "positions", "first_state", "chunk_state"),
    memory.memory_step.__name__: ("state_indices", "positions", "first_state", "chunk_size"),
}
"""The arguments that concern calls on pools alone."""

_REQUESTS: dict[str, Callable[[dict[str, Any]], Request]] = {
    ops.trellis_attention.__name__: _attention,
    ops.memory_update.__name__: _update,
    ops.memory_readout.__name__: lambda given: arguments.readout_request(**given),
    ops.trellis_step.__name__: _step,
    memory.memory_attention.__name__: _of_any_rule,
    memory.memory_step.__name__: _step_of_any_rule,
}
