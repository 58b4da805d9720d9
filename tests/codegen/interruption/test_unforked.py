"""Which imports a fork waits for: all that calls make after `import trellis_ops`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

BUILT = (
    "codegen/backends/",
    "codegen/kernels/exports/export.py",
    "codegen/kernels/exports/exported.py",
    "codegen/kernels/operator.py",
    "codegen/maps/",
    "codegen/recurrence/",
    "codegen/render.py",
)
"""Works inside of `build_legal`, which a fork waits for; the registry of backends does not."""

COMMANDS = ("__main__.py", "trellis_ops/lm/", "trellis_ops/serve/", "trellis_ops/hf/", "trellis_ops/generate/")
READ_BY_USERS = {("trellis_ops/specs/workload.py", "yaml")}
WAITED_FOR = {"whole_imports", "unforked"}


def late_imports(node: ast.AST, inside: bool = False, waits: bool = False) -> Iterator[str]:
    """The modules that functions of a file import where no fork waits for it."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.With):
        waits = waits or any(ast.unparse(item.context_expr).removesuffix("()") in WAITED_FOR for item in node.items)
    if inside and not waits:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield ast.unparse(node.args[0])
    inside = inside or isinstance(node, ast.FunctionDef)
    for child in ast.iter_child_nodes(node):
        yield from late_imports(child, inside, waits)


def called() -> Iterator[Path]:
    for package in ("codegen", "trellis_ops"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            built = name.startswith(BUILT) and name != "codegen/backends/__init__.py"
            if not built and not name.endswith(COMMANDS[0]) and not name.startswith(COMMANDS[1:]):
                yield path


def test_a_fork_waits_for_what_calls_import():
    found = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in called()
        for module in late_imports(ast.parse(path.read_text()))
    }
    assert {each for each in found if each[1] != "torch"} == READ_BY_USERS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f():\n    import one", ["one"]),
        ("def f():\n    from one.two import three", ["one.two"]),
        ("def f(name):\n    return importlib.import_module(name)", ["name"]),
        ("def f():\n    with whole_imports():\n        import one", []),
        ("import one", []),
    ],
)
def test_the_look_itself(text, found):
    assert list(late_imports(ast.parse(text))) == found
