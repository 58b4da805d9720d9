"""Bad arguments are refused before any kernel runs, with the offending value in the message."""

from __future__ import annotations

import pytest
import torch

from codegen.errors import (
    DeviceMismatchError,
    DtypeError,
    ImplementationError,
    SequenceError,
    ShapeError,
    SizeError,
    TrellisError,
    UnknownMapError,
    ValueCheckError,
)
from tests.support.inputs import make_inputs
from trellis_ops import forget, memory_readout, memory_update, trellis_attention, trellis_step
from trellis_ops.tokens import Tokens

NAMES = Tokens._fields


@pytest.fixture(autouse=True)
def no_kernel_may_run(monkeypatch):
    def ran(*_, **__):
        raise AssertionError("a kernel ran on bad input")

    for module in ("trellis_ops.dispatch.launch", "trellis_ops.eager.forward"):
        for name in ("attention", "update", "readout", "step"):
            monkeypatch.setattr(f"{module}.{name}", ran)


def call(changes=None, **options):
    tensors = dict(zip(NAMES, make_inputs(2, 10, 3, 8, 6, 5).args, strict=True)) | (changes or {})
    return trellis_attention(**tensors, **options)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"q": torch.zeros(2, 10, 8)}, ShapeError, r"q has shape \(2, 10, 8\)"),
        ({"k": torch.zeros(2, 10, 3, 7)}, ShapeError, r"k has shape \(2, 10, 3, 7\)"),
        ({"v": torch.zeros(2, 9, 3, 6)}, ShapeError, r"v has shape \(2, 9, 3, 6\)"),
        ({"target": torch.zeros(2, 10, 4, 5)}, ShapeError, r"target has shape \(2, 10, 4, 5\)"),
        ({"target": torch.zeros(2, 10, 5)}, ShapeError, "target"),
        ({"log_decay": torch.zeros(2, 10)}, ShapeError, "log_decay"),
        ({"step_size": torch.zeros(4)}, ShapeError, r"step_size has shape \(4,\)"),
        ({"step_size": torch.zeros(2, 10)}, ShapeError, "step_size"),
        ({"v": torch.zeros(2, 10, 3, 300)}, SizeError, "D_v=300"),
        ({"target": torch.zeros(2, 10, 3, 257)}, SizeError, "M=257"),
        ({"v": torch.zeros(2, 10, 3, 0)}, SizeError, "D_v=0"),
        ({"k": torch.zeros(2, 10, 3, 8, dtype=torch.float16)}, DtypeError, "k has dtype torch.float16"),
        ({"q": torch.zeros(2, 10, 3, 8, dtype=torch.int32)}, DtypeError, "int32"),
        ({"log_decay": torch.zeros(2, 10, 3, dtype=torch.int64)}, DtypeError, "log_decay has dtype torch.int64"),
        ({"target": torch.zeros(2, 10, 3, 5, device="meta")}, DeviceMismatchError, "target is on meta"),
        ({"step_size": torch.zeros(3, device="meta")}, DeviceMismatchError, "step_size is on meta"),
    ],
)
def test_tensors(changes, error, words):
    with pytest.raises(error, match=words):
        call(changes)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_tensor_is_named(name):
    with pytest.raises(TypeError, match=f"{name} is None, but must be a torch.Tensor"):
        call({name: None})
    with pytest.raises((TypeError, RuntimeError), match=f"'{name}'|{name} is "):
        call({name: [[1.0]]})


def test_a_step_without_a_state_is_refused():
    state = [torch.zeros(2, 3, 5, 8), None]
    q, k, v, target, log_decay, step_size = make_inputs(2, 10, 3, 8, 6, 5).args
    with pytest.raises(TypeError, match="S_v is None"):
        trellis_step(q[:, 0], k[:, 0], v[:, 0], target[:, 0], log_decay[:, 0], step_size, state)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"chunk_size": 0}, SizeError, "chunk_size=0"),
        ({"chunk_size": -3}, SizeError, "chunk_size=-3"),
        ({"phi": "relu"}, UnknownMapError, "phi='relu'"),
        ({"link": "tanh"}, UnknownMapError, "link='tanh'"),
        ({"out": ""}, UnknownMapError, "out=''"),
        ({"phi_eps": 0.0}, SizeError, "phi_eps=0.0"),
        ({"phi_eps": float("nan")}, SizeError, "phi_eps=nan"),
        ({"implementation": "cuda"}, ImplementationError, "'cuda'"),
        ({"implementation": "triton"}, ImplementationError, "TRITON_INTERPRET=1"),
        ({"outer_gradient": "third_order"}, ValueError, "third_order"),
        ({"initial_state": (torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 7))}, ShapeError, "S_v"),
        ({"initial_state": (torch.zeros(1, 3, 5, 8), torch.zeros(2, 3, 5, 6))}, ShapeError, "S_k"),
        (
            {"initial_state": (torch.zeros(2, 3, 5, 8).half(), torch.zeros(2, 3, 5, 6))},
            DtypeError,
            "S_k has dtype torch.float16",
        ),
        ({"cu_seqlens": torch.tensor([0, 10])}, SequenceError, "B = 2"),
    ],
)
def test_options(options, error, words):
    with pytest.raises(error, match=words):
        call(**options)


