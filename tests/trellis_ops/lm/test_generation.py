"""Generation of the reference model: greedy, drawn, streamed, from a state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.errors import SizeError
from tests.trellis_ops.lm.small_models import make_model, some_tokens, whole
from trellis_ops.lm.sampling import Sampling

pytestmark = pytest.mark.usefixtures("eager")


@torch.no_grad()
def test_greedy_generation_takes_the_likeliest_token_of_a_full_forward() -> None:
    model, tokens = make_model(), some_tokens(length=5)
    expected = tokens
    for _ in range(30):
        expected = torch.cat([expected, whole(model, expected)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(tokens, 30, temperature=0.0), expected)
    assert torch.equal(model.generate(tokens, 30, temperature=0.5, top_k=1), expected)
    assert torch.equal(model.generate(tokens, 30, temperature=1e-30), expected)


@torch.no_grad()
def test_generation_goes_on_from_a_state_and_leaves_it() -> None:
    model, tokens = make_model(), some_tokens(length=25)
    _, state = model(tokens[:, :20])
    kept = state.layers[1].S_v.clone()
    for _ in range(2):
        longer = model.generate(tokens[:, 20:], 12, temperature=0.0, state=state)
        assert torch.equal(longer, model.generate(tokens, 12, temperature=0.0)[:, 20:])
    assert torch.equal(state.layers[1].S_v, kept)


def test_generation_is_decided_by_its_seed() -> None:
    model, tokens = make_model(), some_tokens(length=5)

    def draw(seed: int, **options: Any) -> Tensor:
        return model.generate(tokens, 20, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert torch.equal(draw(3)[:, :5], tokens)
    likeliest = whole(model, tokens)[:, -1].topk(4).indices
    for seed in range(20):
        assert (draw(seed, top_k=4)[:, 5, None] == likeliest).any(1).all()


def test_a_stream_yields_the_tokens_of_generate_and_may_be_left() -> None:
    model, tokens = make_model(), some_tokens(length=5)
    expected = model.generate(tokens, 8, temperature=0.0)[:, 5:]
    stream = model.stream(tokens, 8, temperature=0.0)
    assert torch.is_grad_enabled()
    first = [next(stream) for _ in range(3)]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.stack(first, 1), expected[:, :3])
    assert torch.equal(model.generate(tokens, 0), tokens)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": -5e-324}, "temperature=-5e-324"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens=2.0"),
    ],
)
def test_generation_options_out_of_range_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(SizeError, match=part):
        make_model().generate(some_tokens(), **{"max_new_tokens": 3, **options})


@pytest.mark.parametrize(
    ("options", "part"),
    [({"temperature": "1"}, "'1'"), ({"top_k": 2.0}, "2.0"), ({"top_k": True}, "True"), ({"top_p": "1"}, "'1'")],
    ids=str,
)
def test_generation_options_that_are_no_numbers_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(TypeError, match=part):
        make_model().generate(some_tokens(), 3, **options)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-45, 1e-40, 1.2e-38, 1e-30])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature: float) -> None:
    model, tokens = make_model(), some_tokens(length=5)
    expected = model.generate(tokens, 8, temperature=0.0)
    assert torch.equal(model.generate(tokens, 8, temperature=temperature), expected)
    assert torch.equal(model.generate(tokens, 8, temperature=temperature, top_k=3), expected)


@pytest.mark.parametrize("temperature", [1e30, 3.4e38, 1e39, 1.7e308])
def test_a_huge_temperature_draws_any_token_of_the_likeliest(temperature: float) -> None:
    logits, sampling = torch.tensor([[3.0, 1.0, 2.0, -1.0]]).expand(400, 4), Sampling(temperature, top_k=3)
    counts = sampling.draw(logits).bincount(minlength=4)
    assert counts[3] == 0 and counts[:3].min() > 80


@pytest.mark.parametrize(("top_p", "drawn"), [(1e-9, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_the_fewest_of_the_likeliest_that_add_up_can_be_drawn(top_p: float, drawn: int) -> None:
    """Of probabilities 0.5, 0.3, 0.15 and 0.05 once the temperature has divided."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(2000, 4)
    counts = Sampling(0.5, None, torch.Generator().manual_seed(0), top_p).draw(logits / 2).bincount(minlength=4)
    assert counts[[1, 3, 0, 2]].nonzero()[:, 0].tolist() == list(range(drawn))
