"""A faster way through TVM's parser, which otherwise takes longer than LLVM: the same kernels in a quarter of the time.

What is replaced is TVM's own: `tests/codegen/backends/tvm/test_parser.py` says so when another TVM has none of its
names, and holds kernels parsed either way against each other.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_CODE = "_trellis_code"
_DEFINITION = "_trellis_definition"


@functools.cache
def quicken_parser() -> None:
    """Replace how an inlined function finds the parser at work and its own text, and how expressions are evaluated.

    - TVM asks inspect.getouterframes for the parser, which looks up the source lines of every frame of the stack; the
      frames alone say as much.
    - It parses the text of an inlined function again for each call, which only one that defines functions needs.
    - It compiles and evaluates an expression of Python part by part. Python does the whole at once, but for what means
      something else in TVMScript, which is left to TVM.
    """
    from tvm.script.parser.core.evaluator import ExprEvaluator
    from tvm.script.parser.core.parser import ScriptMacro

    # Unwrapped, as an interruption may have come between the three.
    find, definition, evaluate = ScriptMacro._find_parser_def, ScriptMacro.get_macro_def, ExprEvaluator.eval
    ScriptMacro._find_parser_def = functools.update_wrapper(_find_parser, inspect.unwrap(find))
    ScriptMacro.get_macro_def = _read_once(inspect.unwrap(definition))
    ExprEvaluator.eval = staticmethod(_at_once(inspect.unwrap(evaluate)))


def _find_parser(macro: Any) -> Any:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        parser = frame.f_globals.get(macro.parser_object_name)
        if parser is not None:
            return parser
        frame = frame.f_back
    raise RuntimeError(f"{macro.parser_object_name} not available")


def _read_once(theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(theirs)
    def definition(macro: Any) -> Any:
        if hasattr(macro, _DEFINITION):
            return getattr(macro, _DEFINITION)
        found = theirs(macro)
        # TVM takes the decorators off functions that it meets inside.
        if not _defines_functions(found.body):
            setattr(macro, _DEFINITION, found)
        return found

    return definition


def _defines_functions(statements: list[Any]) -> bool:
    from tvm.script.parser.core import doc

    return any(
        isinstance(each, doc.FunctionDef)
        or _defines_functions([*getattr(each, "body", ()), *getattr(each, "orelse", ())])
        for each in statements
    )


def _at_once(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def evaluated(parser: Any, values: dict[str, Any], node: Any) -> Any:
        if not hasattr(node, _CODE):
            setattr(node, _CODE, _code_of(node))
        code = getattr(node, _CODE)
        if code is None:
            return theirs(parser, values, node)
        try:
            return eval(code, values)
        except Exception as error:
            # It says where, and raises.
            parser.report_error(node, error)
            raise

    return evaluated


def _code_of(node: Any) -> CodeType | None:
    """An expression, compiled; None if TVM has to evaluate it."""
    from tvm.script.parser.core import doc

    if not _is_plain_python(node):
        return None
    expression = ast.Expression(doc.from_doc(node))
    try:
        return compile(ast.fix_missing_locations(expression), "<TVMScript>", "eval")
    except ValueError:
        return None  # What is assigned to, which Python has no value of.


def _is_plain_python(node: Any) -> bool:
    """Whether TVM would do to every part of an expression what Python does; it compares in its own way."""
    from tvm.script.parser.core import doc

    if isinstance(node, list):
        return all(_is_plain_python(each) for each in node)
    if not isinstance(node, doc.AST) or isinstance(node, (doc.expr_context, doc.operator)):
        return True
    if isinstance(node, doc.unaryop):
        return not isinstance(node, doc.Not)
    plain = (doc.Name, doc.Constant, doc.Attribute, doc.Subscript, doc.Tuple, doc.List)
    computed = (doc.BinOp, doc.UnaryOp, doc.Call, doc.keyword)
    return isinstance(node, plain + computed) and all(
        _is_plain_python(getattr(node, field, None)) for field in node._FIELDS
    )
