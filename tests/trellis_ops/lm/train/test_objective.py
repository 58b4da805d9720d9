"""Carried states: reading window by window is reading at once, for the memory and for softmax attention."""

from __future__ import annotations

import pytest
import torch

from codegen.errors import SizeError
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.train.data.lanes import IGNORED, Batch
from trellis_ops.lm.train.objective import LanguageModel, Objective, build_model
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.softmax import SoftmaxLM

pytestmark = pytest.mark.usefixtures("eager")
CONFIG = TrellisConfig(vocab_size=32, layers=2, width=16, heads=2, num_slots=4, chunk_size=4, learned_state=True)


def model_of(mixer: str, length: int = 8) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(CONFIG, Settings(mixer=mixer, length=length))


def batch_of(tokens: torch.Tensor, fresh: list[bool]) -> Batch:
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.tensor(fresh))


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["trellis", "softmax"])
def test_two_windows_are_one(mixer: str) -> None:
    tokens = torch.randint(32, (3, 17))
    model = model_of(mixer)
    whole, _ = Objective(model)(batch_of(tokens, [True] * 3), None)
    first, carried = Objective(model)(batch_of(tokens[:, :9], [True] * 3), None)
    second, _ = Objective(model)(batch_of(tokens[:, 8:], [False] * 3), carried)
    torch.testing.assert_close(first + second, whole, rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["trellis", "softmax"])
def test_a_fresh_lane_forgets_and_the_others_do_not(mixer: str) -> None:
    tokens = torch.randint(32, (2, 9))
    objective = Objective(model_of(mixer))
    _, carried = objective(batch_of(torch.randint(32, (2, 9)), [True, True]), None)
    only_second = Batch(tokens[:, :-1], tokens[:, 1:].clone(), torch.tensor([True, False]))
    only_second.targets[0] = IGNORED
    only_first = Batch(tokens[:, :-1], tokens[:, 1:].clone(), torch.tensor([True, False]))
    only_first.targets[1] = IGNORED
    anew, _ = objective(only_first, None)
    torch.testing.assert_close(objective(only_first, carried)[0], anew, rtol=1e-5, atol=0)
    assert abs(objective(only_second, carried)[0] - objective(only_second, None)[0]) > 1e-4


def test_gradients_stop_at_the_window_and_reach_the_first_state() -> None:
    model = model_of("trellis")
    objective = Objective(model)
    _, carried = objective(batch_of(torch.randint(32, (2, 9)), [True, True]), None)
    assert not any(tensor.requires_grad for tensor in carried.values())
    loss, _ = objective(batch_of(torch.randint(32, (2, 9)), [True, False]), carried)
    loss.backward()
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert norms.keys() == dict(model.named_parameters()).keys()
    assert norms["blocks.0.mixer.first_k"] > 0


def test_autocast_keeps_the_memories_in_float32() -> None:
    loss, carried = Objective(model_of("trellis"), torch.bfloat16)(
        batch_of(torch.randint(32, (2, 9)), [True] * 2), None
    )
    assert loss.dtype == torch.float32
    assert {carried[name].dtype for name in carried if name.endswith(("S_k", "S_v"))} == {torch.float32}
    Objective(model_of("trellis"), torch.bfloat16)(batch_of(torch.randint(32, (2, 9)), [False] * 2), carried)


def test_the_models_are_of_one_size() -> None:
    config = TrellisConfig.preset("tiny")
    sizes = [build_model(config, Settings(mixer=mixer)).count_parameters() for mixer in ("trellis", "softmax")]
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[0]


@torch.no_grad()
def test_softmax_attention_sees_no_later_token() -> None:
    model = model_of("softmax")
    assert isinstance(model, SoftmaxLM)
    tokens = torch.randint(32, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 32
    before, after = (model(each, model.first_state(1))[0] for each in (tokens, changed))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_windows_that_end_inside_a_chunk_are_refused() -> None:
    with pytest.raises(SizeError, match="multiple of the chunk size 4"):
        model_of("trellis", length=10)
