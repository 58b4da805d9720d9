"""What TVM's parser says of a faulty source."""

from __future__ import annotations

import dataclasses

import pytest

from codegen.backends import backend
from codegen.backends.source_module import module_of
from codegen.backends.tvm.executable import compiler
from codegen.device import cpu
from codegen.errors import CompileError
from codegen.render import render
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case

BROKEN = """
from tvm.script import ir as I
from tvm.script import tirx as T

@I.ir_module(s_tir=True)
class Module:
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((4,), "float32")):
        for i in T.serial(4 / "a"):
            x[i] = T.float32(1)
"""


def test_an_error_is_shown_at_its_expression(tmp_path):
    compiler()
    path = tmp_path / "broken_expression.py"
    path.write_text(BROKEN)
    case = Case("trellis_step")
    source = render("memory_step", case.spec, default("tvm", case.spec, cpu()), cpu())
    with pytest.raises(CompileError) as caught:
        module_of(dataclasses.replace(source, path=path, text=BROKEN), backend("tvm").name)
    assert 'for i in T.serial(4 / "a"):' in str(caught.value)
    assert "T.float32(1)" not in str(caught.value)
