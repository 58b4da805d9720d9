"""Models of every rule, named and not: pieces equal the whole, the state is constant, all learn."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from codegen.recurrence.tensors import states, tensors
from codegen.rule import Rule
from codegen.rules import NAMED
from tests.support.relative_error import assert_close, relative_error
from tests.trellis_ops.lm.rules.models import TOKENS, make_model, small_config, some_tokens, whole
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.rules.mixer import RuleMixer
from trellis_ops.lm.rules.named import rule_inputs

pytestmark = pytest.mark.usefixtures("eager")

OTHERS = [name for name in NAMED if name != "trellis"]
RECORDS = {
    "erase": Rule(phi="huber", passes=1, decay="slot", step_size="token", erase=True),
    "normaliser": Rule(phi="hebbian", passes=1, decay="channel", normaliser="read", read="before", step_size="token"),
    "two passes, momentum": Rule(phi="identity", link="softmax", decay="slot", momentum=True, step_size="token"),
    "two passes, window": Rule(phi="silu", window=3, read="chunk_start"),
    "reader and writer": Rule(phi="layer_norm_gain", decay="none", step_size="reader_writer"),
    "probe, own map": Rule(phi="cubic(z) = z + z ** 3 / 10", passes=1, probe="own", out="l2_silu", step_size="head"),
    "view": Rule(phi="huber", passes=1, view="softmax", view_gradient=True, momentum=True),
}
RULES = {**{name: name for name in OTHERS}, **RECORDS}


def every_rule(function):
    return pytest.mark.parametrize("rule", RULES.values(), ids=RULES)(function)


@every_rule
@torch.no_grad()
def test_pieces_and_single_tokens_equal_the_whole(rule: str | Rule) -> None:
    model, tokens = make_model(rule), some_tokens()
    expected = whole(model, tokens)
    for cut in (1, 3, 4, 6):
        first, state = model(tokens[:, :cut])
        kept = {name: tensor.clone() for name, tensor in state.layers[1].tensors().items()}
        second, after = model(tokens[:, cut:], state)
        assert_close(torch.cat([first, second], 1), expected, 1e-9, f"cut at {cut}")
        assert all(torch.equal(tensor, kept[name]) for name, tensor in state.layers[1].tensors().items())
        logits = [model.step(tokens[:, t], state) for t in range(cut, TOKENS)]
        assert_close(torch.stack(logits, 1), expected[:, cut:], 1e-9, f"steps after {cut}")
        for name, tensor in state.layers[1].tensors().items():
            if name in {*states(model.config.record), "tail"}:
                assert_close(tensor, after.layers[1].tensors()[name], 1e-9, name)


@every_rule
@torch.no_grad()
def test_generation_takes_the_likeliest_token_of_a_forward_with_a_constant_state(rule: str | Rule) -> None:
    model, tokens = make_model(rule), some_tokens(length=3)
    expected = tokens
    for _ in range(7):
        expected = torch.cat([expected, whole(model, expected)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(tokens, 7, temperature=0.0), expected)
    _, short = model(tokens)
    _, long = model(some_tokens(length=23))
    assert short.nbytes() == long.nbytes() == model.first_state(2).nbytes()


@every_rule
def test_a_model_learns_and_every_parameter_has_a_gradient(rule: str | Rule) -> None:
    torch.manual_seed(0)
    model, tokens = TrellisLM(small_config(rule)), some_tokens()
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(whole(model, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        missing = [
            name for name, each in model.named_parameters() if each.grad is None or not each.grad.isfinite().all()
        ]
        assert not missing
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@every_rule
def test_gradients_flow_through_a_state_at_the_start_of_a_chunk(rule: str | Rule) -> None:
    model, tokens = make_model(rule), some_tokens(length=8)
    weights = torch.randn(2, 4, model.config.vocab_size, dtype=torch.float64)

    def gradients(logits: torch.Tensor) -> torch.Tensor:
        wanted, total = list(model.parameters()), (logits * weights).sum()
        found = torch.autograd.grad(total, wanted, retain_graph=True, materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    _, state = model(tokens[:, :4])
    second, _ = model(tokens[:, 4:], model.restored(model.carried(state)))
    expected = gradients(whole(model, tokens)[:, 4:])
    assert_close(gradients(second), expected, 1e-9)
    cut, _ = model(tokens[:, 4:], state.detach())
    assert relative_error(gradients(cut), expected) > 1e-3


@every_rule
@torch.no_grad()
def test_a_state_is_saved_as_data(rule: str | Rule) -> None:
    model, tokens = make_model(rule), some_tokens()
    _, state = model(tokens[:, :6])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    logits, _ = model(tokens[:, 6:], torch.load(file))
    assert_close(logits, whole(model, tokens)[:, 6:], 1e-9)


@pytest.mark.parametrize("name", ["kda", "gsa", "titans"])
def test_a_low_precision_model_keeps_its_states_in_float32(name: str) -> None:
    torch.manual_seed(0)
    model = TrellisLM(small_config(name)).bfloat16()
    with torch.no_grad():
        logits, state = model(some_tokens())
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    kinds = {name: tensor.dtype for name, tensor in state.layers[0].tensors().items()}
    assert kinds.pop("tail") == torch.bfloat16 and set(kinds.values()) == {torch.float32}


@pytest.mark.parametrize("name", ["comba", "abc", "ttt_linear", "delta_product"])
def test_under_autocast_a_model_is_close_to_float32(name: str) -> None:
    torch.manual_seed(0)
    model, tokens = TrellisLM(small_config(name)), some_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        found = whole(model, tokens)
    found.float().sum().backward()
    assert_close(found.float(), whole(model, tokens), 0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gated_deltanet", "titans"])
def test_the_best_kernels_give_what_eager_gives(name: str, force: Callable[[str], None]) -> None:
    torch.manual_seed(0)
    model, tokens = TrellisLM(small_config(name)), some_tokens()
    expected = whole(model, tokens)
    force("")
    first, state = model(tokens[:, :6])
    steps = [model.step(tokens[:, t], state)[:, None] for t in range(6, TOKENS)]
    assert_close(torch.cat([first, *steps], 1), expected, 1e-4)


def test_a_first_state_is_a_parameter_where_it_is_asked_for_or_needed() -> None:
    for rule, changes in (("titans", {"learned_state": True}), ("lattice", {}), ("titans", {})):
        mixer = make_model(rule, **changes).blocks[0].get_submodule("mixer")
        assert isinstance(mixer, RuleMixer)
        assert list(mixer.first) == (["S"] if changes or rule == "lattice" else [])
        state = mixer.first_state(1, torch.zeros(1, dtype=torch.float64))
        assert bool(state.memories["S"].any()) == bool(mixer.first)


@pytest.mark.parametrize("rule", ["memora", RECORDS["view"]], ids=["memora", "view"])
def test_what_rows_of_sum_one_cannot_tell_apart_is_taken_off_keys_and_queries(rule: str | Rule) -> None:
    model, found = make_model(rule), {}
    mixer = model.blocks[0].get_submodule("mixer")
    attend = mixer._attend
    mixer._attend = lambda made, *rest, **options: (found.update(made), attend(made, *rest, **options))[1]
    whole(model, some_tokens())
    for name in ("q", "k"):
        assert found[name].mean(-1).abs().max() < 1e-12
        assert_close(found[name].norm(dim=-1), torch.ones_like(found[name][..., 0]), 1e-4)


def test_exact_decoding_keeps_no_starts() -> None:
    model, tokens = make_model("yaad", decode="exact"), some_tokens()
    recurrent = TrellisLM(replace(model.config, chunk_size=1)).double()
    recurrent.load_state_dict(model.state_dict())
    state = model.first_state(2)
    assert state.layers[0].starts == {}
    with torch.no_grad():
        steps = torch.stack([model.step(tokens[:, t], state) for t in range(TOKENS)], 1)
        assert_close(steps, whole(recurrent, tokens), 1e-9)
        assert relative_error(steps, whole(model, tokens)) > 1e-4


def test_layers_name_only_tensors_that_their_rules_take() -> None:
    for name in OTHERS:
        inputs, taken = rule_inputs(name), {each.name for each in tensors(NAMED[name].rule)}
        assert set(inputs.makes) <= taken, name
