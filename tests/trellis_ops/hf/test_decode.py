"""A token alone goes through a kernel for each block, as in `TrellisLM.step`, wherever nobody could tell."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import trellis_ops
from codegen.errors import UnknownMapError
from codegen.kernels import build
from tests.trellis_ops.hf.small import greedy, padded, pair, tokens
from trellis_ops.dispatch.resolve import VARIABLE
from trellis_ops.hf import TrellisCache
from trellis_ops.lm.decode.decoder import packed_bytes

KERNELS = True
ROWS = [tokens(19, seed=1), tokens(5, seed=2), tokens(11, seed=3)]
STEPS = tokens(9, 3, seed=4)


@pytest.fixture(scope="module")
def hf() -> Any:
    return pair()[1]


@torch.no_grad()
def logits_of(model: Any, rows: list[Tensor] = ROWS, steps: Tensor = STEPS) -> Tensor:
    """Logits `[T, B, vocabulary]` of tokens `[T, B]` after a prompt whose rows end at different places of chunks."""
    cache = TrellisCache(model.config)
    batch, mask = padded(rows, "left")
    model(batch, attention_mask=mask, cache=cache)
    return torch.stack([model(each[:, None], cache=cache).logits[:, 0] for each in steps])


def by_modules(model: Any, monkeypatch: pytest.MonkeyPatch, *given: Any) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "eager")
        assert model.explain_step(3).startswith("modules: ")
        return logits_of(model, *given)


def relative_error(given: Tensor, right: Tensor) -> float:
    return float((given - right).norm() / right.norm())


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1] * 3], ids=["unequal", "equal"])
def test_logits_are_those_of_the_modules(hf: Any, rows: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    assert hf.explain_step(3).startswith("block_step: ")
    found = logits_of(hf, rows)
    assert packed_bytes(hf.model) > 0
    assert 0 < relative_error(found, by_modules(hf, monkeypatch, rows)) < 1e-5


def test_bfloat16_is_as_close_to_float64_as_the_modules_are(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are packed as they are, and what stands between the products is wider."""
    narrow = copy.deepcopy(hf).bfloat16()
    right = logits_of(copy.deepcopy(narrow).double())
    assert "bfloat16" in narrow.explain_step(3)
    found, modules = logits_of(narrow), by_modules(narrow, monkeypatch)
    assert found.dtype == torch.bfloat16 and packed_bytes(narrow.model) < 0.6 * packed_bytes(hf.model)
    assert not torch.equal(found, modules)
    assert relative_error(found.double(), right) < 1.1 * relative_error(modules.double(), right)


def test_narrower_copies_are_read_where_they_are_asked_for(hf: Any) -> None:
    model = copy.deepcopy(hf)
    wide = logits_of(model)
    model.decode_weights = "int8"
    assert model.model.decode_weights == "int8" and "int8" in model.explain_step()
    assert 1e-3 < relative_error(logits_of(model), wide) < 1e-1
    with pytest.raises(UnknownMapError, match="decode_weights='int4'"):
        model.decode_weights = "int4"


@torch.no_grad()
def test_the_tensors_of_a_cache_are_held_from_token_to_token(hf: Any) -> None:
    cache = TrellisCache(hf.config)
    hf(ROWS[0][None], cache=cache)
    hf(STEPS[:1, :1], cache=cache)
    assert cache.state is not None
    held = cache.state.held
    hf(STEPS[1:2, :1], cache=cache)
    assert held is not None and cache.state.held is held


def test_a_step_moves_its_state_where_hidden_states_are_asked_for_too(hf: Any) -> None:
    model = copy.deepcopy(hf)
    model.config.output_hidden_states = True
    state, other = model.first_state(3), hf.first_state(3)
    for each in STEPS:
        assert relative_error(model.step(each, state), hf.step(each, other)) < 1e-5
    assert state.place == other.place != 0


def test_what_was_given_is_left_as_it_was(hf: Any) -> None:
    embeds = torch.randn(1, 2, 32)
    before, cache = embeds.clone(), TrellisCache(hf.config)
    with torch.no_grad():
        for place in range(2):
            hf(inputs_embeds=embeds[:, place : place + 1], cache=cache)
    assert torch.equal(embeds, before)


def test_a_replaced_block_computes_the_next_token(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = copy.deepcopy(hf), pair(seed=1)[1]
    before = logits_of(model)
    model.model.blocks[1] = other.model.blocks[1]
    found = logits_of(model)
    assert relative_error(found, before) > 1e-3
    assert relative_error(found, by_modules(model, monkeypatch)) < 1e-5


def test_adapters_hooks_and_other_blocks_compute_themselves(hf: Any) -> None:
    model = copy.deepcopy(hf)
    adapted = get_peft_model(model, LoraConfig(target_modules=["to_v"], r=2, init_lora_weights=False))
    assert "none of the modules" in adapted.explain_step()
    assert logits_of(adapted).isfinite().all() and packed_bytes(model.model) == 0
    assert adapted.merge_and_unload().explain_step().startswith("block_step: ")
    model = copy.deepcopy(hf)
    model.model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert "has hooks" in model.explain_step()
    model = copy.deepcopy(hf)

    class Other(type(model.model.blocks[0])):  # type: ignore[misc]
        def step(self, *given: Any) -> Tensor:
            raise AssertionError

    model.model.blocks[0].__class__ = Other
    assert "Other is none of the modules" in model.explain_step()


def test_a_warm_model_compiles_nothing(hf: Any) -> None:
    """And its steps give the logits of a prefill (transformers #46190)."""
    model, state = copy.deepcopy(hf), hf.first_state(3)
    trellis_ops.warm_up(model, batch=3, tokens=(8, 16, 19))
    assert packed_bytes(model.model) > 0
    compiled = build._build.cache_info().misses
    found = torch.stack([model.step(each, state) for each in STEPS])
    logits_of(model)
    assert build._build.cache_info().misses == compiled
    with torch.no_grad():
        assert relative_error(found, hf(STEPS.T).logits.transpose(0, 1)) < 1e-5


def test_new_lengths_compile_nothing(hf: Any) -> None:
    """Of packed samples in training, and of prompts (fla #1147: kernels were tuned anew for each length)."""
    model, threads = copy.deepcopy(hf), torch.get_num_threads()
    torch.set_num_threads(1)
    compiled = []
    for lengths in ([13, 20], [5, 9, 41], [70], [1, 130]):
        row = tokens(1, sum(lengths))
        starts = torch.tensor([0, *lengths]).cumsum(0)
        model(row, labels=row, cu_seq_lens_q=starts, use_cache=False).loss.backward()
        greedy(model, row, 3)
        compiled.append(build._build.cache_info().misses)
    torch.set_num_threads(threads)
    assert compiled[0] == compiled[-1], compiled
