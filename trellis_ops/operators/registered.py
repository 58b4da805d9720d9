"""The operators as torch.library sees them: flat arguments, fake implementations, gradients.

`trellis_ops.ops` has the functions that users call; each operator here is what one of them becomes under torch.compile
and where gradients are wanted, and each `run_*` is what both of them do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.kernels.sequences import Sequences
from codegen.rule import Rule
from trellis_ops import arguments, values
from trellis_ops.dispatch import launch
from trellis_ops.eager import backward
from trellis_ops.eager import forward as eager
from trellis_ops.operators import autocast, batching, gradients, overlap, quick_step
from trellis_ops.operators.plan import QUICK_PLANS, Plan, plan

ATTENTION_NAMES = ("q", "k", "v", "target", "log_decay", "step_size", "S_k", "S_v", "cu_seqlens")
"""The tensors of `trellis_attention`, in the order of its schema."""

ATTENTION_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor target, Tensor log_decay, Tensor step_size,"
    " Tensor? S_k, Tensor? S_v, Tensor? cu_seqlens"
)
ATTENTION_SETTINGS = (
    "str phi, str link, str out, float phi_eps, int chunk_size, str outer_gradient, str? implementation"
)
_UPDATE_TENSORS = "Tensor w, Tensor target, Tensor log_decay, Tensor step_size, Tensor? S"
_UPDATE_SETTINGS = "str phi, float phi_eps, int chunk_size, str? implementation"
_READOUT_TENSORS = "Tensor read, Tensor w, Tensor chunk_states, Tensor codes, Tensor log_decay, Tensor step_size"
_READOUT_SETTINGS = "int chunk_size, bool transpose, str? implementation"
# G_k and G_v are only read, and yet declared as written: Inductor takes a copy of a graph input for the input itself,
# though an operator writes it. Seen with torch 2.13 (`remove_noop_ops` in torch/_inductor/fx_passes/post_grad.py), and
# reported of 2.14 as pytorch/pytorch#198131 and #198031. This gives y = x + 2 s and g = 2 s, not x + s and s:
#
#     @torch.library.custom_op("demo::move", mutates_args=("s",))
#     def move(x: Tensor, s: Tensor, g: Tensor) -> Tensor:
#         s.mul_(2.0)
#         return x + g
#
#     move.register_fake(lambda x, s, g: torch.empty_like(x))
#
#     @torch.compile
#     def f(x, s, g):
#         assert s.shape[0] == 4  # makes s the first input, so that its new value is stored before g reads the old one
#         g.copy_(s)
#         return move(x, s, g)  # runs as move(x, s, s)
#
# Two arguments that are both written it never gives the same memory, and stores each from what the operator left.
_STEP_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor target, Tensor log_decay, Tensor step_size, Tensor(a!) S_k, Tensor(b!) S_v,"
    " Tensor(c!)? G_k, Tensor(d!)? G_v, str phi, str link, str out, float phi_eps, str? implementation) -> Tensor"
)


def run_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    cu_seqlens: Tensor | None,
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
    chunk_size: int,
    outer_gradient: str,
    implementation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y `[B, T, H, D_v]` and the final states, by whichever implementation the plan says."""
    tensors = (q, k, v, target, log_decay, step_size, S_k, S_v, cu_seqlens)
    settings = (phi, link, out, phi_eps, chunk_size, outer_gradient)
    found = plan(attention_request, tensors, settings, implementation)
    sequences = attention_sequences(found, *tensors)
    if found.operator is None:
        with autocast.off(q.device):
            y, s_k, s_v = _eager_attention(*settings)(*tensors)
        return y, s_k, s_v
    return launch.attention(found.operator, q, k, v, target, log_decay, step_size, S_k, S_v, sequences)


def attention_sequences(
    found: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Sequences:
    """Where the sequences of a call of `trellis_attention` lie, once the checks that read data have passed."""
    sequences = found.sequences
    if cu_seqlens is not None:
        values.check_offsets(cu_seqlens, q.shape[1], stall=found.checks_values)
        sequences = launch.packed_sequences(cu_seqlens, q.shape[1], found.chunk_tokens)
    if found.checks_values:
        values.check_values(log_decay, step_size, q=q, k=k, v=v, target=target, S_k=S_k, S_v=S_v)
    return sequences


def attention_request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor | None,
    S_v: Tensor | None,
    cu_seqlens: Tensor | None,
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
    chunk_size: int,
    outer_gradient: str,
) -> arguments.Request:
    """The checked call of `trellis_attention`."""
    rule = Rule(phi, link, out, phi_eps)
    return arguments.attention_request(
        q, k, v, target, log_decay, step_size, (S_k, S_v), cu_seqlens, rule, chunk_size, outer_gradient
    )


