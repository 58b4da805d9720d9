"""The oracle of the family: any rule, one token at a time, straight from the general equation.

Per head and token, with write vector w, probe p, target a and the accumulator A behind the memory S = view(A):

    z_t = base p_t                          base: the memory at the start of the chunk, decayed first or not
    u_t = d loss(z_t, a_t) / d z_t          by autograd
    A_t = decay_t o A_{t-1} - step_t u_t w_t^T
    y_t = S q_t,  or  S_v^T link(S_k q_t)   S after the write, before it, or at the start of the chunk

What each field of a rule changes in it stands at the function that has it. The maps, the losses and the inner gradient
are those of `trellis_ops.reference`; nothing else is shared with what is judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from codegen.rule import READOUT_EPS, SOLVE, Rule
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.reference import apply_map, inner_gradient

Named = Mapping[str, Tensor]
PER_HEAD = ("gain", "regulariser")
"""What has no tokens: `[H, ...]`; a step size of `[H]` has none either."""


def memory_attention(
    rule: Rule,
    given: Named,
    initial: Named | None = None,
    *,
    chunk_size: int = 1,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """T tokens of a rule.

    Args:
        rule: any.
        given: q, k `[B, T, H, D_k]`, v `[B, T, H, D_v]`, for two passes target `[B, T, H, M]`; log_decay `[B, T, H]`,
            or with an axis of rows (slot) or of columns (channel); step_size `[H]` or `[B, T, H]`; where the rule has
            them, reader_step, momentum and window_weight `[B, T, H]`, probe as the write vector, erase_a and erase_b
            `[B, T, H, D_k]`, gain `[H, M]` (one pass: as a) and regulariser `[H, D_k]`. Ones stand for a step_size or
            window_weight that is not given.
        initial: S or S_k and S_v `[N, H, M, D]`, P alike for momentum, n `[N, H, D_k]` of a normaliser, window_u and
            window_w `[N, H, window - 1, ...]` with the oldest pair first; None is zero.
        chunk_size: C; z is taken at the states at the start of the token's chunk.
        cu_seqlens: `[N + 1]` offsets of N sequences packed into B = 1; chunks restart with each of them.
        outer_gradient: "bilevel", or "first_order" to treat z as a constant inside u.
        dtype: type of all arithmetic and of the results.

    Returns:
        y `[B, T, H, D_v]` and the states after the last token, by name.

    Raises:
        ValueError: an unknown `outer_gradient`.
    """
    first_order = is_first_order(outer_gradient)
    batch, _, heads = given["q"].shape[:3]
    tokens = _completed(given, given["q"].shape[:3], dtype)
    count = batch if cu_seqlens is None else len(cu_seqlens) - 1
    states = zero_states(rule, tokens, count, heads) | {name: x.to(dtype) for name, x in (initial or {}).items()}
    if cu_seqlens is None:
        return _run(rule, tokens, states, chunk_size, first_order)
    runs = []
    for n, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        sequence = {name: x if name in PER_HEAD else x[:, begin:end] for name, x in tokens.items()}
        first = {name: x[n : n + 1] for name, x in states.items()}
        runs.append(_run(rule, sequence, first, chunk_size, first_order))
    outputs, finals = zip(*runs, strict=True)
    return torch.cat(outputs, dim=1), {name: torch.cat([each[name] for each in finals]) for name in states}


def memory_step(
    rule: Rule,
    given: Named,
    state: Named,
    chunk_state: Named | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """One token; changes nothing it was given.

    Args:
        rule: any.
        given: as in `memory_attention`, without the axis of tokens.
        state: the states before the token, by name.
        chunk_state: of the token's chunk, by name: the states S0 and n0 at its start, and for a reader-writer step A,
            the sum of step_size u w^T over its tokens so far; None starts a chunk at `state`.
        dtype: type of all arithmetic and of the results.

    Returns:
        y `[B, H, D_v]`, the states after the token, and `chunk_state` after it.
    """
    shape = given["q"].shape[:2]
    token = _completed(given, shape, dtype)
    states = {name: x.to(dtype) for name, x in state.items()}
    start = chunk_start(states)
    if chunk_state is not None:
        start |= {name: x.to(dtype) for name, x in chunk_state.items()}
    return _token(rule, token, states, start, first_order=False)


def zero_states(rule: Rule, given: Named, sequences: int, heads: int) -> dict[str, Tensor]:
    """The states of a rule before any token, for the sizes and the type of `given`."""
    like = given["v"]
    found: dict[str, Tensor] = {}
    for each in _passes(rule, given):
        written, coded = each.w.shape[-1], each.a.shape[-1]
        shape = (written, coded) if rule.transposed else (coded, written)
        found[f"S{each.suffix}"] = like.new_zeros(sequences, heads, *shape)
        if rule.momentum:
            found[f"P{each.suffix}"] = like.new_zeros(sequences, heads, *shape)
        if rule.window > 1:
            found[f"window_u{each.suffix}"] = like.new_zeros(sequences, heads, rule.window - 1, coded)
            found[f"window_w{each.suffix}"] = like.new_zeros(sequences, heads, rule.window - 1, written)
    if rule.normaliser != "none":
        found["n"] = like.new_zeros(sequences, heads, given["k"].shape[-1])
    return found


def _completed(given: Named, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a call in one type, with ones for those that may be left out and a step size for every token."""
    tokens = {name: x.to(dtype) for name, x in given.items()}
    ones = tokens["q"].new_ones(shape)
    for name in ("step_size", "window_weight"):
        tokens[name] = tokens[name].expand(shape) if name in tokens else ones
    return tokens


