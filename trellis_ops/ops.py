"""The operators that users call.

Each calls its registered form in `trellis_ops.operators.registered` where torch must see it (a gradient is wanted,
torch.compile traces, tensors are fake or wrapped), and what that form runs directly otherwise, which saves 20 us a
call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codegen.errors import GradientError
from trellis_ops.calls import arguments
from trellis_ops.calls.arguments import LONGEST_CHUNK
from trellis_ops.operators import autocast, kept_attention, registered, transforms
from trellis_ops.operators.plan import is_plain, wants_gradient
from trellis_ops.operators.schemas import ATTENTION, READOUT, STEP, UPDATE, Operator
from trellis_ops.pool import calls as pooled
from trellis_ops.tokens import States


def trellis_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    phi: str = "ln_silu",
    link: str = "ln_silu",
    out: str = "identity",
    phi_eps: float = 1e-6,
    chunk_size: int = 64,
    initial_state: States | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    outer_gradient: str = "bilevel",
    state_indices: Tensor | None = None,
    positions: Tensor | None = None,
    gradient_state: States | None = None,
    first_state: States | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, States | None]:
    """Two-pass attention over a memory of M slots per head (TRELLIS, arXiv 2512.23852, section 3.2).

    Per head and token: z = S w at the state at the start of the token's chunk, u = J_phi(z)^T (phi(z) - alpha),
    S <- beta S - gamma u w^T, for S_k with w = k and for S_v with w = v; then r = link(S_k q), y = out(S_v^T r).

    Its gradient is that of docs/backward.md: by kernels where there are some (of TVM on CPUs, of Triton for chunks of
    at most 1024 tokens), which keep the states at the starts of chunks, or of every n-th, else by eager PyTorch, which
    keeps nothing and computes the states again.
    What needs no gradient costs none. Under torch.autocast q, k, v and target are cast to its type; gates, states and
    all arithmetic stay float32. Where a transform of torch.func differentiates it (grad, vjp, jacrev, also under vmap)
    it runs on eager PyTorch; forward mode (jvp, jacfwd, dual numbers) is refused unless "eager" is asked for.

    Args:
        q, k: `[B, T, H, D_k]`, float32, bfloat16 or float16 (float64: eager only). Any strides.
        v: `[B, T, H, D_v]`, like q.
        target: `[B, T, H, M]`, like q; the target of both writes.
        log_decay: `[B, T, H]`, float32; log of the forget gate, at most 0. -inf forgets everything.
        step_size: `[H]` or `[B, T, H]`, float32; step size, at least 0. The factor 2 of the
            paper's loss belongs into it.
        phi, link, out: names of maps, see `codegen.rule.MAPS`.
        phi_eps: epsilon of ln_silu as phi. At a zero state the write is scaled by 1 / (2 sqrt(phi_eps)).
        chunk_size: C >= 1, a model setting: z is taken at the state before the chunk. 1 is the exact recurrence; with
            C >= T all tokens are one chunk.
        initial_state: a pair, S_k `[B, H, M, D_k]`, S_v `[B, H, M, D_v]` (`[N, ...]` if packed), float32; None is zero.
        output_final_state: whether to return the states after the last token.
        cu_seqlens: `[N + 1]` int32 or int64, offsets of N sequences packed into B = 1; chunks restart with each. A
            sequence may be empty: its final state is its initial one.
        outer_gradient: "bilevel" differentiates through z, "first_order" treats z as a constant inside u.
        state_indices, positions: `[N]`, slots of a pool and the tokens that each has seen (`trellis_ops.pool`). Then
            `initial_state` is a pair of pools `[capacity, H, M, D]`, moved in place, and no state is returned.
        gradient_state, first_state: of a pool: the pair of pools that the starts of chunks are kept in, for C > 1; the
            pair `[H, M, D]` that a fresh row starts from.
        implementation: "eager", "tvm" or "triton" forces one; None takes the best that is known (see `explain`).

    Returns:
        y `[B, T, H, D_v]` in the type of q, and (S_k, S_v) in float32, or None.

    Raises:
        ShapeError, DtypeError, DeviceMismatchError, SequenceError, SizeError, UnknownMapError: bad arguments.
        TypeError: None in place of a tensor, or what is no number, flag or pair in place of one.
        PoolError, LayoutError, OverlapError, GradientError: of a pool, see `trellis_ops.pool`.
        MemoryRoomError: results and buffers that do not fit into the memory that is there.
        ImplementationError: `implementation` is unknown or cannot run this call.
        TransformError: a transform of torch.func differentiates a kernel, or forward mode anything but "eager".

    Example:
        >>> B, T, H, D, M = 1, 128, 2, 32, 16
        >>> q, k, v = (torch.nn.functional.normalize(torch.randn(B, T, H, D), dim=-1) for _ in range(3))
        >>> target, log_decay = torch.randn(B, T, H, M), torch.full((B, T, H), -0.02)
        >>> y, state = trellis_attention(q, k, v, target, log_decay, torch.full((H,), 0.1), phi_eps=1e-2)
        >>> y.shape
        torch.Size([1, 128, 2, 32])
    """
    if state_indices is not None:
        pooled.refuse_final_states(output_final_state)
        pools = pooled.Pools(initial_state, gradient_state, first_state, state_indices, positions)
        given = (q, k, v, target, log_decay, step_size)
        maps = (phi, link, out, phi_eps)
        y = pooled.trellis("trellis_attention", given, pools, maps, cu_seqlens, chunk_size, implementation)
        return y, None
    pooled.refuse_without_indices(positions=positions, gradient_state=gradient_state, first_state=first_state)
    q, k, v, target, log_decay, step_size = autocast.lower((q, k, v, target), (log_decay, step_size))
    # Here, since a plan for 2 would be found for 2.0, and one for 1 for True.
    if phi_eps.__class__ is not float or chunk_size.__class__ is not int or chunk_size > LONGEST_CHUNK:
        phi_eps, chunk_size = arguments.numbers_of_call(phi_eps, chunk_size)
    if output_final_state.__class__ is not bool:
        arguments.flag("output_final_state", output_final_state)
    s_k, s_v = (None, None) if initial_state is None else _pair("initial_state", initial_state)
    tensors = (q, k, v, target, log_decay, step_size, s_k, s_v, cu_seqlens)
    settings = (phi, link, out, phi_eps, chunk_size, outer_gradient)
    if is_plain(tensors):
        y, s_k, s_v = registered.run_attention(*tensors, *settings, implementation)
        return y, (s_k, s_v) if output_final_state else None
    names = {"phi": phi, "link": link, "out": out, "outer_gradient": outer_gradient}
    _require_types(ATTENTION, tensors, names, implementation)
    if transforms.differentiates("trellis_attention", tensors, implementation):
        y, s_k, s_v = transforms.attention(*tensors, *settings)
    elif wants_gradient(tensors):
        y, s_k, s_v, _, _ = kept_attention.attention(*tensors, *settings, implementation)
    else:
        y, s_k, s_v = registered.attention(*tensors, *settings, implementation)
    return y, (s_k, s_v) if output_final_state else None


def memory_update(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    phi: str = "ln_silu",
    phi_eps: float = 1e-6,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states of one memory, written by w (TRELLIS, arXiv 2512.23852, section 3.2, chunk form).

    Gradients come from differentiating the eager implementation.

    Args:
        w: `[B, T, H, D]`, the write vectors: k for the first memory, v for the second.
        target, log_decay, step_size, phi, phi_eps, chunk_size, implementation: as in `trellis_attention`.
        initial_state: `[B, H, M, D]` float32; None starts from zero.

    Returns:
        chunk_states `[B, ceil(T / C), H, M, D]`, those at the start of each chunk; codes u `[B, T, H, M]`; the final
        state `[B, H, M, D]`; all float32.

    Raises:
        As `trellis_attention`.
    """
    w, target, log_decay, step_size = autocast.lower((w, target), (log_decay, step_size))
    if phi_eps.__class__ is not float or chunk_size.__class__ is not int or chunk_size > LONGEST_CHUNK:
        phi_eps, chunk_size = arguments.numbers_of_call(phi_eps, chunk_size)
    tensors = (w, target, log_decay, step_size, initial_state)
    run = registered.run_update
    if not is_plain(tensors):
        _require_types(UPDATE, tensors, {"phi": phi}, implementation)
        if transforms.differentiates("memory_update", tensors, implementation):
            return transforms.update(*tensors, phi, phi_eps, chunk_size)
        run = registered.update
    chunk_states, codes, final_state = run(*tensors, phi, phi_eps, chunk_size, implementation)
    return chunk_states, codes, final_state