def test_no_tokens():
    with pytest.raises(SizeError, match="T=0"):
        trellis_attention(*make_inputs(2, 0, 3, 8, 6, 5).args)


@pytest.mark.parametrize(
    ("offsets", "error", "words"),
    [
        (torch.tensor([1, 10]), SequenceError, "start at 0: 1"),
        (torch.tensor([0, 9]), SequenceError, "T = 10: 9"),
        (torch.tensor([0, 7, 4, 10]), SequenceError, "7 to 4"),
        (torch.tensor([0, 4, 4, 3, 10]), SequenceError, "4 to 3"),
        (torch.tensor([[0, 10]]), SequenceError, "shape"),
        (torch.tensor([0]), SequenceError, "shape"),
        (torch.tensor([0.0, 10.0]), DtypeError, "float32"),
    ],
)
def test_offsets(offsets, error, words):
    inputs = make_inputs(1, 10, 3, 8, 6, 5)
    with pytest.raises(error, match=words):
        trellis_attention(*inputs.args, cu_seqlens=offsets)


def test_float64_is_refused_by_kernels():
    inputs = make_inputs(1, 10, 3, 8, 6, 5, dtype=torch.float64)
    with pytest.raises(ImplementationError, match="float64"):
        trellis_attention(*inputs.args, implementation="tvm")


def test_update_readout_and_step():
    inputs = make_inputs(2, 10, 3, 8, 6, 5)
    gates = (inputs.log_decay, inputs.step_size)
    with pytest.raises(ShapeError, match="initial_state"):
        memory_update(inputs.k, inputs.target, *gates, initial_state=inputs.initial_state[1])
    states, codes = torch.zeros(2, 3, 3, 5, 8), torch.zeros(2, 10, 3, 5)
    with pytest.raises(ShapeError, match="chunk_states"):
        memory_readout(inputs.q, inputs.k, states[:, :2], codes, *gates, chunk_size=4)
    with pytest.raises(ShapeError, match="read has shape"):
        memory_readout(inputs.q, inputs.k, states, codes, *gates, chunk_size=4, transpose=True)
    with pytest.raises(DtypeError, match="codes"):
        memory_readout(inputs.q, inputs.k, states, codes.half(), *gates, chunk_size=4)
    state = inputs.initial_state
    with pytest.raises(ShapeError, match="q has shape"):
        trellis_step(*inputs.args, state)
    with pytest.raises(ShapeError, match="gradient_state"):
        trellis_step(*inputs.token(0), state, gradient_state=(state[1], state[0]))


@pytest.mark.parametrize(
    ("name", "index", "value", "words"),
    [
        ("log_decay", (0, 3, 1), 0.5, r"log_decay is positive .*\(0, 3, 1\), value 0.5"),
        ("step_size", (2,), -1.0, r"step_size is negative .*\(2,\), value -1.0"),
        ("q", (1, 2, 0, 4), float("nan"), r"q holds NaN .*\(1, 2, 0, 4\)"),
        ("target", (0, 0, 0, 0), float("nan"), "target holds NaN"),
    ],
)
def test_values_are_checked_when_asked_for(monkeypatch, name, index, value, words):
    tensors = dict(zip(NAMES, make_inputs(2, 10, 3, 8, 6, 5).args, strict=True))
    tensors[name][index] = value
    monkeypatch.setenv("TRELLIS_OPS_CHECK_VALUES", "1")
    forget()
    with pytest.raises(ValueCheckError, match=words):
        trellis_attention(**tensors)
    forget()


def test_every_error_of_the_project_says_what_was_wrong():
    error = ShapeError(name="q", shape=(1,), expected="[B, T, H, D_k]")
    assert isinstance(error, TrellisError) and isinstance(error, ValueError)
    assert error.name == "q"
    with pytest.raises(AttributeError, match="colour"):
        _ = error.colour
