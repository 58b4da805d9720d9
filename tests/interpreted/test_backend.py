"""What the Triton backend says of itself in a process that interprets."""

from __future__ import annotations

import pytest

from codegen.__main__ import main
from codegen.backends import backend
from codegen.device import cpu, named
from codegen.errors import BackendUnavailableError
from codegen.kernels.build import build
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec


def test_available_on_the_cpu():
    assert backend("triton").why_unavailable(cpu()) is None


@pytest.mark.parametrize("question", ["inspect", "resources"])
def test_nothing_is_compiled(question):
    spec, device = Spec(Rule(), Problem()), named("sm_90")
    schedule = default("triton", spec, device)
    source = render("trellis_fused", spec, schedule, device)
    with pytest.raises(BackendUnavailableError, match="unset TRITON_INTERPRET"):
        getattr(backend("triton"), question)(source, spec, schedule, device)


def test_shown_and_built_kernels_are_one(capsys):
    spec = Spec(Rule(), Problem(batch=3, tokens=100, heads=7, dtype="float16", chunk=128))
    compiled = build(spec, TritonSchedule("split", 32, 2, 1, "tf32"), cpu())
    settings = "--set tile_rows=32 --set num_warps=2 --set dot_precision=tf32"
    for kernel in compiled.kernels:
        operator = "memory_update" if kernel.source.kernel == "memory_update" else "trellis_attention"
        options = f"--operator {operator} --dtype float16 --chunk 128 --set variant=split {settings}"
        main(["show", kernel.source.kernel, "--device", "here", *options.split()])
        assert capsys.readouterr().out == kernel.source.text