def memory_readout(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    *,
    chunk_size: int = 64,
    transpose: bool = False,
    implementation: str | None = None,
) -> Tensor:
    """One readout per token from what `memory_update` returned (arXiv 2512.23852, section 3.2, chunk form).

    All chunks are read at once. No map is applied. Gradients come from differentiating the eager implementation.

    Args:
        read: q `[B, T, H, D]`, or with `transpose` r `[B, T, H, M]`; of the type of w.
        w: `[B, T, H, D]`, the write vectors that `memory_update` was given.
        chunk_states, codes: the first two results of `memory_update`.
        log_decay, step_size, chunk_size, implementation: as in `trellis_attention`, the same as for `memory_update`.
        transpose: read S_t^T r_t instead of S_t q_t.

    Returns:
        S_t q_t `[B, T, H, M]`, or with `transpose` S_t^T r_t `[B, T, H, D]`, in the type of `read`.

    Raises:
        As `trellis_attention`.
    """
    read, w, log_decay, step_size = autocast.lower((read, w), (log_decay, step_size))
    if chunk_size.__class__ is not int or chunk_size > LONGEST_CHUNK:
        _, chunk_size = arguments.numbers_of_call(1.0, chunk_size)
    if transpose.__class__ is not bool:
        arguments.flag("transpose", transpose)
    tensors = (read, w, chunk_states, codes, log_decay, step_size)
    run = registered.run_readout
    if not is_plain(tensors):
        _require_types(READOUT, tensors, {}, implementation)
        if transforms.differentiates("memory_readout", tensors, implementation):
            return transforms.readout(*tensors, chunk_size, transpose)
        run = registered.readout
    y: Tensor = run(*tensors, chunk_size, transpose, implementation)
    return y


