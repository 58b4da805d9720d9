"""Steps that are captured once and replayed; no CUDA graph is here, so that what would be captured is called itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from codegen.errors import DtypeError, ShapeError
from tests.support.relative_error import relative_error
from trellis_ops.errors import StateError
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode import captured
from trellis_ops.lm.model import TrellisLM

MODELS: dict[str, dict[str, Any]] = {
    "chunks": {"chunk_size": 4, "learned_state": True},
    "exact": {"chunk_size": 1},
    "no tail": {"chunk_size": 4, "conv_width": 1},
    "titans": {"rule": "titans", "chunk_size": 4},
    "gated DeltaNet": {"rule": "gated_deltanet", "chunk_size": 1},
}
PROMPTS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0], [3, 1, 4, 1, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    # The operators have tests of their own.
    monkeypatch.setenv("TRELLIS_OPS_IMPLEMENTATION", "eager")


def called_itself(run, device):
    """In the place of `cuda_graph`: the run before the capture, and then the function itself."""
    run()
    return run


def model_of(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "layers": 2, "width": 16, "heads": 2, "num_slots": 4}
    return TrellisLM(TrellisConfig(**sizes, **options)).eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_rows_at_different_places_of_their_chunks_without_a_gpu(name, monkeypatch):
    monkeypatch.setattr(captured, "cuda_graph", called_itself)
    model = model_of(**MODELS[name])
    _, state = model(PROMPTS, attention_mask=MASK)
    before = state.clone()
    steps = model.captured_steps(state)
    for index in range(11):
        tokens = torch.tensor([index, 15 - index, (3 * index) % 16])
        found, expected = steps.step(tokens), model.step(tokens, state)
        assert relative_error(found, expected) < 1e-5
    after = steps.state()
    assert torch.equal(after.positions, state.positions)
    for one, other, first in zip(after.layers, state.layers, before.layers, strict=True):
        for key, tensor in one.tensors().items():
            assert torch.allclose(tensor, other.tensors()[key], atol=1e-5)
        memory = next(iter(first.tensors()))
        assert not torch.equal(one.tensors()[memory], first.tensors()[memory])
    assert steps.step(tokens).data_ptr() != steps.step(tokens).data_ptr()


@torch.no_grad()
def test_the_state_that_is_given_stays_and_compiling_moves_nothing_without_a_gpu(monkeypatch):
    monkeypatch.setattr(captured, "cuda_graph", called_itself)
    model = model_of(chunk_size=4)
    _, state = model(PROMPTS)
    before = state.clone()
    steps = model.captured_steps(state)
    for found in (steps.state(), state):
        for one, other in zip(found.layers, before.layers, strict=True):
            assert all(torch.equal(tensor, other.tensors()[key]) for key, tensor in one.tensors().items())
    steps.step(torch.tensor([1, 2, 3]))
    assert torch.equal(state.positions, before.positions)


@torch.no_grad()
def test_generate_replays_a_graph_where_it_is_told_to_without_a_gpu(monkeypatch):
    captures = []

    def capture(run, device):
        captures.append(run)
        return called_itself(run, device)

    model = model_of(chunk_size=4)
    expected = model.generate(PROMPTS, 9, temperature=0)
    monkeypatch.setattr(captured, "cuda_graph", capture)
    model.decode_graph = True
    assert torch.equal(model.generate(PROMPTS, 9, temperature=0), expected)
    assert len(captures) == 1


def test_a_model_on_a_cpu_tokens_of_other_rows_and_other_states_are_refused(monkeypatch):
    model = model_of(chunk_size=4)
    state = model.first_state(2)
    with pytest.raises(ValueError, match="the model is on cpu, but a CUDA graph needs a CUDA device"):
        model.captured_steps(state)
    with pytest.raises(StateError):
        model.captured_steps(model_of(chunk_size=4, rule="titans").first_state(2))
    monkeypatch.setattr(captured, "cuda_graph", called_itself)
    steps = model.captured_steps(state)
    with pytest.raises(DtypeError):
        steps.step(torch.tensor([1.0, 2.0]))
    with pytest.raises(ShapeError, match=r"\[2\], the rows that are captured"):
        steps.step(torch.tensor([1, 2, 3]))
