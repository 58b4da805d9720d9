"""A model's decode step by torch's products and the kernels between them is the step of its modules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor

from tests.interpreted.rules.test_pool import NothingIsAwaited
from tests.trellis_ops.lm.decode.models import CHUNKED, EXACT, model_of, relative_error
from trellis_ops.dispatch.resolve import VARIABLE
from trellis_ops.lm.decode import captured
from trellis_ops.lm.decode.between import copied_bytes
from trellis_ops.lm.decode.decoder import forget, fused_blocks, packed_bytes
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.state import TrellisState

CONFIGS = pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
KERNELS_OF_BLOCK = 8
"""Two norms, the mixer, silu(gate) up, and four products."""


@pytest.fixture(autouse=True)
def served_by_triton(monkeypatch):
    """As a GPU is."""
    monkeypatch.setenv(VARIABLE, "triton")


@pytest.fixture
def to_nearest(monkeypatch):
    """The interpreter cuts what bfloat16 does not hold off; a GPU rounds to the nearest."""
    cut_off = interpreter._convert_float

    def converted(values: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return cut_off(values, given, wanted, mode)
        return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", converted)


def prompted(model: TrellisLM, batch: int, monkeypatch: Any) -> TrellisState:
    """A state after six tokens, which no interpreter reads."""
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "eager")
        _, state = model(torch.randint(0, 256, (batch, 6)))
    return state


def stepped(model: TrellisLM, state: TrellisState, tokens: Tensor) -> Tensor:
    """Logits `[T, B, vocabulary]` of tokens `[T, B]`, after which kernels have run."""
    forget(model)
    logits = torch.stack([model.step(each, state) for each in tokens])
    assert 0 < copied_bytes(model) == packed_bytes(model)
    return logits


def stepped_by_modules(model: TrellisLM, state: TrellisState, tokens: Tensor, monkeypatch: Any) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "eager")
        return torch.stack([model.step(each, state) for each in tokens])


def require_equal(one: TrellisState, other: TrellisState) -> None:
    assert torch.equal(one.positions, other.positions)
    for layer, right in zip(one.layers, other.layers, strict=True):
        for name, tensor in right.tensors().items():
            assert relative_error(layer.tensors()[name], tensor) < 1e-5, name


@CONFIGS
@pytest.mark.parametrize("batch", [1, 5])
def test_logits_and_states_are_those_of_the_modules(config, batch, monkeypatch):
    model = model_of(config)
    state = prompted(model, batch, monkeypatch)
    if model.config.keeps_starts:
        state.positions = torch.arange(2, 2 + batch) % 4
    other, tokens = state.clone(), torch.randint(0, 256, (2, batch))
    given, right = stepped(model, state, tokens), stepped_by_modules(model, other, tokens, monkeypatch)
    assert relative_error(given, right) < 1e-5
    require_equal(state, other)


@CONFIGS
@pytest.mark.usefixtures("to_nearest")
@pytest.mark.parametrize("wide_gates", [False, True])
def test_a_model_of_bfloat16_is_near_float64_as_its_modules_are(config, wide_gates, monkeypatch):
    """Also with gates in float32, as a model of transformers is loaded; from seed to seed, errors differ by twice."""
    model = model_of(config).bfloat16()
    for block in model.blocks if wide_gates else ():
        for each in block.mixer.gates():
            if isinstance(each, nn.Module):
                each.float()
            else:
                each.data = each.data.float()
    tokens, wide = torch.randint(0, 256, (3, 3)), copy.deepcopy(model).double()
    right = torch.stack([wide.step(each, state) for state in [wide.first_state(3)] for each in tokens])
    given = stepped(model, state := model.first_state(3), tokens)
    modules = stepped_by_modules(model, model.first_state(3), tokens, monkeypatch)
    assert given.dtype == state.layers[0].tail.dtype == torch.bfloat16
    assert relative_error(given.double(), right) < min(2e-2, 2 * relative_error(modules.double(), right))
    assert packed_bytes(wide) == 0, "float64 has no kernels"


def test_a_state_that_no_kernel_takes_goes_through_the_modules_of_its_block(monkeypatch):
    model = model_of(CHUNKED)
    state = prompted(model, 2, monkeypatch)
    other, tokens = state.clone(), torch.randint(0, 256, (2, 2))
    S_v = state.layers[1].S_v
    state.layers[1].S_v = S_v.new_empty(*S_v.shape[:-1], 2 * S_v.shape[-1])[..., ::2].copy_(S_v)
    given, right = stepped(model, state, tokens), stepped_by_modules(model, other, tokens, monkeypatch)
    assert relative_error(given, right) < 1e-5
    require_equal(state, other)


def test_blocks_alone_as_a_model_of_transformers_takes_them(monkeypatch):
    model = model_of(CHUNKED)
    state = prompted(model, 2, monkeypatch)
    x = torch.randn(2, 32)
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "eager")
        right = x
        for block, layer in zip(model.blocks, state.clone().layers, strict=True):
            right = block.step(right, layer, state.begins())
    given = fused_blocks(model, "float32", x.clone(), state)
    assert given is not None
    assert relative_error(given, right) < 1e-5


def test_generate_writes_what_modules_write(monkeypatch):
    model, prompt = model_of(CHUNKED), torch.randint(0, 256, (1, 2))
    given = model.generate(prompt, 3, temperature=0)
    assert packed_bytes(model) > 0
    monkeypatch.setenv(VARIABLE, "eager")
    assert torch.equal(given, model.generate(prompt, 3, temperature=0))


class Counted(TorchDispatchMode):
    """Counts torch's operations that launch a kernel: neither views nor memory that is only allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in called._schema.arguments)
        if not is_view and not called.__name__.startswith(("empty", "new_empty", "detach", "_unsafe_view")):
            self.names.append(called.__name__)
        return called(*args, **(kwargs or {}))


