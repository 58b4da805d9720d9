"""Arguments have names: no code takes some of a tuple of them by where they stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    *("codegen/kernels", "codegen/backends", "tuner/verify", "tests/support"),
    *("trellis_ops/operators", "trellis_ops/dispatch", "trellis_ops/eager"),
)
MODULES = (
    "trellis_ops/calls/arguments.py",
    "trellis_ops/explanation.py",
    "trellis_ops/ops.py",
    "tuner/measure/baselines/baseline.py",
)
"""Where tuples of arguments pass."""


TEXTS = {"digest"}
"""Names of what may be cut."""


def by_position(source: str) -> list[str]:
    """Subscripts of names by a fixed place: `x[8]`, `x[:9]`, `x[4:]`, `x[6 + n]`; `x[-1]` and `x[:-1]` of a `*x`.

    `x[0]` is none: the first stands for all where they agree, as in the device that tensors are on. Nor are neighbours
    such as `x[n + 1]`.
    """
    tree = ast.parse(source)
    packed = {node.vararg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) and node.vararg}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id not in TEXTS:
            last = node.value.id in packed and any(place < 0 for place in _places(node.slice))
            if last or any(place > 0 for place in _places(node.slice)):
                found.append(ast.unparse(node))
    return found


def _places(index: ast.expr) -> Iterator[int]:
    for part in (index.lower, index.upper) if isinstance(index, ast.Slice) else (index,):
        if isinstance(part, ast.BinOp):
            yield from (place for side in (part.left, part.right) for place in _number(side) if place > 1)
        elif part is not None:
            yield from _number(part)


def _number(part: ast.expr) -> Iterator[int]:
    sign, bare = (-1, part.operand) if isinstance(part, ast.UnaryOp) else (1, part)
    if isinstance(bare, ast.Constant) and isinstance(bare.value, int):
        yield sign * bare.value


def sources() -> list[Path]:
    of_folders = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [*of_folders, *(ROOT / module for module in MODULES)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_argument_is_taken_by_its_place(path):
    assert by_position(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "tensors[:9]",
        "settings[4:]",
        "inputs[8]",
        "found[6 + memory]",
        "def run(*call): return call[:-1]",
        "def run(*call): return call[-1]",
    ],
)
def test_a_place_is_found(source):
    assert len(by_position(source)) == 1


@pytest.mark.parametrize(
    "source", ["tensors[0]", "tensors['q']", "x.shape[1]", "offsets[n + 1]", "starts[-1]", "x[start:end]", "x[::-1]"]
)
def test_what_is_no_place_is_not(source):
    assert by_position(source) == []