attention = torch.library.custom_op(
    "trellis_ops::attention",
    run_attention,
    mutates_args=(),
    schema=f"({ATTENTION_TENSORS}, {ATTENTION_SETTINGS}) -> (Tensor, Tensor, Tensor)",
)


@attention.register_fake
def fake_attention(*call: object) -> tuple[Tensor, Tensor, Tensor]:
    """y and the final states, without data."""
    request = attention_request(*call[:-1])  # type: ignore[arg-type]
    q, _, v, target, *_, cu_seqlens = (x for x in call[:9])
    assert isinstance(q, Tensor) and isinstance(v, Tensor) and isinstance(target, Tensor)
    sequences = cu_seqlens.shape[0] - 1 if isinstance(cu_seqlens, Tensor) else q.shape[0]
    shape, dtype = (sequences, *target.shape[2:]), _state_dtype(request)
    return (
        v.new_empty(v.shape),
        q.new_empty((*shape, q.shape[-1]), dtype=dtype),
        q.new_empty((*shape, v.shape[-1]), dtype=dtype),
    )


def _eager_attention(
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
    chunk_size: int,
    outer_gradient: str,
    implementation: str | None = None,
) -> gradients.Forward:
    rule = Rule(phi, link, out, phi_eps)

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        target: Tensor,
        log_decay: Tensor,
        step_size: Tensor,
        S_k: Tensor | None,
        S_v: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, ...]:
        y, states = eager.attention(
            *(q, k, v, target, log_decay, step_size),
            rule=rule,
            chunk_size=chunk_size,
            initial_state=None if S_k is None or S_v is None else (S_k, S_v),
            cu_seqlens=cu_seqlens,
            outer_gradient=outer_gradient,
        )
        return y, *states

    return forward


def _attention_gradient(
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
    chunk_size: int,
    outer_gradient: str,
    implementation: str | None = None,
) -> gradients.VectorJacobian:
    rule = Rule(phi, link, out, phi_eps)

    def pull_back(inputs: Sequence[Tensor | None], wanted: Sequence[int], cotangents: Sequence[Tensor]) -> list[Tensor]:
        return backward.gradients(
            inputs, wanted, cotangents, rule=rule, chunk_size=chunk_size, outer_gradient=outer_gradient
        )

    return pull_back


batching.map_by_calls(attention)
gradients.register("attention", ATTENTION_TENSORS, ATTENTION_SETTINGS, _attention_gradient, outputs=3)


