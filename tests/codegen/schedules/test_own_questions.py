"""Only a backend's own folders ask which backend a schedule is of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.schedules.registry import SCHEDULES

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("codegen", "trellis_ops", "tuner", "tuning_db")
OWN = (ROOT / "codegen" / "schedules", ROOT / "codegen" / "backends")
CLASSES = {each.__name__ for kind in SCHEDULES.values() for each in kind.__mro__} - {"Schedule", "ABC", "object"}
MODULES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if not any(path.is_relative_to(folder) for folder in OWN)
)


def faults(source: str) -> Iterator[str]:
    """The expressions of `source` that tell backends apart, and the names of their classes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
            parts = [part for value in values for part in (value.elts if hasattr(value, "elts") else [value])]
            if any(isinstance(part, ast.Constant) and part.value in SCHEDULES for part in parts):
                yield ast.unparse(node)
        elif isinstance(node, ast.MatchValue):
            if isinstance(node.value, ast.Constant) and node.value.value in SCHEDULES:
                yield ast.unparse(node)
        elif (isinstance(node, ast.Name) and node.id in CLASSES) or (
            isinstance(node, ast.Attribute) and node.attr in CLASSES
        ):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_else_tells_backends_apart(path):
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('schedule.backend == "tvm"', 'schedule.backend == "tvm"'),
        ('"triton" != name', '"triton" != name'),
        ('name in ("tvm", other)', 'name in ("tvm", other)'),
        ("isinstance(schedule, TvmSchedule)", "TvmSchedule"),
        ("isinstance(schedule, (int, triton.TritonFields))", "triton.TritonFields"),
        ('match name:\n    case "triton":\n        pass', '"triton"'),
    ],
)
def test_each_way_to_tell_them_apart_is_found(source, found):
    assert [each.replace("'", '"') for each in faults(source)] == [found]


@pytest.mark.parametrize(
    "source",
    ['default("tvm", spec, device)', "isinstance(schedule, Schedule)", 'folder == "templates"', "a == b"],
)
def test_what_names_a_backend_without_a_question_is_not(source):
    assert list(faults(source)) == []