@dataclass(frozen=True)
class _Pass:
    """The write vector w, target a and probe p of one memory, and the suffix of its states."""

    suffix: str
    w: Tensor
    a: Tensor
    p: Tensor


def _passes(rule: Rule, given: Named) -> list[_Pass]:
    if rule.passes == 2:
        return [
            _Pass("_k", given["k"], given["target"], given["k"]),
            _Pass("_v", given["v"], given["target"], given["v"]),
        ]
    w, a = (given["v"], given["k"]) if rule.transposed else (given["k"], given["v"])
    return [_Pass("", w, a, given["probe"] if rule.probe == "own" else w)]


def _run(
    rule: Rule, tokens: Named, states: dict[str, Tensor], chunk_size: int, first_order: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    outputs = []
    start: dict[str, Tensor] = {}
    for t in range(tokens["q"].shape[1]):
        if t % chunk_size == 0:
            start = chunk_start(states)
        token = {name: x if name in PER_HEAD else x[:, t] for name, x in tokens.items()}
        y, states, start = _token(rule, token, states, start, first_order)
        outputs.append(y)
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(tokens["v"]), states


def chunk_start(states: Named) -> dict[str, Tensor]:
    """What a chunk that starts at `states` keeps: S0, n0, and A, the sum of its writes, from zero."""
    start = {f"{name[0]}0{name[1:]}": x for name, x in states.items() if name[0] in "Sn"}
    return start | {f"A{name[1:]}": torch.zeros_like(x) for name, x in states.items() if name[0] == "S"}


def _token(
    rule: Rule, token: Named, states: Named, start: Named, first_order: bool
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """y, the states after the token, and what its chunk has kept."""
    moved, kept = dict(states), dict(start)
    for each in _passes(rule, token):
        written = _written(rule, each, token, states, start, first_order)
        moved |= written.states
        outer = token["step_size"][..., None, None] * written.outer
        if rule.step_size == "reader_writer":
            kept[f"A{each.suffix}"] = start[f"A{each.suffix}"] + outer
            moved[f"S{each.suffix}"] = (
                start[f"S0{each.suffix}"] - token["reader_step"][..., None, None] * kept[f"A{each.suffix}"]
            )
            continue
        change = -outer
        if rule.momentum:
            change = moved[f"P{each.suffix}"] = token["momentum"][..., None, None] * states[f"P{each.suffix}"] + change
        moved[f"S{each.suffix}"] = _decayed(rule, token, states[f"S{each.suffix}"]) + written.erased + change
    if rule.normaliser != "none":
        moved["n"] = _decayed(rule, token, states["n"]) + token["step_size"][..., None] * token["k"]
    return _read(rule, token, _to_read(rule, states, moved, start)), moved, kept


@dataclass(frozen=True)
class _Written:
    """What a token writes: the matrix that is subtracted, times the step; the one that is added; the moved window."""

    outer: Tensor
    erased: Tensor | float
    states: dict[str, Tensor]


def _written(rule: Rule, memory: _Pass, token: Named, states: Named, start: Named, first_order: bool) -> _Written:
    accumulator = start[f"S0{memory.suffix}"]
    if rule.decay_first:
        accumulator = _decayed(rule, token, accumulator)
    base = _viewed(rule, accumulator)
    z = _matvec(base.mT if rule.transposed else base, memory.p)
    if rule.normaliser == "both":
        n = _decayed(rule, token, start["n0"]) if rule.decay_first else start["n0"]
        z = z / _weight(n, memory.p)
    gain = token["gain"].expand(z.shape) if "gain" in token else None
    u = inner_gradient(z, memory.a, rule, first_order=first_order, gain=gain)
    erased = _outer(_matvec(base, token["erase_a"]), token["erase_b"]) if rule.erase else 0.0
    if rule.window > 1:
        outer, moved = _repeated(rule, memory, token["window_weight"][..., None] * u, states)
        return _Written(outer, erased, moved)
    outer = _outer(memory.w, u) if rule.transposed else _outer(u, memory.w)
    return _Written(_through_view(rule, accumulator, outer) if rule.view_gradient else outer, erased, {})


def _repeated(rule: Rule, memory: _Pass, u: Tensor, states: Named) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the writes of the last `window` tokens, and all of their pairs but the oldest."""
    us = torch.cat([states[f"window_u{memory.suffix}"], u[..., None, :]], dim=-2)
    ws = torch.cat([states[f"window_w{memory.suffix}"], memory.w[..., None, :]], dim=-2)
    outer = torch.einsum("...cm,...cd->...md", *((ws, us) if rule.transposed else (us, ws)))
    return outer, {f"window_u{memory.suffix}": us[..., 1:, :], f"window_w{memory.suffix}": ws[..., 1:, :]}


def _through_view(rule: Rule, accumulator: Tensor, outer: Tensor) -> Tensor:
    """The gradient at the accumulator of what has the gradient `outer` at the view."""
    differentiable = torch.is_grad_enabled() and (accumulator.requires_grad or outer.requires_grad)
    with torch.enable_grad():
        point = accumulator if accumulator.requires_grad else accumulator.detach().requires_grad_()
        (found,) = torch.autograd.grad(apply_map(rule.view, point), point, outer, create_graph=differentiable)
    return found


def _viewed(rule: Rule, accumulator: Tensor) -> Tensor:
    return accumulator if rule.view == "identity" else apply_map(rule.view, accumulator)


def _decayed(rule: Rule, token: Named, state: Tensor) -> Tensor:
    """decay o state: of a matrix, or of the vector of a normaliser, whose entries belong to its columns."""
    if rule.decay == "none":
        return state
    decay = token["log_decay"].exp()
    if rule.decay == "slot":
        return decay[..., None] * state
    if rule.decay == "channel":
        return (decay[..., None, :] if state.ndim > decay.ndim else decay) * state
    return decay[(..., *([None] * (state.ndim - decay.ndim)))] * state


def _to_read(rule: Rule, before: Named, after: Named, start: Named) -> dict[str, Tensor]:
    """The states that are read, by their names."""
    names = [name for name in before if name[0] in "Sn"]
    if rule.read == "chunk_start":
        return {name: start[f"{name[0]}0{name[1:]}"] for name in names}
    return {name: (after if rule.read == "after" else before)[name] for name in names}


def _read(rule: Rule, token: Named, states: Named) -> Tensor:
    q = token["q"]
    if rule.passes == 2:
        return apply_map(rule.out, _matvec(_viewed(rule, states["S_v"]).mT, _linked(rule, token, states["S_k"])))
    y = _matvec(_viewed(rule, states["S"]), q)
    return apply_map(rule.out, y if rule.normaliser == "none" else y / _weight(states["n"], q))


def _linked(rule: Rule, token: Named, state: Tensor) -> Tensor:
    s_k = _viewed(rule, state)
    if rule.link == SOLVE:
        r: Tensor = torch.linalg.solve(s_k + torch.diag_embed(token["regulariser"]), token["q"])
        return r
    return apply_map(rule.link, _matvec(s_k, token["q"]))


def _weight(n: Tensor, x: Tensor) -> Tensor:
    return (n * x).sum(-1, keepdim=True) + READOUT_EPS


def _matvec(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("...md,...d->...m", matrix, x)


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.einsum("...m,...d->...md", rows, columns)
