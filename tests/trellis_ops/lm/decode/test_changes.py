"""Whatever changes a model between two tokens is seen by the second: weights, modules, hooks, surroundings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.trellis_ops.lm.decode.models import CHUNKED, model_of, relative_error, stepped, stepped_by_modules
from trellis_ops.lm.model import TrellisLM


class Doubled(nn.Linear):
    """A linear map of another kind, as LoRA and quantisation put in the place of one."""

    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def write(model: TrellisLM) -> None:
    model.blocks[1].mlp.up.weight.mul_(1.5)


def write_vector(model: TrellisLM) -> None:
    model.blocks[0].mixer.conv_q.add_(0.1)


def write_embedding(model: TrellisLM) -> None:
    model.embedding.weight[:128].mul_(2.0)


def load(model: TrellisLM) -> None:
    model.load_state_dict({name: 1.1 * weight for name, weight in model.state_dict().items()})


def optimise(model: TrellisLM) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def replace_parameter(model: TrellisLM) -> None:
    model.norm.weight = nn.Parameter(torch.full_like(model.norm.weight, 0.5))


def replace_module(model: TrellisLM) -> None:
    own = model.blocks[0].mixer.to_out
    other = Doubled(own.in_features, own.out_features, bias=False)
    other.weight = own.weight
    model.blocks[0].mixer.to_out = other


def replace_block(model: TrellisLM) -> None:
    model.blocks[1] = model_of(CHUNKED).blocks[0]


def replace_norm_and_embedding(model: TrellisLM) -> None:
    model.norm, model.embedding = nn.RMSNorm(32, eps=model.norm.eps), nn.Embedding(256, 32)
    model.norm.weight.data.fill_(2.0)
    model.requires_grad_(False)


def hook(model: TrellisLM) -> None:
    model.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def own_forward(model: TrellisLM) -> None:
    mixer = model.blocks[0].mixer_norm
    mixer.forward = lambda x: 3 * nn.RMSNorm.forward(mixer, x)


def parametrized(model: TrellisLM) -> None:
    parametrize.register_parametrization(model.blocks[0].mixer.to_out, "weight", Twice())


CHANGES = [
    *(write, write_vector, write_embedding, load, optimise),
    *(replace_parameter, replace_module, replace_block, replace_norm_and_embedding, hook, own_forward, parametrized),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_step_sees_it(change: Callable[[TrellisLM], None], monkeypatch):
    model = model_of(CHUNKED)
    tokens = torch.randint(0, 256, (4, 1))
    before = stepped(model, model.first_state(1), tokens)
    change(model)
    given = torch.stack([model.step(each, state) for state in [model.first_state(1)] for each in tokens])
    right = stepped_by_modules(model, model.first_state(1), tokens, monkeypatch)
    assert relative_error(given, before) > 1e-3
    assert relative_error(given, right) < 1e-5


@pytest.mark.parametrize("change", [replace_module, hook, own_forward, parametrized])
def test_modules_of_another_kind_compute_themselves(change: Callable[[TrellisLM], None]):
    model = model_of(CHUNKED)
    assert model.explain_step().startswith("block_step")
    change(model)
    assert model.explain_step().startswith("modules: ")


def test_surroundings_that_look_at_operations_have_modules():
    model = model_of(CHUNKED)
    with torch.autocast("cpu"):
        assert model.explain_step() == "modules: autocast is on"
    with torch.device("cpu"):
        assert "looks at every operation" in model.explain_step()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert model.explain_step() == "modules: there are hooks on all modules"
    finally:
        handle.remove()
    assert model.explain_step().startswith("block_step")
