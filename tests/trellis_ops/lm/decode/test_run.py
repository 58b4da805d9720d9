"""The steps of `generate`, which looks at its model once, are those of `step`, which looks at it before each token."""

from __future__ import annotations

import pytest
import torch

from tests.trellis_ops.lm.decode.models import CHUNKED, EXACT, model_of
from trellis_ops.lm.decode.run import Run
from trellis_ops.lm.model import TrellisLM

PROMPT, MASK = torch.randint(0, 256, (3, 6)), torch.ones(3, 6, dtype=torch.bool)
MASK[1, :3] = False


def run_of(model: TrellisLM) -> Run | None:
    """What a generation of `model` steps by; None for its method."""
    steps = model._steps(model.first_state(2))
    return getattr(steps, "__self__", None)


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["equal", "unequal"])
def test_it_writes_what_stream_writes(config, mask):
    model = model_of(config)
    assert run_of(model) is not None
    streamed = torch.stack(list(model.stream(PROMPT, 11, temperature=0, attention_mask=mask)), 1)
    assert torch.equal(model.generate(PROMPT, 11, temperature=0, attention_mask=mask)[:, 6:], streamed)


def test_a_state_is_moved_bit_by_bit_as_by_steps():
    model = model_of(CHUNKED)
    state = model.first_state(2)
    other, run = state.clone(), model._steps(state)
    for tokens in torch.randint(0, 256, (9, 2)):
        assert torch.equal(run(tokens), model.step(tokens, other))
    assert torch.equal(state.positions, other.positions)
    for layer, stepped in zip(state.layers, other.layers, strict=True):
        assert all(map(torch.equal, layer.tensors().values(), stepped.tensors().values()))


def test_what_no_token_changes_is_held_by_its_kernels():
    run = run_of(model_of(CHUNKED))
    assert run is not None
    held = [run.rows[1], *run.last, *(each for tensors in run.layers for each in tensors)]
    assert not any(isinstance(each, torch.Tensor) for each in held)


class Loud(TrellisLM):
    def step(self, tokens, state):
        return super().step(tokens, state) * 0 + 1


def test_models_that_make_steps_of_their_own_keep_them():
    model = model_of(CHUNKED)
    model.embedding.register_forward_hook(lambda module, given, made: made * 0)
    assert run_of(model) is None
    own = Loud(model.config)
    assert run_of(own) is None
    assert own.generate(PROMPT, 3, temperature=0)[:, 7:].eq(0).all()
    model = model_of(CHUNKED)
    with torch.autocast("cpu"):
        assert run_of(model) is None
    assert run_of(model.to(torch.bfloat16)) is None


def test_a_state_that_lies_elsewhere_is_looked_at_before_each_token():
    model = model_of(CHUNKED)
    state = model.first_state(2)
    layer = state.layers[1]
    layer.S_k = layer.S_k.transpose(2, 3).contiguous().transpose(2, 3)
    assert getattr(model._steps(state), "__self__", None) is None
    state.layers[1].S_k = layer.S_k.contiguous()
    assert getattr(model._steps(state), "__self__", None) is not None
