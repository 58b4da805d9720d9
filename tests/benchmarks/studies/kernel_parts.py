"""A kernel cut short: its own source with only the first statements of its loop over tiles.

What two neighbours differ in time by is what the statement between them takes, in the place where it runs, on the data
that it has there. The last of them is the whole kernel.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from codegen.render import Source

KINDS = {
    "load_gates": "gates",
    "load_rows": "loads",
    "transpose": "transposes",
    "read_slots": "products",
    "read_dims": "products",
    "move_state": "products",
    "codes_of": "maps",
    "codes_of_tile": "products and maps",
    "claim_rows": "stores",
    "claim_rows_unless_streamed": "stores",
    "store_rows": "stores",
    "stream_rows": "stores",
}
"""What a statement of the loop does, by the function that it calls; every `apply_<map>` is a map."""

_TILES, _CODES, _MAP_OF_CODES = "i_tile", "codes_of_tile", "codes_of"
_WITHOUT_MAP = f"{_CODES}_without_map"


@dataclass(frozen=True)
class Part:
    """One more statement than the part before.

    Attributes:
        label: the statement, in a few words.
        kind: one of the values of `KINDS`, or "other".
        source: the kernel up to this statement.
    """

    label: str
    kind: str
    source: Source


def parts_of(source: Source) -> list[Part]:
    """The kernel cut after each statement of its loop over tiles, shortest first; before them, without any.

    Raises:
        ValueError: it has no such loop, or more than one.
    """
    tree = ast.parse(source.text)
    statements = _loop(tree).body
    parts = [_part(source, tree, [], "the loops, and the states", "other")]
    for count, statement in enumerate(statements, start=1):
        function, words = _called(statement)
        if function is None:
            continue
        kept = statements[:count]
        if function == _CODES and _is_split(tree):
            cut = [*kept[:-1], _renamed(statement, _WITHOUT_MAP)]
            parts.append(_part(source, tree, cut, f"Z of {words}", "products"))
            parts.append(_part(source, tree, kept, f"U of {words}", "maps"))
        else:
            kind = "maps" if function.startswith("apply_") else KINDS.get(function, "other")
            parts.append(_part(source, tree, kept, f"{function} {words}", kind))
    return parts


def _loop(tree: ast.Module) -> ast.For:
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id == _TILES
    ]
    if len(found) != 1:
        raise ValueError(f"expected one loop over {_TILES}, found {len(found)}; cut a kernel of variant 'fused'")
    return found[0]


def _called(statement: ast.stmt) -> tuple[str | None, str]:
    """The function that a statement calls, and what it is called on; None if the statement is no call."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None, ""
    first, *_ = (ast.unparse(argument) for argument in call.args)
    return call.func.id, "" if call.func.id == "load_gates" else first


def _is_split(tree: ast.Module) -> bool:
    """Whether the codes of a tile are one product and then one map; those of several chunks follow one another."""
    return _called(_function(tree, _CODES).body[-1])[0] == _MAP_OF_CODES


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def _renamed(statement: ast.stmt, name: str) -> ast.stmt:
    renamed = copy.deepcopy(statement)
    for node in ast.walk(renamed):
        if isinstance(node, ast.Name) and node.id == _CODES:
            node.id = name
    return renamed


def _part(source: Source, tree: ast.Module, kept: list[ast.stmt], label: str, kind: str) -> Part:
    cut = copy.deepcopy(tree)
    _loop(cut).body = copy.deepcopy(kept) or [ast.Pass()]
    if any(isinstance(node, ast.Name) and node.id == _WITHOUT_MAP for node in ast.walk(cut)):
        cut.body = list(_with_function_without_map(cut))
    text = ast.unparse(ast.fix_missing_locations(cut)) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = source.path.with_name(f"{source.kernel}_part_{digest[:16]}.py")
    path.write_text(text)
    return Part(label, kind, replace(source, text=text, path=path, digest=digest))


def _with_function_without_map(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        yield node
        if isinstance(node, ast.FunctionDef) and node.name == _CODES:
            other = copy.deepcopy(node)
            other.name = _WITHOUT_MAP
            other.body = [statement for statement in other.body if _called(statement)[0] != _MAP_OF_CODES]
            yield other
