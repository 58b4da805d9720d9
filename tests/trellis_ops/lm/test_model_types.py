"""The model in float64 and without data, its state in a file, and tokens that its vocabulary lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.errors import DtypeError
from tests.support.relative_error import assert_close
from tests.trellis_ops.lm.small_models import SMALL, make_model, some_tokens, whole
from trellis_ops.errors import TokenError
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import LayerState, TrellisState
from trellis_ops.lm.train.softmax import SoftmaxLM

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 1, "learned_state": True, "step_size": "token"}], ids=str)
def test_without_data_it_has_its_shapes(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = make_model(**changes)
        tokens = torch.zeros(2, 40, dtype=torch.int64)
        logits, state = model(tokens)
        again, _ = model(tokens[:, :24], model(tokens[:, :16])[1], return_state=False)
        assert model.step(tokens[:, 0], state).shape == (2, 40)
        assert model.generate(tokens, 3).shape == (2, 43)
    assert logits.shape == (2, 40, SMALL.vocab_size) and logits.is_meta
    assert again.shape == (2, 24, SMALL.vocab_size)
    with torch.no_grad():
        _, expected = make_model(**changes)(some_tokens())
    for layer, other in zip(state.layers, expected.layers, strict=True):
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in layer.tensors().items()}
        assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in other.tensors().items()}


@pytest.mark.parametrize("changes", [{}, {"learned_state": True, "step_size": "token", "decode": "exact"}], ids=str)
def test_in_float64_it_keeps_its_states_in_float64(changes: dict[str, Any]) -> None:
    single = make_model(**changes)
    double, tokens = make_model(**changes).double(), some_tokens()
    with torch.no_grad():
        logits, state = double(tokens[:, :17])
        pieces = [logits, *(double.step(token, state)[:, None] for token in tokens[:, 17:].T)]
        expected = whole(double, tokens) if "decode" not in changes else torch.cat(pieces, 1)
    assert all(tensor.dtype == torch.float64 for layer in state.layers for tensor in layer.tensors().values())
    # Of the rounding of float32 nothing is left.
    assert_close(torch.cat(pieces, 1), expected, 1e-12)
    with torch.no_grad():
        assert_close(whole(single, tokens).double(), whole(double, tokens), 1e-4)
        with pytest.raises(DtypeError, match=r"S_k has dtype torch.float32; expected torch.float64"):
            double(tokens, single.first_state(2))
        assert double.generate(tokens, 3, temperature=1e-300).shape == (2, 43)


def test_its_gradient_is_the_difference_quotient() -> None:
    torch.manual_seed(0)
    config = TrellisConfig(
        vocab_size=5, layers=1, width=4, heads=2, num_slots=3, chunk_size=2, learned_state=True, mlp_ratio=0.1
    )
    model, tokens = TrellisLM(config).double(), torch.randint(5, (1, 6))
    names = (
        "blocks.0.mixer.first_k",
        "blocks.0.mixer.step_size",
        "blocks.0.mixer.to_decay.bias",
        "blocks.0.mixer.to_v.weight",
    )
    weights = dict(model.named_parameters())

    def logits(*changed: Tensor) -> Tensor:
        given = {**weights, **dict(zip(names, changed, strict=True))}
        first, state = torch.func.functional_call(model, given, (tokens[:, :4],))
        second, _ = torch.func.functional_call(model, given, (tokens[:, 4:], state))
        return torch.cat([first, second], 1)[..., ::2]

    assert torch.autograd.gradcheck(logits, tuple(weights[name].detach().requires_grad_() for name in names))


@torch.no_grad()
def test_softmax_attention_takes_float64_too() -> None:
    torch.manual_seed(0)
    model = SoftmaxLM(SMALL, 16)
    tokens = some_tokens(length=16)
    single, _ = model(tokens, model.first_state(2))
    model.double()
    state = model.first_state(2)
    double, after = model(tokens, state)
    assert {tensor.dtype for tensor in after.values()} == {torch.float64, torch.int64}
    assert_close(single.double(), double, 1e-5)


@torch.no_grad()
def test_a_state_is_read_back_as_data(tmp_path: Path) -> None:
    model, tokens = make_model(), some_tokens()
    _, state = model(tokens[:, :20])
    torch.save(state, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(read, TrellisState) and read.place == 4
    assert torch.equal(model(tokens[:, 20:], read)[0], model(tokens[:, 20:], state)[0])
    for layers, place in (("ab", 4), (state.layers, "4"), (state.layers, True)):
        with pytest.raises(TypeError, match="state"):
            model(tokens, TrellisState(layers, place))
    wrong = LayerState(*(None if name == "S_k" else tensor for name, tensor in vars(state.layers[0]).items()))
    wrong.S_k = "memory"
    with pytest.raises(TypeError, match=r"state.layers\[1\].S_k is 'memory'"):
        model(tokens, TrellisState((state.layers[0], wrong), 4))


@torch.no_grad()
@pytest.mark.parametrize("token", [SMALL.vocab_size, -1, 2**40])
def test_a_token_outside_the_vocabulary_is_named(token: int) -> None:
    model, tokens = make_model(), some_tokens()
    state = model.first_state(2)
    tokens[1, 3] = token
    said = rf"tokens hold {token} at \(1, 3\); the vocabulary has 40 tokens, 0 to 39"
    with pytest.raises(TokenError, match=said):
        model(tokens)
    with pytest.raises(TokenError, match=said):
        model.generate(tokens, 2)
    with pytest.raises(TokenError, match=said):
        model.stream(tokens, 2)
    with pytest.raises(IndexError, match=rf"tokens hold {token} at \(1,\)"):
        model.step(tokens[:, 3], state)
    assert all(not tensor.any() for layer in state.layers for tensor in layer.tensors().values())
    with pytest.raises(TokenError, match=said):
        SoftmaxLM(SMALL, 16)(tokens, SoftmaxLM(SMALL, 16).first_state(2))


@torch.no_grad()
def test_a_compiled_model_names_the_token_too() -> None:
    model, tokens = make_model(layers=1), some_tokens(length=16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(tokens, return_state=False)[0], whole(model, tokens), 1e-5)
    tokens[1, 3] = SMALL.vocab_size
    with pytest.raises(TokenError, match=r"tokens hold 40 at \(1, 3\)"):
        compiled(tokens, return_state=False)
