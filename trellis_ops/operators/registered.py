"""The operators as torch.library sees them: flat arguments, fake implementations, gradients.

`trellis_ops.ops` has the functions that users call; each operator here is what one of them becomes under torch.compile
and where gradients are wanted, and each `run_*` is what both of them do.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codegen.kernels.sequences import Sequences
from codegen.rule import Rule
from trellis_ops.calls import arguments, values
from trellis_ops.dispatch import launch
from trellis_ops.eager import backward
from trellis_ops.eager import forward as eager
from trellis_ops.operators import autocast, batching, fakes, gradients, overlap, quick_step, transforms
from trellis_ops.operators.gradients import Reverse
from trellis_ops.operators.plan import QUICK_PLANS, Plan, plan
from trellis_ops.operators.schemas import ATTENTION, READOUT, STEP, UPDATE, Call


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
            y, (s_k, s_v) = eager.attention(
                *(q, k, v, target, log_decay, step_size),
                rule=Rule(phi, link, out, phi_eps),
                chunk_size=chunk_size,
                initial_state=None if S_k is None or S_v is None else (S_k, S_v),
                cu_seqlens=cu_seqlens,
                outer_gradient=outer_gradient,
            )
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


def attention_gradient(reverse: Reverse) -> Mapping[str, Tensor]:
    """The wanted gradients of `trellis_attention`, by eager PyTorch."""
    call = reverse.call
    return backward.gradients(
        call.tensors,
        reverse.wanted,
        reverse.cotangents,
        rule=call.rule,
        chunk_size=call.settings["chunk_size"],
        outer_gradient=call.settings["outer_gradient"],
    )


attention = transforms.operator("trellis_ops::attention", run_attention, ATTENTION.function, ATTENTION.schema)
fakes.register(attention, ATTENTION, attention_request)
batching.map_by_calls(attention)
gradients.register(ATTENTION, attention_gradient)


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
            return eager.update(
                *(w, target, log_decay, step_size),
                rule=Rule(phi, phi_eps=phi_eps),
                chunk_size=chunk_size,
                initial_state=S,
            )
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


def _eager_update(call: Call) -> tuple[Tensor, ...]:
    tensors = dict(call.tensors)
    state = tensors.pop("S")
    return eager.update(**tensors, rule=call.rule, chunk_size=call.settings["chunk_size"], initial_state=state)


update = transforms.operator("trellis_ops::update", run_update, UPDATE.function, UPDATE.schema)
fakes.register(update, UPDATE, update_request)
batching.map_by_calls(update)
gradients.register(UPDATE, gradients.by_autograd(_eager_update))


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


def _eager_readout(call: Call) -> tuple[Tensor, ...]:
    return (eager.readout(**call.tensors, **call.settings),)


readout = transforms.operator("trellis_ops::readout", run_readout, READOUT.function, READOUT.schema)
fakes.register(readout, READOUT, arguments.readout_request)
batching.map_by_calls(readout)
gradients.register(READOUT, gradients.by_autograd(_eager_readout))


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
    settings = (phi, link, out, phi_eps)
    key = quick_step.key_of(q, v, step_size, S_k, G_k, G_v, settings, implementation)
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
            step_request(q, k, v, target, log_decay, step_size, S_k, S_v, G_k, G_v, *settings)
            raise
        if y is not None:
            return y
    tensors = (q, k, v, target, log_decay, step_size, S_k, S_v, G_k, G_v)
    found = plan(step_request, tensors, settings, implementation)
    inputs = {"q": q, "k": k, "v": v, "target": target, "log_decay": log_decay, "step_size": step_size}
    overlap.check_apart(S_k, S_v, G_k, G_v, **inputs)
    if found.checks_values:
        values.check_values(log_decay, step_size, q=q, k=k, v=v, target=target, S_k=S_k, S_v=S_v, G_k=G_k, G_v=G_v)
    if found.operator is None:
        state, rule = (S_k, S_v), Rule(*settings)
        with autocast.off(q.device):
            return eager.step(q, k, v, target, log_decay, step_size, state, rule=rule, gradient_state=gradient_state)
    y = launch.step(found.operator, q, k, v, target, log_decay, step_size, S_k, S_v, gradient_state, found.sequences)
    quick_step.remember(key, found, quick is not None, inputs, (S_k, S_v), gradient_state)
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


step = transforms.operator("trellis_ops::step", run_step, STEP.function, STEP.schema)
fakes.register(step, STEP, step_request)