def trellis_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    state: States,
    *,
    phi: str = "ln_silu",
    link: str = "ln_silu",
    out: str = "identity",
    phi_eps: float = 1e-6,
    gradient_state: States | None = None,
    state_indices: Tensor | None = None,
    positions: Tensor | None = None,
    chunk_size: int = 1,
    first_state: States | None = None,
    implementation: str | None = None,
) -> Tensor:
    """One token of `trellis_attention`; the state is updated in place (arXiv 2512.23852, section 3.2).

    Args:
        q, k: `[B, H, D_k]`.
        v: `[B, H, D_v]`.
        target: `[B, H, M]`.
        log_decay: `[B, H]`.
        step_size: `[H]` or `[B, H]`.
        state: S_k `[B, H, M, D_k]` and S_v `[B, H, M, D_v]`, float32; they hold the new state afterwards.
        phi, link, out, phi_eps, implementation: as in `trellis_attention`.
        gradient_state: the states that z is taken at: those at the start of the chunk, copied by the caller and kept
            until it ends. None, or `state` itself, takes the current state: the exact recurrence (C = 1).
        state_indices, positions: `[B]`, slots of a pool and the tokens that each has seen (`trellis_ops.pool`). Then
            `state` is a pair of pools `[capacity, H, M, D]`, and so is `gradient_state`, which the step fills itself.
        chunk_size, first_state: of a pool: C, and the pair `[H, M, D]` that a fresh row starts from.

    Returns:
        y `[B, H, D_v]` in the type of q.

    Raises:
        GradientError: a gradient is wanted; a step overwrites what the backward would need.
        OverlapError: a state shares memory with itself, with the other one, or with one of `gradient_state`.
        PoolError, LayoutError: of a pool, see `trellis_ops.pool`.
        TransformError: a transform of torch.func, or forward-mode differentiation.
        As `trellis_attention` otherwise.
    """
    if state_indices is not None:
        pools = pooled.Pools(state, gradient_state, first_state, state_indices, positions)
        given = (q, k, v, target, log_decay, step_size)
        maps = (phi, link, out, phi_eps)
        return pooled.trellis("trellis_step", given, pools, maps, None, chunk_size, implementation)
    # Looked at here, since a call for each token would pay for the call of a function.
    if positions is not None or first_state is not None or chunk_size != 1:
        pooled.refuse_without_indices(
            positions=positions, first_state=first_state, chunk_size=None if chunk_size == 1 else chunk_size
        )
    # So is this, in the case that is met most.
    if q.__class__ is not Tensor or not q.is_cpu or torch._C._is_any_autocast_enabled():
        q, k, v, target, log_decay, step_size = autocast.lower((q, k, v, target), (log_decay, step_size))
    if phi_eps.__class__ is not float:
        phi_eps, _ = arguments.numbers_of_call(phi_eps)
    s_k, s_v = state if state.__class__ is tuple and len(state) == 2 else _pair("state", state)
    g_k = g_v = None
    if gradient_state is not None:
        g_k, g_v = _pair("gradient_state", gradient_state)
        if g_k is s_k and g_v is s_v:
            g_k = g_v = None
    tensors = (q, k, v, target, log_decay, step_size, s_k, s_v, g_k, g_v)
    if is_plain(tensors):
        return registered.run_step(*tensors, phi, link, out, phi_eps, implementation)
    _require_types(STEP, tensors, {"phi": phi, "link": link, "out": out}, implementation)
    if wants_gradient(tensors):
        raise GradientError(name="trellis_step", advice="use trellis_attention, or call it under torch.no_grad()")
    transforms.refuse("trellis_step", tensors)
    # By keyword: torch's cache of compiled graphs does not look at schemas, and has wrong ones where G is only read.
    settings = {"phi": phi, "link": link, "out": out, "phi_eps": phi_eps, "implementation": implementation}
    y: Tensor = registered.step(*tensors, **settings)
    return y


def _pair(name: str, states: States) -> tuple[Any, Any]:
    if states.__class__ is tuple and len(states) == 2:
        return states  # What is no tensor is refused with the others.
    return arguments.pair_of_states(name, states)


def _require_types(
    operator: Operator,
    tensors: tuple[Tensor | None, ...],
    names: Mapping[str, object],
    implementation: str | None,
) -> None:
    """Refuse what is no tensor, or no text, before torch's dispatcher sees it."""
    if not torch.compiler.is_compiling():
        given = list(zip(operator.tensors, tensors, strict=True))
        needed = {argument.public: tensor for argument, tensor in given if not argument.optional}
        optional = {argument.public: tensor for argument, tensor in given if argument.optional}
        arguments.require_types(needed, optional, names, implementation)
