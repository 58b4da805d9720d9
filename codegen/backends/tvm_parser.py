"""A faster way for TVM's parser to find itself, which is two thirds of the time that a kernel takes to parse."""

from __future__ import annotations

import functools
import sys
from types import FrameType
from typing import Any


@functools.cache
def find_parsers_quickly() -> None:
    """Replace how an inlined function finds the parser that is at work.

    TVM asks inspect.getouterframes, which looks up the source lines of every frame of the stack; the frames alone say
    as much. The method is TVM's own: `tests/codegen/test_tvm_parser.py` says so when another TVM has none of its name.
    """
    from tvm.script.parser.core.parser import ScriptMacro

    ScriptMacro._find_parser_def = _find_parser


def _find_parser(macro: Any) -> Any:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        parser = frame.f_globals.get(macro.parser_object_name)
        if parser is not None:
            return parser
        frame = frame.f_back
    raise RuntimeError(f"{macro.parser_object_name} not available")
