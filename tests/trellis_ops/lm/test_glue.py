"""A model whose glue is computed by kernels gives what its modules give, and uses them where somebody looks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.support.relative_error import assert_close
from tests.trellis_ops.lm.rules.models import small_config
from tests.trellis_ops.lm.small_models import make_model, some_tokens, whole
from trellis_ops import glue, with_schedule
from trellis_ops.dispatch.resolve import VARIABLE
from trellis_ops.lm.model import TrellisLM

NAMES = ("memory_inputs", "gated_norm", "swiglu_gate", "rms_norm", "add_rms_norm")


class Calls:
    """How often a model calls each operator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = dict.fromkeys(NAMES, 0)
        for name in NAMES:
            monkeypatch.setattr(glue, name, self._counted(name, getattr(glue, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return function(*args, **kwargs)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def gradients_of(model: nn.Module, tokens: Tensor, forward: Callable[..., Tensor] = whole) -> dict[str, Tensor]:
    model.zero_grad()
    forward(model, tokens).square().mean().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("changes", [{}, {"normalize_qkv": False, "conv_width": 2, "learned_state": True}])
def test_logits_and_gradients_are_those_of_the_modules(changes, calls, monkeypatch):
    model, tokens = make_model(**changes), some_tokens(length=21)
    found, gradients = whole(model, tokens), gradients_of(model, tokens)
    assert calls.counts == dict.fromkeys(NAMES, 4) | {"rms_norm": 6}
    monkeypatch.setattr(glue, "replaces_modules", lambda *tensors: False)
    assert_close(found, whole(model, tokens), 1e-5)
    for name, right in gradients_of(model, tokens).items():
        assert_close(gradients[name], right, 1e-4, name)
    assert sum(calls.counts.values()) == 22


@pytest.mark.parametrize("rule", ["gated_deltanet", "deltanet", "gsa"])
def test_other_rules_have_the_same_glue(rule, calls, monkeypatch):
    torch.manual_seed(0)
    model, tokens = TrellisLM(small_config(rule)), torch.randint(24, (2, 11))
    found, gradients = whole(model, tokens), gradients_of(model, tokens)
    assert all(count > 0 for count in calls.counts.values())
    monkeypatch.setattr(glue, "replaces_modules", lambda *tensors: False)
    assert_close(found, whole(model, tokens), 1e-5)
    for name, right in gradients_of(model, tokens).items():
        assert_close(gradients[name], right, 1e-4, name)


def test_pieces_packed_prompts_and_steps_go_on_from_each_other(calls):
    model, tokens = make_model().requires_grad_(False), some_tokens(length=23)
    right = whole(model, tokens)
    first, state = model(tokens[:, :2])
    second, state = model(tokens[:, 2:19], state)
    third = torch.stack([model.step(tokens[:, t], state) for t in range(19, 23)], 1)
    assert_close(torch.cat([first, second, third], 1), right, 1e-4)
    packed = torch.cat([tokens[:1, :7], tokens[1:, :16]], 1)
    logits, after = model(packed, cu_seqlens=torch.tensor([0, 7, 23]))
    assert_close(logits[0, :7], right[0, :7], 1e-4)
    assert_close(logits[0, 7:], right[1, :16], 1e-4)
    _, alone = model(tokens[1:, :16])
    assert torch.equal(after.layers[0].tail[1:], alone.layers[0].tail)
    assert calls.counts["memory_inputs"] == 2 * 5


def test_a_bfloat16_model_has_them_too(calls):
    model, tokens = make_model().requires_grad_(False), some_tokens()
    wide = whole(model, tokens)
    assert_close(whole(model.to(torch.bfloat16), tokens), wide, 5e-2)
    assert calls.counts["memory_inputs"] == 4


@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: FlopCounterMode(display=False),
        lambda: with_schedule("tvm:variant=fused,tile_tokens=16,vector_width=4,accumulators=4,threads=1"),
    ],
    ids=["autocast", "mode", "schedule"],
)
def test_modules_compute_where_somebody_looks(surroundings, calls):
    model = make_model().requires_grad_(False)
    with surroundings():
        whole(model, some_tokens())
    assert sum(calls.counts.values()) == 0


def test_modules_compute_where_eager_is_asked_for_and_in_float64(calls, monkeypatch):
    whole(make_model().double(), some_tokens())
    monkeypatch.setenv(VARIABLE, "eager")
    whole(make_model(), some_tokens())
    assert sum(calls.counts.values()) == 0


def test_the_hook_of_a_norm_is_called_and_what_it_returns_is_taken(calls):
    model, tokens = make_model().requires_grad_(False), some_tokens()
    before, seen = whole(model, tokens), []
    for norm in (model.blocks[0].mixer.norm, model.blocks[1].mlp_norm, model.norm):
        norm.register_forward_hook(lambda module, inputs, output: seen.append(module) or 2 * output)
    changed = whole(model, tokens)
    assert len(seen) == 3
    assert not torch.allclose(before, changed)
    assert calls.counts == {"memory_inputs": 4, "gated_norm": 3, "swiglu_gate": 4, "rms_norm": 5, "add_rms_norm": 3}


def test_what_a_hook_of_a_linear_map_keeps_is_not_written_to():
    model, tokens, kept = make_model().requires_grad_(False), some_tokens(), {}
    mixer, mlp = model.blocks[0].mixer, model.blocks[0].mlp
    for name, linear in (("v", mixer.to_v), ("gate", mixer.to_gate), ("mlp", mlp.gate)):
        linear.register_forward_hook(lambda module, inputs, output, name=name: kept.update({name: (inputs, output)}))
    whole(model, tokens)
    for name, linear in (("v", mixer.to_v), ("gate", mixer.to_gate), ("mlp", mlp.gate)):
        ((x,), output) = kept[name]
        assert torch.equal(output, nn.functional.linear(x, linear.weight)), name


def test_compiled_without_a_break_and_transformed_by_the_modules(calls):
    model, tokens = make_model(), some_tokens(length=16)
    right = gradients_of(model, tokens)
    made = dict(calls.counts)
    compiled = torch.compile(lambda each: whole(model, each), fullgraph=True)
    for name, gradient in gradients_of(model, tokens, lambda model, each: compiled(each)).items():
        assert_close(gradient, right[name], 1e-4, name)
    parameters = {name: each.detach() for name, each in model.named_parameters()}

    def loss(given):
        logits, _ = torch.func.functional_call(model, given, (tokens,), {"return_state": False})
        return logits.square().mean()

    for name, gradient in torch.func.grad(loss)(parameters).items():
        assert_close(gradient, right[name], 1e-4, name)
    assert calls.counts == made


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_under_checkpointing_are_the_same(reentrant):
    model, tokens = make_model(), some_tokens()
    right = gradients_of(model, tokens)
    for block in model.blocks:
        forward = block.forward

        def kept(x, *args, forward=forward, **kwargs):
            y = checkpoint(lambda x: forward(x, *args, **kwargs)[0], x, use_reentrant=reentrant)
            return y, None

        block.forward = kept
    for name, gradient in gradients_of(model, tokens).items():
        assert torch.equal(gradient, right[name]), name


def test_nothing_is_left_behind_of_a_forced_schedule_of_one_operator(calls):
    """A schedule that is forced for attention alone leaves the rest to its kernels."""
    model = make_model().requires_grad_(False)
    schedule = "tvm:variant=fused,tile_tokens=16,vector_width=4,accumulators=4,threads=1"
    with contextlib.suppress(AssertionError), with_schedule(schedule, "trellis_attention"):
        whole(model, some_tokens())
    assert calls.counts["swiglu_gate"] == 2