def run_update(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S: Tensor | None,
    phi: str,
    phi_eps: float,
    chunk_size: int,
    implementation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """chunk_states, codes and the final state, by whichever implementation the plan says."""
    tensors, settings = (w, target, log_decay, step_size, S), (phi, phi_eps, chunk_size)
    found = plan(update_request, tensors, settings, implementation)
    if found.checks_values:
        values.check_values(log_decay, step_size, w=w, target=target, S=S)
    if found.operator is None:
        with autocast.off(w.device):
            chunk_states, codes, state = _eager_update(*settings)(*tensors)
        return chunk_states, codes, state
    return launch.update(found.operator, *tensors, found.sequences)


def update_request(
    w: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S: Tensor | None,
    phi: str,
    phi_eps: float,
    chunk_size: int,
) -> arguments.Request:
    """The checked call of `memory_update`."""
    return arguments.update_request(w, target, log_decay, step_size, S, Rule(phi, phi_eps=phi_eps), chunk_size)


update = torch.library.custom_op(
    "trellis_ops::update",
    run_update,
    mutates_args=(),
    schema=f"({_UPDATE_TENSORS}, {_UPDATE_SETTINGS}) -> (Tensor, Tensor, Tensor)",
)


@update.register_fake
def _(
    w: Tensor, target: Tensor, log_decay: Tensor, step_size: Tensor, S: Tensor | None, *settings: object
) -> tuple[Tensor, Tensor, Tensor]:
    request = update_request(w, target, log_decay, step_size, S, *settings[:-1])  # type: ignore[arg-type]
    batch, tokens, heads, dim = w.shape
    slots, dtype, chunk_size = target.shape[-1], _state_dtype(request), request.spec.problem.chunk
    chunks = (tokens + chunk_size - 1) // chunk_size
    return (
        w.new_empty((batch, chunks, heads, slots, dim), dtype=dtype),
        w.new_empty((batch, tokens, heads, slots), dtype=dtype),
        w.new_empty((batch, heads, slots, dim), dtype=dtype),
    )


def _eager_update(phi: str, phi_eps: float, chunk_size: int, implementation: str | None = None) -> gradients.Forward:
    rule = Rule(phi, phi_eps=phi_eps)

    def forward(
        w: Tensor, target: Tensor, log_decay: Tensor, step_size: Tensor, S: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return eager.update(w, target, log_decay, step_size, rule=rule, chunk_size=chunk_size, initial_state=S)

    return forward


batching.map_by_calls(update)
gradients.register("update", _UPDATE_TENSORS, _UPDATE_SETTINGS, gradients.by_autograd(_eager_update), outputs=3)


def run_readout(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    chunk_size: int,
    transpose: bool,
    implementation: str | None,
) -> Tensor:
    """S_t q_t or S_t^T r_t, by whichever implementation the plan says."""
    tensors, settings = (read, w, chunk_states, codes, log_decay, step_size), (chunk_size, transpose)
    found = plan(arguments.readout_request, tensors, settings, implementation)
    if found.checks_values:
        values.check_values(log_decay, step_size, read=read, w=w, chunk_states=chunk_states, codes=codes)
    if found.operator is None:
        with autocast.off(read.device):
            return eager.readout(*tensors, chunk_size=chunk_size, transpose=transpose)
    return launch.readout(found.operator, *tensors, transpose, found.sequences)


readout = torch.library.custom_op(
    "trellis_ops::readout",
    run_readout,
    mutates_args=(),
    schema=f"({_READOUT_TENSORS}, {_READOUT_SETTINGS}) -> Tensor",
)


@readout.register_fake
def _(
    read: Tensor,
    w: Tensor,
    chunk_states: Tensor,
    codes: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    chunk_size: int,
    transpose: bool,
    implementation: str | None,
) -> Tensor:
    arguments.readout_request(read, w, chunk_states, codes, log_decay, step_size, chunk_size, transpose)
    return read.new_empty((*w.shape[:3], w.shape[-1] if transpose else codes.shape[-1]))


def _eager_readout(chunk_size: int, transpose: bool, implementation: str | None = None) -> gradients.Forward:
    def forward(*tensors: Tensor) -> tuple[Tensor]:
        return (eager.readout(*tensors, chunk_size=chunk_size, transpose=transpose),)

    return forward


batching.map_by_calls(readout)
gradients.register("readout", _READOUT_TENSORS, _READOUT_SETTINGS, gradients.by_autograd(_eager_readout), outputs=1)


def run_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor,
    S_v: Tensor,
    G_k: Tensor | None,
    G_v: Tensor | None,
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
    implementation: str | None,
) -> Tensor:
    """y `[B, H, D_v]`, by whichever implementation the plan says; S_k and S_v move in place."""
    tensors, settings = (q, k, v, target, log_decay, step_size, S_k, S_v, G_k, G_v), (phi, link, out, phi_eps)
    key = quick_step.key_of(tensors, settings, implementation)
    gradient_state = None if G_k is None or G_v is None else (G_k, G_v)
    try:
        quick = QUICK_PLANS.get(key)
    except TypeError:
        # A list where a name belongs, say, cannot be a part of a key; the long way says so.
        key = quick = None
    if quick is not None:
        try:
            y = quick_step.step(quick, q, k, v, target, log_decay, step_size, S_k, S_v, *(gradient_state or ()))
        except RuntimeError:
            # Bad input has a better reason. A kernel that has begun must not run again: it has moved states.
            step_request(*tensors, *settings)
            raise
        if y is not None:
            return y
    found = plan(step_request, tensors, settings, implementation)
    overlap.check_apart(S_k, S_v, G_k, G_v)
    if found.checks_values:
        values.check_values(log_decay, step_size, q=q, k=k, v=v, target=target, S_k=S_k, S_v=S_v, G_k=G_k, G_v=G_v)
    if found.operator is None:
        state, rule = (S_k, S_v), Rule(*settings)
        with autocast.off(q.device):
            return eager.step(q, k, v, target, log_decay, step_size, state, rule=rule, gradient_state=gradient_state)
    y = launch.step(found.operator, q, k, v, target, log_decay, step_size, S_k, S_v, gradient_state, found.sequences)
    quick_step.remember(key, found, refused=quick is not None)
    return y


def step_request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    target: Tensor,
    log_decay: Tensor,
    step_size: Tensor,
    S_k: Tensor,
    S_v: Tensor,
    G_k: Tensor | None,
    G_v: Tensor | None,
    phi: str,
    link: str,
    out: str,
    phi_eps: float,
) -> arguments.Request:
    """The checked call of `trellis_step`."""
    rule = Rule(phi, link, out, phi_eps)
    return arguments.step_request(q, k, v, target, log_decay, step_size, (S_k, S_v), (G_k, G_v), rule)


step = torch.library.custom_op(
    "trellis_ops::step", run_step, mutates_args=("S_k", "S_v", "G_k", "G_v"), schema=_STEP_SCHEMA
)


@step.register_fake
def _(*call: object) -> Tensor:
    step_request(*call[:-1])  # type: ignore[arg-type]
    v = call[2]
    assert isinstance(v, Tensor)
    return v.new_empty(v.shape)


def _state_dtype(request: arguments.Request) -> torch.dtype:
    return torch.float64 if request.float64 else torch.float32
