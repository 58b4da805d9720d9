"""Attention over a bounded memory of any rule: `memory_attention` and `memory_step`.

docs/rules.md has the general equation, the rules that have a name, and a rule of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from codegen.errors import GradientError
from codegen.rule import Rule
from trellis_ops import ops
from trellis_ops.calls import arguments
from trellis_ops.calls.called_rule import Called, called, in_order
from trellis_ops.calls.checks import tensors_in
from trellis_ops.memory_states import AnyStates
from trellis_ops.operators import autocast, family, transforms
from trellis_ops.operators.plan import is_plain, wants_gradient
from trellis_ops.pool import calls as pooled

_NAMES = (
    *("q", "k", "v", "target", "log_decay", "step_size", "reader_step", "probe"),
    *("momentum", "window_weight", "gain", "regulariser"),
)


def memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor | None = None,
    log_decay: Tensor | None = None,
    step_size: Tensor | None = None,
    *,
    rule: str | Rule,
    reader_step: Tensor | None = None,
    probe: Tensor | None = None,
    erase: tuple[Tensor, Tensor] | None = None,
    momentum: Tensor | None = None,
    window_weight: Tensor | None = None,
    gain: Tensor | None = None,
    regulariser: Tensor | None = None,
    chunk_size: int = 1,
    initial_state: AnyStates | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
    state_indices: Tensor | None = None,
    positions: Tensor | None = None,
    chunk_state: AnyStates | None = None,
    first_state: AnyStates | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, AnyStates | None]:
    """Attention over a bounded memory of any rule (docs/rules.md has the equation, and the source of each rule).

    Per head and token z = S p at the memory before the token (or at the start of its chunk), u = d loss(z, a) / d z,
    S <- decay S - step_size u w^T, y = S q. With one pass w = k, a = v and S is `[D_v, D_k]`; with two passes
    S_k `[M, D_k]` is written by k and S_v `[M, D_v]` by v, both with `target`, and y = out(S_v^T link(S_k q)).
    Which of the tensors a call takes follows from the rule; no scale is applied to any. The gradient is exact.

    Args:
        q, k: `[B, T, H, D_k]`, float32, bfloat16 or float16 (float64: eager only). Any strides.
        v: `[B, T, H, D_v]`, like q.
        target: `[B, T, H, M]`, like q; of two passes. None where link is "solve", whose target is k.
        log_decay: log of the forget gate, at most 0: `[B, T, H]` for decay "scalar", `[B, T, H, M]` (one pass:
            `[B, T, H, D_v]`) for "slot", `[B, T, H, D_k]` for "channel", None for "none". -inf forgets everything.
        step_size: `[H]` or `[B, T, H]`; None is 1.
        rule: the name of a rule, such as "gated_deltanet", a `Rule`, or its text as JSON.
        reader_step: `[B, T, H]`, tau of step_size "reader_writer".
        probe: p, `[B, T, H, D_k]` (transposed: D_v), of probe "own"; like q.
        erase: a pair (a, b) of `[B, T, H, D_k]`, like q: (S a) b^T is added.
        momentum: `[B, T, H]`, eta.
        window_weight: `[B, T, H]`, of a window; None is 1.
        gain: `[H, D_v]` (two passes: `[H, M]`), of a loss with a gain.
        regulariser: `[H, D_k]`, positive, of link "solve".
        chunk_size: C; z is taken at the memory at the start of the chunk, which changes what is computed. 1 is exact;
            `trellis_attention` has 64 unless it is given.
        initial_state: the states before the first token, as `memory_states` has them; None is zero.
        output_final_state: whether to return the states after the last token.
        cu_seqlens: `[N + 1]`, offsets of N sequences packed into B = 1, of which states then have one each.
        outer_gradient: "bilevel" differentiates through z, "first_order" treats z as a constant inside u.
        state_indices, positions: `[N]`, slots of a pool and the tokens that each has seen (`trellis_ops.pool`). Then
            `initial_state` are pools, as `memory_states` has them with their capacity as the batch, moved in place.
        chunk_state, first_state: of a pool: pools for what `chunk_start` gives, for C > 1; states without a batch that
            a fresh row starts from.
        implementation: "eager", "tvm" or "triton" forces one; None takes the best that is known (see `explain`).

    Returns:
        y `[B, T, H, D_v]` in the type of q, and the states in float32, or None.

    Raises:
        UnknownRuleError: no rule has that name.
        RuleTensorError: a tensor that the rule takes is missing, or one is given that it does not take.
        RuleError: the rule excludes this chunk_size.
        ShapeError, DtypeError, DeviceMismatchError, SequenceError, SizeError, TypeError: bad arguments.
        MemoryRoomError: results and buffers that do not fit into the memory that is there.
        ImplementationError: `implementation` is unknown or cannot run this call.

    Example:
        >>> q, k, v = (torch.nn.functional.normalize(torch.randn(1, 32, 2, 16), dim=-1) for _ in range(3))
        >>> log_decay, step_size = torch.full((1, 32, 2), -0.05), torch.full((1, 32, 2), 0.5)
        >>> y, _ = memory_attention(q, k, v, None, log_decay, step_size, rule="gated_deltanet")
        >>> y.shape
        torch.Size([1, 32, 2, 16])
    """
    arguments.flag("output_final_state", output_final_state)
    tensors = (q, k, v, target, log_decay, step_size, reader_step, probe, momentum, window_weight, gain, regulariser)
    made, given = called_with(rule, erase, dict(zip(_NAMES, tensors, strict=True)))
    if state_indices is not None:
        pooled.refuse_final_states(output_final_state)
        pools = pooled.Pools(initial_state, chunk_state, first_state, state_indices, positions)
        rest: dict[str, Any] = {"chunk_size": chunk_size, "implementation": implementation}
        return pooled.call("memory_attention", made, given, pools, cu_seqlens=cu_seqlens, **rest), None
    pooled.refuse_without_indices(positions=positions, chunk_state=chunk_state, first_state=first_state)
    initial = [] if initial_state is None else tensors_in("initial_state", initial_state)
    if initial_state is not None and not initial:
        raise TypeError(f"initial_state is empty, but must be a tuple of {made.states} tensors, or None for zeros")
    if made.maps is not None:
        return ops.trellis_attention(
            *_six(given),
            **_settings(made.maps),
            chunk_size=chunk_size,
            initial_state=None if initial_state is None else _pair("initial_state", initial),
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
            outer_gradient=outer_gradient,
            implementation=implementation,
        )
    chunk = arguments.numbers_of_call(1.0, chunk_size)[1]
    found = _attention(made, given, initial, cu_seqlens, (made.text, chunk, outer_gradient), implementation)
    return found[0], tuple(found[1 : 1 + made.states]) if output_final_state else None


def _attention(
    made: Called,
    given: list[Tensor],
    initial: list[Tensor],
    cu_seqlens: Tensor | None,
    settings: tuple[str, int, str],
    implementation: str | None,
) -> Sequence[Tensor]:
    """y and the final states of a rule that `trellis_attention` does not compute; settings are text, C and gradient."""
    given = autocast.lower_of_rule(given, made.is_input)
    every = (*given, *initial, cu_seqlens)
    if is_plain(every):
        return family.run_attention(given, initial, cu_seqlens, *settings, False, implementation)
    if transforms.differentiates("memory_attention", every, implementation):
        family.check_attention(given, initial, cu_seqlens, *settings)
        with autocast.off(given[0].device):
            return family.eager_attention(given, initial, cu_seqlens, *settings)
    found: Sequence[Tensor] = family.attention(
        given, initial, cu_seqlens, *settings, wants_gradient(every), implementation
    )
    return found


def memory_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor | None = None,
    log_decay: Tensor | None = None,
    step_size: Tensor | None = None,
    *,
    state: AnyStates,
    rule: str | Rule,
    reader_step: Tensor | None = None,
    probe: Tensor | None = None,
    erase: tuple[Tensor, Tensor] | None = None,
    momentum: Tensor | None = None,
    window_weight: Tensor | None = None,
    gain: Tensor | None = None,
    regulariser: Tensor | None = None,
    chunk_state: AnyStates | None = None,
    state_indices: Tensor | None = None,
    positions: Tensor | None = None,
    chunk_size: int = 1,
    first_state: AnyStates | None = None,
    implementation: str | None = None,
) -> Tensor:
    """One token of `memory_attention`; the states are moved in place.

    Args:
        q, k, v, target, log_decay, step_size, reader_step, probe, erase, momentum, window_weight: as in
            `memory_attention`, without T.
        state: the states, as `memory_states` has them; they hold the new ones afterwards.
        rule, gain, regulariser, implementation: as in `memory_attention`.
        chunk_state: what `chunk_start` gave at the first token of the chunk, kept by the caller until it ends; None
            takes z at the current state: the exact recurrence (C = 1).
        state_indices, positions, chunk_size, first_state: of a pool, as in `memory_attention`; `state` and
            `chunk_state` are pools then.

    Returns:
        y `[B, H, D_v]` in the type of q.

    Raises:
        GradientError: a gradient is wanted; a step overwrites what the backward would need.
        OverlapError: a state shares memory with another tensor.
        As `memory_attention` otherwise.
    """
    tensors = (q, k, v, target, log_decay, step_size, reader_step, probe, momentum, window_weight, gain, regulariser)
    made, given = called_with(rule, erase, dict(zip(_NAMES, tensors, strict=True)))
    if state_indices is not None:
        pools = pooled.Pools(state, chunk_state, first_state, state_indices, positions)
        rest: dict[str, Any] = {"chunk_size": chunk_size, "implementation": implementation}
        return pooled.call("memory_step", made, given, pools, **rest)
    # Looked at here, since a call for each token would pay for the call of a function.
    if positions is not None or first_state is not None or chunk_size != 1:
        pooled.refuse_without_indices(
            positions=positions, first_state=first_state, chunk_size=None if chunk_size == 1 else chunk_size
        )
    moved = tensors_in("state", state)
    starts = [] if chunk_state is None else tensors_in("chunk_state", chunk_state)
    if made.maps is not None:
        return ops.trellis_step(
            *_six(given),
            state=_pair("state", moved),
            **_settings(made.maps),
            # Where u needs no z, as of a Hebbian loss, a chunk has no states of its own.
            gradient_state=_pair("chunk_state", starts) if starts else None,
            implementation=implementation,
        )
    given = autocast.lower_of_rule(given, made.is_input)
    every = (*given, *moved, *starts)
    if is_plain(every):
        return family.run_step(given, moved, starts, made.text, implementation)
    if wants_gradient(every):
        raise GradientError(name="memory_step", advice="use memory_attention, or call it under torch.no_grad()")
    transforms.refuse("memory_step", every)
    y: Tensor = family.step(given, moved, starts, made.text, implementation)
    return y


def called_with(
    rule: str | Rule, erase: tuple[Tensor, Tensor] | None, named: Mapping[str, Tensor | None]
) -> tuple[Called, list[Tensor]]:
    """The rule of a call, and its tensors in the order of the record; raises as `memory_attention`.

    Args:
        rule, erase: of the call.
        named: its other tensors, None for those that are not given.
    """
    for name in ("q", "k", "v"):
        if not isinstance(named[name], Tensor):
            raise TypeError(f"{name} is {named[name]!r}, but must be a torch.Tensor")
    erase_a, erase_b = (None, None) if erase is None else tensors_in("erase", erase, 2)
    step_size = named["step_size"]
    made = called(rule, step_size.ndim if isinstance(step_size, Tensor) else 0)
    return made, in_order(made, {**named, "erase_a": erase_a, "erase_b": erase_b})


def _six(given: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, target, log_decay, step_size = given
    return q, k, v, target, log_decay, step_size


def _pair(name: str, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    s_k, s_v = arguments.pair_of_states(name, states)
    return s_k, s_v


def _settings(maps: tuple[str, str, str, float]) -> dict[str, Any]:
    return dict(zip(("phi", "link", "out", "phi_eps"), maps, strict=True))
