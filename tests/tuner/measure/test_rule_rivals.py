"""What rules are timed beside on a GPU: each kernel of flash-linear-attention gets the tensors of its rule.

Here none of them runs: a module that is faked stands for theirs, or their functions are asked what they take.
tests/interpreted/rules/test_peers_kernels.py runs those that Triton's interpreter can.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import os
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from codegen.device import cpu
from codegen.rules import NAMED
from codegen.spec import Problem, Spec
from tuner.gpu_run.warm_up import BY_TORCH, RIVALS, _in_order
from tuner.measure.baselines.rivals import COMPILE_LONG, compiled_long, rivals_of
from tuner.measure.baselines.rule_rivals import FLASH_QLA, KERNELS, _arguments, names_of, rule_rival
from tuner.measure.side_by_side import COMPILED

KERNEL = "chunk_gated_delta_rule"


def spec_of(name: str, dim: int = 8, operator: str = "memory_attention", direction: str = "forward") -> Spec:
    tokens = 1 if operator == "memory_step" else 4
    return Spec(NAMED[name].rule, Problem(operator, 2, tokens, 3, dim, dim, dim, 1, direction=direction))


@pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_of_a_rule_take_what_they_are_given(name):
    pytest.importorskip("fla", reason="the kernels are optional: make .venv/installed-peers")
    kernels = KERNELS[name]
    module = importlib.import_module(f"fla.ops.{kernels.module}")
    for function, operator in ((kernels.chunk, "memory_attention"), (kernels.step, "memory_step")):
        if function:
            given = _arguments(kernels, spec_of(name, operator=operator), cpu())
            taken = inspect.signature(getattr(module, function)).bind(**given).arguments
            assert "kwargs" not in taken, function


@pytest.fixture
def faked(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls of a kernel that is faked in the place of fla's, with the variable that chooses FlashQLA."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def kernel(**given: Any) -> tuple[torch.Tensor, None]:
        calls.append((os.environ["FLA_FLASH_QLA"], given))
        return given["v"] * given["beta"][..., None], None

    module = ModuleType("fla.ops.gated_delta_rule")
    setattr(module, KERNEL, kernel)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("FLA_FLASH_QLA", raising=False)
    return calls


def with_flash_qla(monkeypatch) -> None:
    fake = ModuleType("flash_qla")
    fake.__spec__ = importlib.machinery.ModuleSpec("flash_qla", None)
    monkeypatch.setitem(sys.modules, "flash_qla", fake)


def test_flash_qla_is_a_rival_of_its_width_where_it_is_installed_and_is_off_beside_it(monkeypatch, faked):
    wide = spec_of("gated_deltanet", 128)
    assert names_of(wide) == (KERNEL,)
    with_flash_qla(monkeypatch)
    assert names_of(wide) == (KERNEL, FLASH_QLA)
    assert names_of(spec_of("gated_deltanet", 64)) == (KERNEL,)
    assert names_of(spec_of("kda", 128)) == ("chunk_kda",)
    for name in names_of(wide):
        rule_rival(name, wide, cpu()).run()
    assert [value for value, _ in faked] == ["0", "1"]
    assert "FLA_FLASH_QLA" not in os.environ


def test_a_backward_is_timed_with_the_gradients_of_all_that_it_is_given(faked):
    gradients = rule_rival(KERNEL, spec_of("gated_deltanet", direction="backward"), cpu()).run()
    (_, given), _ = faked
    assert given["initial_state"].shape == (2, 3, 8, 8)
    assert [each is not None for each in gradients] == [
        name in ("v", "beta") for name, each in given.items() if isinstance(each, torch.Tensor)
    ]


def test_what_is_not_ready_or_not_written_there_is_left_out_with_the_reason(faked):
    calls, left_out = rivals_of(spec_of("gated_deltanet"), cpu(), ready=[KERNEL])
    assert KERNEL in calls and not left_out
    assert list(rivals_of(spec_of("kda"), cpu(), ready=[])[1]) == ["chunk_kda"]
    reason = "it has no kernel of this rule, or none for one token"
    for spec in (spec_of("memora"), spec_of("mesanet", operator="memory_step")):
        assert rivals_of(spec, cpu(), ready=[])[1] == {"flash-linear-attention": reason}


def test_rivals_are_compiled_one_after_another_each_for_all_specs_that_have_it():
    trellis = Spec(NAMED["trellis"].rule, Problem())
    specs = [trellis, spec_of("gated_deltanet"), spec_of("memora"), spec_of("gsa", operator="memory_step")]
    delta, slots = COMPILE_LONG
    assert _in_order(RIVALS, specs) == [
        *((delta, specs[0]), (delta, specs[1]), (slots, specs[0])),
        ("fused_recurrent_gsa", specs[3]),
    ]
    assert _in_order(BY_TORCH, specs) == [(COMPILED, spec) for spec in specs]
    assert compiled_long(Spec(NAMED["trellis"].rule, Problem("trellis_step", tokens=1, chunk=1))) == ()
