"""The method of TVM's that is replaced exists, and kernels parse with the replacement as they do without."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from codegen.backends import backend
from codegen.backends.source_module import module_of
from codegen.backends.tvm import parser as tvm_parser
from codegen.backends.tvm.executable import compiler
from codegen.device import NAMED, Device, cpu
from codegen.errors import CompileError
from codegen.kernels.build import parts
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case


def test_the_method_is_tvm_s_and_is_used():
    compiler()
    from tvm.script.parser.core import evaluator

    assert inspect.unwrap(evaluator.ExprEvaluator.eval) is not evaluator.ExprEvaluator.eval
    assert "ExprEvaluator.eval(" in inspect.getsource(evaluator.eval_expr)


@pytest.mark.parametrize(
    ("device", "operator", "direction", "chunk", "changes"),
    [
        (cpu(), "trellis_attention", "forward", 20, {}),
        (cpu(), "trellis_attention", "forward", 3, {"variant": "pair"}),
        (cpu(), "trellis_attention", "forward", 20, {"variant": "split", "tile_tokens": 16}),
        (cpu(), "trellis_attention", "backward", 1, {}),
        (cpu(), "trellis_attention", "backward_first_order", 16, {}),
        (cpu(), "trellis_step_chunked", "forward", 1, {}),
        (NAMED["sm_90"], "trellis_attention", "forward", 20, {}),
    ],
    ids=lambda value: value.name if isinstance(value, Device) else None,
)
def test_kernels_are_what_tvm_alone_makes_of_their_sources(
    device, operator, direction, chunk, changes, tmp_path, monkeypatch
):
    compiler()
    from tvm.ir import assert_structural_equal
    from tvm.script.parser.core.evaluator import ExprEvaluator

    spec = Case(operator, chunk, dtype="bfloat16", rule=Rule("softmax", out="l2_silu", step_size="token")).spec
    spec = dataclasses.replace(spec, problem=dataclasses.replace(spec.problem, direction=direction))
    schedule = dataclasses.replace(default("tvm", spec, device), **changes)
    for kernel, part in parts(spec, schedule):
        source = render(kernel, part, schedule, device)
        quick = module_of(source, backend("tvm").name).Module
        copy = tmp_path / f"{source.path.stem}_by_tvm_alone.py"
        copy.write_text(source.text)
        with monkeypatch.context() as patch:
            patch.setattr(ExprEvaluator, "eval", staticmethod(inspect.unwrap(ExprEvaluator.eval)))
            alone = module_of(dataclasses.replace(source, path=copy), backend("tvm").name).Module
        assert_structural_equal(quick, alone, map_free_vars=True)
        assert quick.script() == alone.script()


def test_what_tvmscript_means_by_itself_is_left_to_tvm():
    compiler()
    from tvm.script.parser.core import doc

    def expression(text: str) -> object:
        return doc.parse(text, mode="eval").body

    assert tvm_parser._code_of(expression("T.max(x[i, j + 1], -y) * z.w(a=[1, (2, 3)])")) is not None
    for text in (
        "a and b",
        "not a",
        "a < b",
        "a == b",
        "x[a:b]",
        "lambda: a",
        "f(*a)",
        "a if b else c",
        "[a for a in b]",
    ):
        assert tvm_parser._code_of(expression(text)) is None, text


NESTED = """
from tvm.script import ir as I
from tvm.script import tirx as T

@T.inline
def outer(x, value):
    @T.inline
    def inner(i):
        x[i] = value
    for i in T.serial(4):
        inner(i)

@I.ir_module(s_tir=True)
class Module:
    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((4,), "float32")):
        outer(x, T.float32(1))
        outer(x, T.float32(2))
"""


def module_in(text: str, path: Path) -> object:
    compiler()
    path.write_text(text)
    case = Case("trellis_step")
    source = render("memory_step", case.spec, default("tvm", case.spec, cpu()), cpu())
    return module_of(dataclasses.replace(source, path=path, text=text), backend("tvm").name)


def test_inlined_functions_may_define_inlined_functions(tmp_path):
    assert module_in(NESTED, tmp_path / "nested.py").Module.script().count("for ") == 2


def test_an_error_is_shown_at_its_expression(tmp_path):
    broken = NESTED.replace("T.serial(4)", 'T.serial(4 / "a")')
    with pytest.raises(CompileError) as caught:
        module_in(broken, tmp_path / "broken_expression.py")
    assert 'for i in T.serial(4 / "a"):' in str(caught.value)
    assert "inner(i)" not in str(caught.value)