def launched(steps: captured.CapturedSteps, run: Any, monkeypatch: Any) -> list[str]:
    """The kernels that `run` would launch on a GPU; those of Triton do not run."""
    with monkeypatch.context() as patch, Counted() as counted:
        patch.setattr(GridExecutor, "__call__", lambda kernel, *_, **__: counted.names.append(kernel.fn.__name__))
        run()
    return counted.names


def captured_steps(model: TrellisLM, state: TrellisState, monkeypatch: Any) -> captured.CapturedSteps:
    monkeypatch.setattr(captured, "cuda_graph", lambda run, device: (run(), run)[1])
    return model.captured_steps(state)


@CONFIGS
def test_steps_that_are_captured_run_the_kernels(config, monkeypatch):
    model = model_of(config)
    state = prompted(model, 3, monkeypatch)
    if model.config.keeps_starts:
        state.positions = torch.tensor([2, 3, 0])
    steps = captured_steps(model, state, monkeypatch)
    for tokens in torch.randint(0, 256, (3, 3)):
        given, right = steps.step(tokens), stepped_by_modules(model, state, tokens[None], monkeypatch)[0]
        assert relative_error(given, right) < 1e-5
    require_equal(steps.state(), state)


@CONFIGS
def test_a_captured_step_launches_eight_kernels_for_each_block_and_awaits_none(config, monkeypatch):
    model = model_of(config)
    steps = captured_steps(model, model.first_state(3), monkeypatch)
    with NothingIsAwaited():
        steps._run()
    names = launched(steps, steps._run, monkeypatch)
    own = [name for name in names if name.endswith("_step")]
    assert own == ["norm_step", "mixer_step", "norm_step", "swiglu_step"] * len(model.blocks) + ["norm_step"]
    around = ["embedding.default", *["_to_copy.default"] * model.config.keeps_starts, "mm.default", "add_.Tensor"]
    assert len(names) == KERNELS_OF_BLOCK * len(model.blocks) + len(around) + 1
    by_modules = launched(steps, lambda: steps._by_modules(model.embedding(steps._tokens)), monkeypatch)
    assert len(by_modules) > 4 * len(names)


def test_a_change_of_the_model_is_seen(monkeypatch):
    model, tokens = model_of(CHUNKED), torch.randint(0, 256, (2, 1))

    def changed() -> None:
        given = torch.stack([model.step(each, state) for state in [model.first_state(1)] for each in tokens])
        assert packed_bytes(model) > 0
        assert relative_error(given, stepped_by_modules(model, model.first_state(1), tokens, monkeypatch)) < 2e-2

    changed()
    for each in (model.blocks[0].mixer.to_v, model.blocks[1].mlp.up, model.blocks[1].mixer.to_decay, model.norm):
        each.weight.mul_(3)
        changed()
    model.blocks[0] = copy.deepcopy(model.blocks[1])
    changed()
    model.bfloat16()
    changed()


def test_an_explanation_names_the_kernels_or_the_reason():
    model = model_of(CHUNKED)
    lines = model.explain_step(3).splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        [name, " triton"] for name in ("norm_step", "mixer_step", "swiglu_step")
    ]
    assert model.explain_step(65) == "modules: the kernels take at most 64 rows, not 65"
    with torch.autocast("cpu"):
        assert model.explain_step() == "modules: autocast is on"
    assert "not TRELLIS" in model_of({**CHUNKED, "rule": "gated_deltanet", "chunk_size": None}).explain_step()
    assert "at least 2 tokens" in model_of({**CHUNKED, "conv_width": 1}).explain_step()
    model.blocks[1].mlp.down.bfloat16()
    assert model.explain_step() == "modules: the linear maps have several types, torch.bfloat16, torch.float32"
    model.blocks[1].mlp.down.float().register_forward_hook(lambda module, inputs, output: None)
    assert model.explain_step() == "modules: a Linear has hooks"
