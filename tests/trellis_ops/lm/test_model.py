"""The reference model: decoding continues the forward, the state is constant, and the model learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from codegen.errors import GradientError
from tests.support.relative_error import assert_close, relative_error
from tests.trellis_ops.lm.small_models import SMALL, make_model, some_tokens, whole
from trellis_ops.glue import causal_convolution
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.mixer import TrellisMixer
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState
from trellis_ops.ops import trellis_attention

TOLERANCE = 1e-4
"""Of logits in float32, behind layers that amplify rounding; a z taken at the wrong state moves them by half."""


pytestmark = pytest.mark.usefixtures("eager")


def step_by_step(model: TrellisLM, tokens: Tensor, prefill: int) -> Tensor:
    """Logits of all tokens, the first `prefill` at once and the rest one at a time."""
    pieces, state = [], model.first_state(tokens.shape[0])
    if prefill:
        logits, after = model(tokens[:, :prefill])
        assert after is not None
        pieces, state = [logits], after
    pieces += [model.step(tokens[:, t], state)[:, None] for t in range(prefill, tokens.shape[1])]
    return torch.cat(pieces, 1)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["", "eager"], ids=["best", "eager"])
@pytest.mark.parametrize("chunk_size", [1, 16])
def test_prefill_then_steps_equal_one_pass(chunk_size: int, implementation: str, force: Callable[[str], None]) -> None:
    force(implementation)
    model, tokens = make_model(chunk_size=chunk_size), some_tokens()
    expected = whole(model, tokens)
    for prefill in (0, 1, 15, 16, 17, 31, 32, 40):
        assert_close(step_by_step(model, tokens, prefill), expected, TOLERANCE, f"prefill of {prefill}")


@torch.no_grad()
@pytest.mark.parametrize("chunk_size", [1, 16])
@pytest.mark.parametrize(
    "changes",
    [
        {"learned_state": True},
        {"step_size": "token"},
        {"learned_state": True, "step_size": "token", "dim_k": 6, "dim_v": 10, "num_slots": 5},
        {"conv_width": 1},
        {"phi": "identity", "link": "softmax", "out": "l2_silu", "normalize_qkv": False},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_option_decodes_what_it_prefills(changes: dict[str, Any], chunk_size: int) -> None:
    model, tokens = make_model(chunk_size=chunk_size, **changes), some_tokens()
    expected = whole(model, tokens)
    for prefill in (0, 17, 31):
        assert_close(step_by_step(model, tokens, prefill), expected, TOLERANCE, f"prefill of {prefill}")


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.sampled_from([1, 4, 16]))
def test_a_sequence_may_be_given_in_any_pieces(lengths: list[int], chunk_size: int) -> None:
    model, tokens = make_model(chunk_size=chunk_size, layers=1), some_tokens(length=sum(lengths))
    state: TrellisState | None = None
    pieces = []
    for piece in tokens.split(lengths, 1):
        logits, state = model(piece, state)
        pieces.append(logits)
    assert_close(torch.cat(pieces, 1), whole(model, tokens), TOLERANCE)
    assert state is not None and state.positions.tolist() == [sum(lengths) % chunk_size] * 2


@torch.no_grad()
def test_exact_decoding_is_the_recurrence_of_chunk_size_one() -> None:
    chunked = make_model(decode="exact")
    recurrent = make_model(chunk_size=1)
    recurrent.load_state_dict(chunked.state_dict())
    tokens = some_tokens()
    assert_close(step_by_step(chunked, tokens, 0), whole(recurrent, tokens), TOLERANCE)
    assert relative_error(step_by_step(chunked, tokens, 0), whole(chunked, tokens)) > 0.1
    logits, state = chunked(tokens[:, :20])
    assert_close(logits, whole(chunked, tokens[:, :20]), TOLERANCE)
    assert state is not None and state.positions.tolist() == [0, 0] and state.layers[0].starts() is None
    stepped = state.clone()
    logits, _ = chunked(tokens[:, 20:21], state)
    assert_close(chunked.step(tokens[:, 20], stepped), logits[:, 0], TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("chunk_size", [1, 16])
def test_state_bytes_do_not_depend_on_the_tokens(chunk_size: int) -> None:
    model = make_model(chunk_size=chunk_size)
    memories = SMALL.layers * SMALL.heads * SMALL.num_slots * (16 + 16) * 4
    kept = memories * (2 if chunk_size > 1 else 1)
    tails = SMALL.layers * (SMALL.conv_width - 1) * SMALL.width * 4
    sizes = {model.first_state(1).nbytes()}
    for length in (1, 15, 16, 17, 100):
        _, state = model(some_tokens(1, length))
        sizes.add(state.nbytes())
        model.step(some_tokens(1, 1)[:, 0], state)
        sizes.add(state.nbytes())
    assert sizes == {kept + tails}


@torch.no_grad()
def test_forward_leaves_the_state_it_was_given() -> None:
    model, tokens = make_model(), some_tokens()
    _, state = model(tokens[:, :20])
    before = state.clone()
    for length in (1, 12, 13, 20):
        _, after = model(tokens[:, 20 : 20 + length], state)
        for token in tokens[:, :17].T:
            model.step(token, after)
    assert state.place == before.place == 4
    for layer, kept in zip(state.layers, before.layers, strict=True):
        for name, tensor in layer.tensors().items():
            assert torch.equal(tensor, kept.tensors()[name]), name


@torch.no_grad()
def test_no_two_tensors_of_a_state_share_memory() -> None:
    model = make_model(learned_state=True)
    for length in (1, 16, 17):
        _, state = model(some_tokens(length=length))
        places = [tensor.data_ptr() for layer in state.layers for tensor in layer.tensors().values()]
        assert len(set(places)) == len(places)
    for layer in model.first_state(2).layers:
        layer.S_k.fill_(7.0)
    assert_close(whole(model, some_tokens()), whole(make_model(learned_state=True), some_tokens()), 1e-6)


@torch.no_grad()
def test_a_token_changes_nothing_before_it() -> None:
    model, tokens = make_model(), some_tokens()
    changed = tokens.clone()
    changed[:, 21] = (changed[:, 21] + 1) % SMALL.vocab_size
    before, after = whole(model, tokens), whole(model, changed)
    assert_close(after[:, :21], before[:, :21], 1e-6)
    assert relative_error(after[:, 21:], before[:, 21:]) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"learned_state": True, "step_size": "token"}], ids=["default", "all options"])
def test_gradients_reach_every_parameter(changes: dict[str, Any]) -> None:
    model, tokens = make_model(**changes), some_tokens()
    F.cross_entropy(whole(model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 0, name


def test_gradients_flow_through_a_state_at_a_chunk_boundary() -> None:
    model, tokens = make_model(learned_state=True), some_tokens(length=32)
    whole(model, tokens)[:, 16:].square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    _, state = model(tokens[:, :16])
    logits, _ = model(tokens[:, 16:], state)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], 10 * TOLERANCE, name)
    model.zero_grad()
    logits, _ = model(tokens[:, 16:], model(tokens[:, :16])[1].detach())
    logits.square().mean().backward()
    assert model.blocks[0].mixer.first_k.grad is None


def test_a_gradient_from_inside_a_chunk_is_refused() -> None:
    model, tokens = make_model(), some_tokens()
    _, state = model(tokens[:, :20])
    with pytest.raises(GradientError, match=r"inside a chunk.*C=16"):
        model(tokens[:, 20:], state)
    with torch.no_grad():
        model(tokens[:, 20:], state)


def test_it_learns_to_recall_what_it_has_read() -> None:
    """Pairs of a key and a value, drawn anew each time, then the keys in another order: only memory knows."""
    torch.manual_seed(0)
    pairs, kinds = 4, 8
    model = TrellisLM(TrellisConfig(vocab_size=2 * kinds, layers=1, width=32, heads=2, num_slots=16, chunk_size=4))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)

    def loss() -> Tensor:
        keys, values = torch.rand(32, kinds).argsort(1)[:, :pairs], torch.randint(kinds, 2 * kinds, (32, pairs))
        order = torch.rand(32, pairs).argsort(1)
        tokens = torch.cat([torch.stack([keys, values], -1).flatten(1), keys.gather(1, order)], 1)
        return F.cross_entropy(whole(model, tokens)[:, -pairs:].flatten(0, 1), values.gather(1, order).flatten())

    assert loss() > 2.5
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.3


@pytest.mark.parametrize("return_state", [False, True])
def test_compiled_in_one_graph_it_gives_the_same(return_state: bool) -> None:
    model, tokens = make_model(), some_tokens(length=32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits, state = compiled(tokens, return_state=return_state)
    expected, expected_state = model(tokens, return_state=return_state)
    assert_close(logits, expected, TOLERANCE)
    assert (state is None) == (expected_state is None) == (not return_state)
    logits.square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected.square().mean().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert_close(gradient, parameter.grad, 10 * TOLERANCE)


@torch.no_grad()
def test_bfloat16_is_near_float32_and_keeps_its_memories_in_float32() -> None:
    model, tokens = make_model(), some_tokens()
    expected = whole(model, tokens)
    low = copy.deepcopy(model).bfloat16()
    logits, state = low(tokens[:, :17])
    assert logits.dtype == torch.bfloat16
    assert state.layers[0].S_k.dtype == torch.float32 and state.layers[0].tail.dtype == torch.bfloat16
    assert_close(step_by_step(low, tokens, 17), expected, 0.1)


@torch.no_grad()
def test_under_autocast_the_operators_get_one_low_type_and_float32_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model(), some_tokens()
    seen: set[tuple[torch.dtype, ...]] = set()

    def recorded(*tensors: Tensor, **options: Any) -> Any:
        seen.add(tuple(tensor.dtype for tensor in tensors))
        with torch.autocast("cpu", enabled=False):
            return trellis_attention(*tensors, **options)

    monkeypatch.setattr("trellis_ops.lm.mixer.trellis_attention", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        logits = whole(model, tokens)
    assert seen == {(torch.bfloat16,) * 4 + (torch.float32,) * 2}
    assert_close(logits, whole(model, tokens), 0.1)


def test_saved_and_loaded_it_is_the_same_model(tmp_path: Path) -> None:
    model = make_model(learned_state=True)
    model.save(tmp_path / "model.pt")
    loaded = TrellisLM.load(tmp_path / "model.pt")
    assert loaded.config == model.config
    assert torch.equal(whole(loaded, some_tokens()), whole(model, some_tokens()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_gates_start_where_the_configuration_says() -> None:
    torch.manual_seed(0)
    mixer = TrellisMixer(replace(SMALL, init_decay=0.97, init_step_size=0.2))
    torch.testing.assert_close(mixer.to_decay.bias.sigmoid(), torch.full((2,), 0.97))
    torch.testing.assert_close(F.softplus(mixer.step_size), torch.full((2,), 0.2))


def test_causal_convolution_is_the_depthwise_convolution() -> None:
    window, taps = torch.randn(2, 3 + 9, 6), torch.randn(6, 4)
    expected = F.conv1d(window.mT, taps[:, None], groups=6).mT
    assert_close(causal_convolution(window, taps), expected, 1e-6)
