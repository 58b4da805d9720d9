"""The oracle: bounded-memory attention, one token at a time, straight from the recurrence.

Source: TRELLIS, arXiv 2512.23852, sections 3 and 3.2. Per head, with write vector w (k in pass 1, v in pass 2):

    z_t = S_{t'} w_t
    u_t = J_phi(z_t)^T (phi(z_t) - target_t)
    S_t = beta_t S_{t-1} - step_size_t u_t w_t^T
    y_t = out(S_v,t^T link(S_k,t q_t))

where t' is the last token before the chunk that t lies in. Here the vector-Jacobian product is whatever autograd makes
of 1/2 ||phi(z) - alpha||^2, and nothing is ever computed for a whole chunk: every other implementation is checked
against this file, so it shares no expression with any of them. It is meant to be read and trusted, not to be fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from codegen.rule import READOUT_EPS, Rule
from trellis_ops.outer_gradient import is_first_order
from trellis_ops.tokens import States, Tokens


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + eps)


def _l2_silu(x: Tensor) -> Tensor:
    s = _silu(x)
    # max(||s||, 1e-6) taken on the squares: the gradient of a square root at s = 0 is infinite.
    return s / torch.sqrt(torch.clamp((s**2).sum(dim=-1, keepdim=True), min=1e-12))


def _softmax(x: Tensor) -> Tensor:
    weights = torch.exp(x - x.amax(dim=-1, keepdim=True).detach())
    return weights / weights.sum(dim=-1, keepdim=True)


_MAPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, eps: x,
    "silu": lambda x, eps: _silu(x),
    "ln_silu": lambda x, eps: _layer_norm(_silu(x), eps),
    "l2_silu": lambda x, eps: _l2_silu(x),
    "softmax": lambda x, eps: _softmax(x),
    "layer_norm": _layer_norm,
    "unit_row": lambda x, eps: x / torch.sqrt((x**2).sum(dim=-1, keepdim=True) + eps),
}
"""The maps that come along, and those that named rules define."""


def _huber(z: Tensor, target: Tensor) -> Tensor:
    size = torch.abs(z - target)
    return torch.where(size <= 1, 0.5 * size**2, size - 0.5)


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "hebbian": lambda z, target, eps: -z * target,
    "huber": lambda z, target, eps: _huber(z, target),
    "smooth_l3": lambda z, target, eps: ((z - target) ** 2 + 1e-4) ** 1.5 / 3,
    "layer_norm_gain": lambda z, target, eps, gain: 0.5 * (_layer_norm(z, eps) * gain - target) ** 2,
}


def define(name: str, formula: Callable[[Tensor, float], Tensor]) -> None:
    """Let rules whose map has that name be computed by a plain formula of z `[..., M]` and epsilon.

    Given a whole definition, such as "cubic(z) = z ** 3", it serves that one unless its name has a formula.
    """
    _LOSSES.pop(name, None)
    _MAPS[name] = formula


def define_loss(name: str, formula: Callable[..., Tensor]) -> None:
    """Let rules whose phi is the loss of that name be computed by a plain formula of z, alpha `[..., M]` and epsilon.

    The formula of a loss with a gain takes the gain after them. It may keep or sum its last axis; whatever it gives is
    summed. A definition is taken as by `define`.
    """
    _MAPS.pop(name, None)
    _LOSSES[name] = formula


def _name_of(map_or_loss: str) -> str:
    """The name in a definition such as "cubic(z) = z ** 3", of which nothing else is read here; or the name itself."""
    return map_or_loss.partition("(")[0].strip()


def apply_map(name: str, x: Tensor, eps: float = READOUT_EPS) -> Tensor:
    """The map called `name` of `codegen.rule.MAPS`, or that `define` was given, over the last axis of x.

    Raises:
        KeyError: a map whose formula `define` was not given.
    """
    formula = _MAPS.get(_name_of(name)) or _MAPS[name]
    return formula(x, eps)


def inner_gradient(
    z: Tensor, target: Tensor, rule: Rule, *, first_order: bool = False, gain: Tensor | None = None
) -> Tensor:
    """u = J_phi(z)^T (phi(z) - alpha), the gradient at z of 1/2 ||phi(z) - alpha||^2 or of a loss, by autograd.

    z, alpha, u and the gain of a loss that has one are `[..., M]`. The result can itself be differentiated, through z
    too unless `first_order`.
    """
    given = (z, target) if gain is None else (z, target, gain)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    with torch.enable_grad():
        point = z if z.requires_grad and not first_order else z.detach().requires_grad_()
        loss = _inner_loss(point, target, rule, gain)
        (u,) = torch.autograd.grad(loss, point, create_graph=differentiable)
    return u


def _inner_loss(z: Tensor, target: Tensor, rule: Rule, gain: Tensor | None = None) -> Tensor:
    loss = _LOSSES.get(_name_of(rule.phi)) or _LOSSES.get(rule.phi)
    if loss is not None:
        return loss(z, target, rule.phi_eps, *(() if gain is None else (gain,))).sum()
    return 0.5 * ((apply_map(rule.phi, z, rule.phi_eps) - target) ** 2).sum()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    rule: Rule,
    chunk_size: int,
    initial_state: States | None = None,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, States]:
    """The two-pass memory over T tokens.

    Args:
        q, k: `[B, T, H, D_k]`.
        v: `[B, T, H, D_v]`.
        target: `[B, T, H, M]`, the target that both memories share.
        log_decay: `[B, T, H]`, log of the forget gate; -inf forgets everything.
        step_size: `[H]` or `[B, T, H]`, the step size.
        rule: the maps.
        chunk_size: C; z is taken at the state at the start of the token's chunk. 1 is the exact recurrence.
        initial_state: S_k `[B, H, M, D_k]` and S_v `[B, H, M, D_v]`, zero if None; `[N, H, M, D]` when packed.
        cu_seqlens: `[N + 1]` offsets of N sequences packed into B = 1; chunks restart with each of them.
        outer_gradient: "bilevel", or "first_order" to treat z as a constant inside u.
        dtype: type of all arithmetic and of the results.

    Returns:
        y `[B, T, H, D_v]` and the final states, shaped as the initial ones.

    Raises:
        ValueError: an unknown `outer_gradient`.
    """
    first_order = is_first_order(outer_gradient)
    tokens = Tokens.of(q, k, v, target, log_decay, step_size, dtype)
    if cu_seqlens is None:
        states = _first_states(tokens, initial_state, sequences=q.shape[0])
        return _run(tokens, states, rule, chunk_size, first_order)
    s_k, s_v = _first_states(tokens, initial_state, sequences=len(cu_seqlens) - 1)
    outputs, finals_k, finals_v = [], [], []
    for n, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        sequence = Tokens(*(x[:, start:end] for x in tokens))
        y, (final_k, final_v) = _run(sequence, (s_k[n : n + 1], s_v[n : n + 1]), rule, chunk_size, first_order)
        outputs.append(y)
        finals_k.append(final_k)
        finals_v.append(final_v)
    return torch.cat(outputs, dim=1), (torch.cat(finals_k), torch.cat(finals_v))


def _run(tokens: Tokens, states: States, rule: Rule, chunk_size: int, first_order: bool) -> tuple[Tensor, States]:
    outputs = []
    chunk_start = states
    for t in range(tokens.q.shape[1]):
        if t % chunk_size == 0:
            chunk_start = states
        token = Tokens(*(x[:, t] for x in tokens))
        y, states = _token(token, states, chunk_start, rule, first_order)
        outputs.append(y)
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(tokens.v), states


def _token(
    token: Tokens, states: States, gradient_states: States, rule: Rule, first_order: bool
) -> tuple[Tensor, States]:
    z_k, z_v = _matvec(gradient_states[0], token.k), _matvec(gradient_states[1], token.v)
    u_k = inner_gradient(z_k, token.target, rule, first_order=first_order)
    u_v = inner_gradient(z_v, token.target, rule, first_order=first_order)
    s_k = _write(states[0], u_k, token.k, token.log_decay, token.step_size)
    s_v = _write(states[1], u_v, token.v, token.log_decay, token.step_size)
    r = apply_map(rule.link, _matvec(s_k, token.q))
    return apply_map(rule.out, _matvec(s_v.transpose(-1, -2), r)), (s_k, s_v)


def _matvec(state: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("...md,...d->...m", state, x)


def _write(state: Tensor, u: Tensor, w: Tensor, log_decay: Tensor, step_size: Tensor) -> Tensor:
    outer = torch.einsum("...m,...d->...md", u, w)
    return log_decay.exp()[..., None, None] * state - step_size[..., None, None] * outer


def _first_states(tokens: Tokens, initial_state: States | None, sequences: int) -> States:
    q, v, target = tokens.q, tokens.v, tokens.target
    if initial_state is not None:
        return initial_state[0].to(q.dtype), initial_state[1].to(q.dtype)
    heads, slots = target.shape[-2:]
    return q.new_zeros(sequences, heads, slots, q.shape[-1]), v.new_zeros(sequences, heads, slots, v.shape[-1])


def update(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    rule: Rule,
    chunk_size: int,
    initial_state: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states of one memory.

    Args:
        w: `[B, T, H, D]`, the write vectors: k for the first memory, v for the second.
        target, log_decay, step_size, rule, chunk_size, dtype: as in `attention`.
        initial_state: `[B, H, M, D]`, zero if None.

    Returns:
        The state at the start of each chunk `[B, ceil(T / C), H, M, D]`, the codes u `[B, T, H, M]`, the final state
        `[B, H, M, D]`.
    """
    w, target, log_decay, step_size = (x.to(dtype) for x in (w, target, log_decay, step_size))
    step_size = step_size.expand(log_decay.shape)
    batch, tokens, heads, dim = w.shape
    state = w.new_zeros(batch, heads, target.shape[-1], dim) if initial_state is None else initial_state.to(dtype)
    starts, codes = [], []
    for t in range(tokens):
        if t % chunk_size == 0:
            starts.append(state)
        codes.append(inner_gradient(_matvec(starts[-1], w[:, t]), target[:, t], rule))
        state = _write(state, codes[-1], w[:, t], log_decay[:, t], step_size[:, t])
    return torch.stack(starts, dim=1), torch.stack(codes, dim=1), state


