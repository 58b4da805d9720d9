"""TVM's kernels for CUDA in the process that calls them; nvcc and the driver are emulated, the rest is real."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from codegen.backends import backend
from codegen.backends.tvm_cuda import compile as cuda
from codegen.backends.tvm_cuda import kernel as kernels
from codegen.backends.tvm_cuda import nvcc
from codegen.device import NAMED, Device
from codegen.errors import BackendUnavailableError, KernelArgumentError
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Spec
from tests.emulators.emulated_cuda import COMPILER
from tests.emulators.emulated_driver import driver, emulated_image
from tests.support.cases.kernels import Case, check_attention, check_readout, check_step, check_update
from tests.support.inputs import make_inputs
from tests.support.relative_error import TOLERANCE
from trellis_ops.dispatch import resolve
from trellis_ops.operators.registered import attention_request

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

HOPPER = NAMED["sm_90"]
SMALL = Case(dim_k=20, dim_v=12, slots=9, chunk=16, lengths=(21, 21))


@pytest.fixture
def emulated_card(monkeypatch, tmp_path):
    """A card that is emulated on this CPU: tensors lie in the CPU's memory."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda, "why_unavailable", lambda device: None)
    monkeypatch.setattr(nvcc, "cubin_of", lambda text, path, arch: emulated_image(text))
    monkeypatch.setattr(kernels, "place_of", lambda where: driver().place())
    driver().forget()


def on_the_card(spec: Spec) -> CompiledOperator:
    return build(spec, default("tvm", spec, HOPPER), HOPPER)


def test_attention_on_an_emulated_card(emulated_card):
    check_attention(on_the_card, dataclasses.replace(SMALL, dtype="bfloat16"), of_states=TOLERANCE[torch.bfloat16])
    assert [each.name for each in driver().launches()] == ["memory_update_kernel"] * 2 + ["memory_readout_kernel"]


def test_packed_sequences_on_an_emulated_card(emulated_card):
    check_attention(on_the_card, dataclasses.replace(SMALL, lengths=(41, 0, 1, 20, 5), packed=True))


def test_the_exact_recurrence_on_an_emulated_card(emulated_card):
    rule = Rule(phi_eps=1e-2, step_size="token")
    check_attention(on_the_card, dataclasses.replace(SMALL, chunk=1, lengths=(9, 9), rule=rule))


def test_update_readout_and_steps_on_an_emulated_card(emulated_card):
    check_update(on_the_card, Case("memory_update", lengths=(47, 47), dim_v=20))
    check_readout(on_the_card, Case("memory_readout", lengths=(47, 47), dim_v=20))
    check_step(on_the_card, Case("trellis_step", chunk=1, lengths=(1, 1, 1), heads=5))
    check_step(on_the_card, Case("trellis_step_chunked", lengths=(1, 1, 1), heads=5))


def test_what_one_process_has_compiled_the_next_finds_on_an_emulated_card(emulated_card, monkeypatch):
    check_attention(on_the_card, SMALL)
    monkeypatch.setattr(cuda, "compiled", lambda source, device: pytest.fail("it was compiled again"))
    check_attention(on_the_card, SMALL)


def test_what_was_kept_and_is_damaged_is_compiled_again_on_an_emulated_card(emulated_card, tmp_path):
    check_attention(on_the_card, SMALL)
    for path in (tmp_path / "kernels").glob("*.so"):
        path.write_bytes(path.read_bytes()[:-50])
    check_attention(on_the_card, SMALL)


def test_a_call_without_a_tensor_is_refused(emulated_card):
    (kernel,) = on_the_card(Case("trellis_step", chunk=1, lengths=(1,)).spec).kernels
    with pytest.raises(KernelArgumentError, match="none of them a tensor"):
        kernel(1, 2, 3)


def request_on_a_card(direction: str = "forward"):
    x = make_inputs(1, 40, 2, 16, 16, 8)
    asked = attention_request(*x.args, None, None, None, "ln_silu", "ln_silu", "identity", 1e-6, 16, "bilevel")
    problem = dataclasses.replace(asked.spec.problem, direction=direction)
    return dataclasses.replace(
        asked, spec=dataclasses.replace(asked.spec, problem=problem), device=torch.device("cuda")
    )


@pytest.fixture
def faked_gpu(monkeypatch):
    monkeypatch.setattr(resolve, "device_of", lambda where: HOPPER)


def test_tvm_serves_a_gpu_that_is_faked_here_where_it_is_asked_for(emulated_card, faked_gpu):
    found = resolve.resolve(request_on_a_card(), "tvm")
    assert (found.implementation, found.device) == ("tvm", HOPPER)
    assert found.schedule == default("tvm", request_on_a_card().spec, HOPPER)


def test_where_tvm_has_no_kernel_for_a_gpu_that_is_faked_here_it_says_so(emulated_card, faked_gpu):
    found = resolve.resolve(request_on_a_card("backward"), "tvm")
    assert found.implementation == "eager"
    assert "for CUDA there are TVM templates of" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (HOPPER, "torch sees no GPU here"),
        (Device("hip", "amd-mi300x", "gfx942", 304, 0, 65536), "TVM has templates for CPUs and CUDA, not for"),
    ],
)
def test_without_a_card_it_says_why(device, reason):
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    spec = SMALL.spec
    assert reason in (backend("tvm").why_unavailable(device) or "")
    with pytest.raises(BackendUnavailableError, match=reason):
        backend("tvm").kernel("memory_update", spec, default("tvm", spec, HOPPER), device)
