"""A step by kernels of whole blocks is the step of the modules, wherever those could be told apart."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch

from codegen.errors import SizeError, UnknownMapError
from tests.trellis_ops.lm.decode.models import (
    CHUNKED,
    EXACT,
    model_of,
    relative_error,
    stepped,
    stepped_by_modules,
)
from trellis_ops.lm.decode import applies
from trellis_ops.lm.decode.decoder import packed_bytes
from trellis_ops.lm.state import TrellisState


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_logits_and_states_are_those_of_the_modules(config, batch, monkeypatch):
    model = model_of(config)
    _, state = model(torch.randint(0, 256, (batch, 6)))
    if model.config.keeps_starts:
        state.positions = torch.arange(2, 2 + batch) % 4
    other, tokens = state.clone(), torch.randint(0, 256, (9, batch))
    given, right = stepped(model, state, tokens), stepped_by_modules(model, other, tokens, monkeypatch)
    assert relative_error(given, right) < 1e-5
    assert torch.equal(state.positions, other.positions)
    for layer, by_modules in zip(state.layers, other.layers, strict=True):
        for name, tensor in by_modules.tensors().items():
            assert relative_error(layer.tensors()[name], tensor) < 1e-5, name


def test_steps_go_on_from_a_prompt_as_its_forward_does():
    model = model_of(CHUNKED)
    tokens = torch.randint(0, 256, (2, 11))
    logits, _ = model(tokens)
    _, state = model(tokens[:, :3])
    assert relative_error(stepped(model, state, tokens[:, 3:].T), logits[:, 3:].transpose(0, 1)) < 1e-5


@pytest.mark.parametrize(("weights", "least", "most"), [("bfloat16", 1e-4, 2e-2), ("int8", 1e-3, 1e-1)])
def test_narrower_weights_are_read_where_they_are_asked_for(weights, least, most, monkeypatch):
    model = model_of(CHUNKED)
    tokens = torch.randint(0, 256, (5, 2))
    right = stepped_by_modules(model, model.first_state(2), tokens, monkeypatch)
    stepped(model, model.first_state(2), tokens)
    wide = packed_bytes(model)
    model.decode_weights = weights
    assert least < relative_error(stepped(model, model.first_state(2), tokens), right) < most
    assert packed_bytes(model) < 0.6 * wide
    model.decode_weights = "float32"
    assert relative_error(stepped(model, model.first_state(2), tokens), right) < 1e-5
    with pytest.raises(UnknownMapError, match="decode_weights='int4'"):
        model.decode_weights = "int4"


def test_a_state_that_no_kernel_takes_goes_through_the_modules_of_its_block(monkeypatch):
    model = model_of(CHUNKED)
    _, state = model(torch.randint(0, 256, (2, 6)))
    other, tokens = state.clone(), torch.randint(0, 256, (3, 2))
    S_v = state.layers[1].S_v
    state.layers[1].S_v = S_v.new_empty(*S_v.shape[:-1], 2 * S_v.shape[-1])[..., ::2].copy_(S_v)
    given, right = stepped(model, state, tokens), stepped_by_modules(model, other, tokens, monkeypatch)
    assert relative_error(given, right) < 1e-5
    assert relative_error(state.layers[1].S_v, other.layers[1].S_v) < 1e-5


def test_what_is_packed_is_no_part_of_the_model_and_goes_with_it():
    model = model_of(CHUNKED)
    size = len(pickle.dumps(model))
    stepped(model, model.first_state(1), torch.zeros(1, 1, dtype=torch.int64))
    assert len(pickle.dumps(model)) == size
    assert packed_bytes(copy.deepcopy(model)) == 0
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_explanation_names_the_kernels_or_the_reason():
    model = model_of(CHUNKED)
    assert [line.split(":")[0] for line in model.explain_step().splitlines()] == ["block_step", "logits_step"]
    assert model.explain_step(65) == "modules: the kernels take at most 64 rows, not 65"
    with pytest.raises(SizeError, match="batch"):
        model.explain_step(0)
    assert "not TRELLIS" in model_of({**CHUNKED, "rule": "gated_deltanet", "chunk_size": None}).explain_step()
    assert "torch.float16 on cpu" in model.half().explain_step()


def test_a_model_of_bfloat16_is_as_close_to_float64_as_its_modules(monkeypatch):
    model = model_of(CHUNKED).bfloat16()
    tokens, wide = torch.randint(0, 256, (9, 5)), copy.deepcopy(model).double()
    right = torch.stack([wide.step(each, state) for state in [wide.first_state(5)] for each in tokens])
    given = stepped(model, state := model.first_state(5), tokens)
    modules = stepped_by_modules(model, model.first_state(5), tokens, monkeypatch)
    assert given.dtype == state.layers[0].tail.dtype == torch.bfloat16
    assert relative_error(given.double(), right) < 1.1 * relative_error(modules.double(), right)
    # Its states join those of prompts.
    TrellisState.concatenate([state, model(tokens)[1]])


def test_a_restored_state_steps_as_the_one_that_was_carried():
    model = model_of(CHUNKED)
    _, state = model(torch.randint(0, 256, (2, 8)))
    restored = model.restored({name: tensor.clone() for name, tensor in model.carried(state).items()})
    tokens = torch.randint(0, 256, (6, 2))
    assert torch.equal(stepped(model, restored, tokens), stepped(model, state, tokens))


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["S_k", "S_v", "tail"])
@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
def test_a_row_that_is_not_finite_reaches_no_other(config, name, weights):
    model = model_of(config).to(getattr(torch, weights))
    tokens, clean, other = torch.randint(0, 256, (3, 7)), model.first_state(7), model.first_state(7)
    other.layers[0].tensors()[name][3].view(-1)[1] = torch.nan
    right, found = stepped(model, clean, tokens), stepped(model, other, tokens)
    assert found[:, 3].isnan().any()
    others = [row for row in range(7) if row != 3]
    assert torch.equal(found[:, others], right[:, others])


def test_a_step_and_a_run_count_as_new_versions_of_their_states():
    model = model_of(CHUNKED)
    state = model.first_state(2)
    for move in (model.step, lambda tokens, state: model._steps(state)(tokens)):
        move(torch.zeros(2, dtype=torch.int64), state)
        before = {name: x._version for name, x in state.layers[0].tensors().items()}
        move(torch.ones(2, dtype=torch.int64), state)
        assert all(x._version > before[name] for name, x in state.layers[0].tensors().items())


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_states_of_inference_mode_are_moved(config, weights):
    """The tail of a model of bfloat16 is a copy while a kernel moves it."""
    model = model_of(config).to(getattr(torch, weights))
    state, tokens = model.first_state(2), torch.randint(0, 256, (5, 2))
    with torch.inference_mode():
        other = model.first_state(2)
        stepped(model, other, tokens[:2])
    stepped(model, state, tokens[:2])
    assert all(x.is_inference() for layer in other.layers for x in layer.tensors().values())
    assert torch.equal(stepped(model, other, tokens[2:]), stepped(model, state, tokens[2:]))
    for layer, moved in zip(other.layers, state.layers, strict=True):
        assert all(torch.equal(x, moved.tensors()[name]) for name, x in layer.tensors().items())


def test_more_weights_than_a_kernel_counts_are_left_to_the_modules():
    parts = model_of(CHUNKED).step_parts()
    assert applies.why_not_model(parts) is None
    wide = replace(parts.config, width=8192, heads=128, vocab_size=262_144)
    assert "2,147,483,648 packed weights" in str(applies.why_not_model(replace(parts, config=wide)))