def readout(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    chunk_size: int,
    transpose: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One readout per token, from what `update` returned.

    Args:
        read: q `[B, T, H, D]`, or with `transpose` r `[B, T, H, M]`.
        w: `[B, T, H, D]`, the write vectors that `update` was given.
        chunk_states, codes: the first two results of `update`.
        log_decay, step_size, chunk_size, dtype: as in `attention`.
        transpose: read S_t^T r_t instead of S_t q_t.

    Returns:
        S_t q_t `[B, T, H, M]`, or with `transpose` S_t^T r_t `[B, T, H, D]`; no map is applied.
    """
    tensors = (read, w, chunk_states, codes, log_decay, step_size)
    read, w, chunk_states, codes, log_decay, step_size = (x.to(dtype) for x in tensors)
    step_size = step_size.expand(log_decay.shape)
    outputs = []
    state = chunk_states[:, 0]
    for t in range(read.shape[1]):
        if t % chunk_size == 0:
            state = chunk_states[:, t // chunk_size]
        state = _write(state, codes[:, t], w[:, t], log_decay[:, t], step_size[:, t])
        outputs.append(_matvec(state.transpose(-1, -2) if transpose else state, read[:, t]))
    return torch.stack(outputs, dim=1)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    state: States,
    *,
    rule: Rule,
    gradient_state: States | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, States]:
    """One token; changes nothing it was given.

    Args:
        q, k: `[B, H, D_k]`.
        v: `[B, H, D_v]`.
        target: `[B, H, M]`.
        log_decay: `[B, H]`.
        step_size: `[H]` or `[B, H]`.
        state: S_k `[B, H, M, D_k]` and S_v `[B, H, M, D_v]` before the token.
        rule: the maps.
        gradient_state: the states that z is taken at, the chunk's first ones; None is `state`, the exact recurrence.
        dtype: type of all arithmetic and of the results.

    Returns:
        y `[B, H, D_v]` and the states after the token.
    """
    s_k, s_v = (s.to(dtype) for s in state)
    g_k, g_v = (s_k, s_v) if gradient_state is None else (s.to(dtype) for s in gradient_state)
    token = Tokens.of(q, k, v, target, log_decay, step_size, dtype)
    return _token(token, (s_k, s_v), (g_k, g_v), rule, first_order=False)
