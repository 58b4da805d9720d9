"""The method of TVM's that is replaced exists, and kernels with inlined functions parse with the replacement."""

from __future__ import annotations

import inspect

import pytest

from codegen.backends import backend, tvm_parser
from codegen.backends.source_module import module_of
from codegen.backends.tvm import _tvm
from codegen.defaults import default
from codegen.device import cpu
from codegen.render import render
from tests.kernel_cases import Case


def test_the_method_is_tvm_s_and_is_used():
    _tvm()
    from tvm.script.parser.core import parser

    assert parser.ScriptMacro._find_parser_def is tvm_parser._find_parser
    source = inspect.getsource(parser)
    assert "def _find_parser_def(self)" in source
    assert "self._find_parser_def()" in source
    assert isinstance(parser.ScriptMacro.parser_object_name, str)


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


def test_a_kernel_with_inlined_functions_parses():
    _tvm()
    spec = Case("trellis_step", dim_k=4, dim_v=4, slots=4).spec
    source = render("memory_step", spec, default("tvm", spec, cpu()), cpu())
    assert "@T.inline" in source.text
    assert "def memory_step(" in module_of(source, backend("tvm").name).Module.script()
