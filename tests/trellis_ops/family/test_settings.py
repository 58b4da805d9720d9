"""What operators of any rule refuse of optional tuples, forward mode, long chunks and calls too large for memory."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

from codegen.errors import MemoryRoomError, TransformError
from codegen.rules import rule_named
from tests.support.relative_error import assert_close
from tests.trellis_ops.family.cases import Case
from tests.trellis_ops.test_memory import arguments, call
from trellis_ops import chunk_start, memory_attention, memory_step
from trellis_ops.dispatch import memory_room

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "tvm"])
RULE = rule_named("ttt_linear")


def attention_of(name, tokens=11):
    rule = rule_named(name)
    named, initial, *_ = call(rule, Case(rule, batch=2, tokens=tokens, heads=2, dim_k=6, dim_v=5, slots=4))
    return named, initial


def step_of(name):
    rule = rule_named(name)
    _, initial, given, _ = call(rule, Case(rule, batch=2, tokens=1, heads=2, dim_k=6, dim_v=5, slots=4))
    token = {key: x if x.ndim == 1 else x[:, 0].contiguous() for key, x in given.items()}
    return arguments(rule, token), initial


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", ["gsa", "omeganet", "titans"])
def test_states_that_lack_one(name, implementation):
    """In whatever place: it would be dropped, or read as zeros."""
    named, initial = attention_of(name)
    token, _ = step_of(name)
    for place in range(len(initial)):
        states = tuple(None if index == place else x for index, x in enumerate(initial))
        with pytest.raises(TypeError, match=rf"initial_state\[{place}\] is None, but must be a torch.Tensor"):
            memory_attention(**named, initial_state=states, implementation=implementation)
        with pytest.raises(TypeError, match=rf"state\[{place}\] is None, but must be a torch.Tensor"):
            memory_step(**token, state=states, implementation=implementation)
    fewer = initial[:-1]
    with pytest.raises(TypeError, match=f"{len(fewer)} tensors, but must be a tuple of {len(initial)}"):
        memory_attention(**named, initial_state=fewer, implementation=implementation)
    with pytest.raises(TypeError, match=f"{len(fewer)} tensors, but must be a tuple of {len(initial)}"):
        memory_step(**token, state=fewer, implementation=implementation)


@IMPLEMENTATIONS
def test_states_of_a_chunks_start_that_lack_one(implementation):
    token, initial = step_of("ttt_linear")
    starts = chunk_start(RULE, initial)
    for place in range(len(starts)):
        some = tuple(None if index == place else x for index, x in enumerate(starts))
        with pytest.raises(TypeError, match=rf"chunk_state\[{place}\] is None"):
            memory_step(**token, state=initial, chunk_state=some, implementation=implementation)


@pytest.mark.parametrize("place", [0, 1])
def test_half_of_what_erases(place):
    named, _ = attention_of("rwkv7")
    named["erase"] = tuple(None if index == place else x for index, x in enumerate(named["erase"]))
    with pytest.raises(TypeError, match=rf"erase\[{place}\] is None"):
        memory_attention(**named)


@pytest.mark.parametrize("implementation", [None, "tvm"])
@pytest.mark.parametrize("name", ["gsa", "kda", "titans"])
def test_forward_mode_is_refused_rather_than_zero(name, implementation):
    named, _ = attention_of(name)
    token, initial = step_of(name)

    def attend(v):
        return memory_attention(**(named | {"v": v}), implementation=implementation)[0]

    def step(v):
        state = tuple(x.clone() for x in initial)
        return memory_step(**(token | {"v": v}), state=state, implementation=implementation)

    for function, v in ((attend, named["v"]), (step, token["v"])):
        with pytest.raises(TransformError, match=r"forward-mode|memory_step .* use memory_attention"):
            jvp(function, (v,), (v,))
        with forward_ad.dual_level(), pytest.raises(TransformError, match=r"forward-mode|use memory_attention"):
            function(forward_ad.make_dual(v, v))


@pytest.mark.parametrize("implementation", [None, "eager"])
@pytest.mark.parametrize("name", ["gsa", "kda"])
def test_transforms_of_torch_func_are_those_of_autograd(name, implementation):
    named, _ = attention_of(name)
    v = named.pop("v")

    def energy(v):
        return memory_attention(**named, v=v, implementation=implementation)[0].square().sum((1, 2, 3))

    leaf = v.clone().requires_grad_()
    (right,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    assert_close(grad(lambda x: energy(x).sum())(v), right, 1e-4)
    assert_close(jacrev(energy)(v).sum(0), right, 1e-4)

    shared = {key: x for key, x in named.items() if isinstance(x, torch.Tensor) and x.ndim == 1}
    of_samples = {key: x for key, x in named.items() if isinstance(x, torch.Tensor) and x.ndim > 1}

    def of_sample(v, sample):
        tokens = {key: x[None] for key, x in sample.items()}
        given = {**tokens, **shared, "v": v[None], "rule": named["rule"]}
        return memory_attention(**given, implementation=implementation)[0].square().sum()

    assert_close(vmap(grad(of_sample))(v, of_samples), right, 1e-4)


@pytest.mark.parametrize("chunk", [2**29, 2**31 - 3, 2**31 - 1])
def test_a_chunk_far_longer_than_the_sequence_is_the_sequence(chunk):
    """Forward and gradients, packed too."""
    named, initial = attention_of("ttt_linear")
    found = []
    for chunk_size in (11, chunk):
        leaf = named["v"].clone().requires_grad_()
        options = {"chunk_size": chunk_size, "initial_state": initial, "output_final_state": True}
        y, states = memory_attention(**(named | {"v": leaf}), **options, implementation="tvm")
        found.append((y.detach(), *(x.detach() for x in states), *torch.autograd.grad(y.square().sum(), leaf)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@IMPLEMENTATIONS
def test_results_that_do_not_fit_are_refused_before_they_are_asked_for(implementation, monkeypatch):
    tokens = 2**30
    v = torch.zeros(1).expand(1, tokens, 16, 16)
    gate = torch.zeros(1).expand(1, tokens, 16)
    with pytest.raises(MemoryRoomError, match="y "):
        memory_attention(v, v, v, None, gate, gate, rule="gated_deltanet", implementation=implementation)

    monkeypatch.setattr(memory_room, "LITTLE", 0)
    named, _ = attention_of("kda")
    leaf = named.pop("v").clone().requires_grad_()
    y, _ = memory_attention(**named, v=leaf, implementation="tvm")
    monkeypatch.setattr(memory_room, "available_bytes", lambda: 100)
    with pytest.raises(MemoryRoomError, match=r"dq|dv"):
        torch.autograd.grad(y.sum(), leaf)
