"""The methods of TVM's that are replaced exist, and kernels parse with the replacements as they do without."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from codegen.backends import backend, tvm_parser
from codegen.backends.source_module import module_of
from codegen.backends.tvm import _tvm
from codegen.defaults import default
from codegen.device import cpu
from codegen.program import parts
from codegen.render import render
from codegen.rule import Rule
from tests.kernel_cases import Case


def test_the_methods_are_tvm_s_and_are_used():
    _tvm()
    from tvm.script.parser.core import evaluator, parser
    from tvm.tirx.script.parser import entry

    assert parser.ScriptMacro._find_parser_def is tvm_parser._find_parser
    source = inspect.getsource(parser)
    assert "def _find_parser_def(self)" in source
    assert "self._find_parser_def()" in source
    assert isinstance(parser.ScriptMacro.parser_object_name, str)
    assert "self.get_macro_def()" in inspect.getsource(entry)
    assert "ExprEvaluator.eval(" in inspect.getsource(evaluator.eval_expr)


def test_the_parser_at_work_is_found_in_the_frames():
    _tvm()
    from tvm.script.parser.core.parser import ScriptMacro

    class Macro:
        parser_object_name = "PARSER_OF_THIS_TEST"

    with pytest.raises(RuntimeError, match="PARSER_OF_THIS_TEST not available"):
        ScriptMacro._find_parser_def(Macro())
    namespace = {"find": ScriptMacro._find_parser_def, "macro": Macro(), "PARSER_OF_THIS_TEST": "parser"}
    exec("def inner():\n    return find(macro)\ndef outer():\n    return inner()", namespace)
    assert namespace["outer"]() == "parser"


@pytest.mark.parametrize(
    ("operator", "direction", "chunk", "changes"),
    [
        ("trellis_attention", "forward", 20, {}),
        ("trellis_attention", "forward", 3, {"variant": "pair"}),
        ("trellis_attention", "forward", 20, {"variant": "split", "tile_tokens": 16}),
        ("trellis_attention", "backward", 1, {}),
        ("trellis_attention", "backward_first_order", 16, {}),
        ("trellis_step_chunked", "forward", 1, {}),
    ],
)
def test_kernels_are_what_tvm_alone_makes_of_their_sources(operator, direction, chunk, changes, tmp_path, monkeypatch):
    _tvm()
    from tvm.ir import assert_structural_equal
    from tvm.script.parser.core.evaluator import ExprEvaluator
    from tvm.script.parser.core.parser import ScriptMacro

    spec = Case(operator, chunk, dtype="bfloat16", rule=Rule("softmax", out="l2_silu", step_size="token")).spec
    spec = dataclasses.replace(spec, problem=dataclasses.replace(spec.problem, direction=direction))
    schedule = dataclasses.replace(default("tvm", spec, cpu()), **changes)
    for kernel, part in parts(spec, schedule):
        source = render(kernel, part, schedule, cpu())
        assert "@T.inline" in source.text
        quick = module_of(source, backend("tvm").name).Module
        copy = tmp_path / f"{source.path.stem}_by_tvm_alone.py"
        copy.write_text(source.text)
        with monkeypatch.context() as patch:
            patch.setattr(ExprEvaluator, "eval", staticmethod(inspect.unwrap(ExprEvaluator.eval)))
            patch.setattr(ScriptMacro, "get_macro_def", inspect.unwrap(ScriptMacro.get_macro_def))
            alone = module_of(dataclasses.replace(source, path=copy), backend("tvm").name).Module
        assert_structural_equal(quick, alone, map_free_vars=True)
        assert quick.script() == alone.script()


def test_what_tvmscript_means_by_itself_is_left_to_tvm():
    _tvm()
    from tvm.script.parser.core import doc

    def expression(text: str) -> object:
        return doc.parse(text, mode="eval").body

    assert tvm_parser._code_of(expression("T.max(x[i, j + 1], -y) * z.w(a=[1, (2, 3)])")) is not None
    for text in ("a and b", "not a", "a < b < c", "x[a:b]", "lambda: a", "f(*a)", "a if b else c", "[a for a in b]"):
        assert tvm_parser._code_of(expression(text)) is None, text
