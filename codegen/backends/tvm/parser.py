"""A faster way through TVM's parser, which otherwise takes longer than LLVM: the same kernels in a quarter of the time.

What is replaced is TVM's own: `tests/codegen/backends/tvm/test_parser.py` says so when another TVM has none of its
names, and holds kernels parsed either way against each other.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

_CODE = "_trellis_code"


@functools.cache
def quicken_parser() -> None:
    """Replace how expressions are evaluated.

    TVM compiles and evaluates an expression of Python part by part. Python does the whole at once, but for what means
    something else in TVMScript, which is left to TVM.
    """
    from tvm.script.parser.core.evaluator import ExprEvaluator

    # Unwrapped, so that it is replaced once in a process.
    ExprEvaluator.eval = staticmethod(_at_once(inspect.unwrap(ExprEvaluator.eval)))


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
