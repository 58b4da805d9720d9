"""A kernel cut short: its own source with only the first statements of its loop over tiles.

What two neighbours differ in time by is what the statement between them takes, in the place where it runs, on the data
that it has there. The last of them is the whole kernel.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from dataclasses import dataclass, replace

from codegen.render import Source

KINDS = {
    "gates.load": "gates",
    "rows.load": "loads",
    "transpose": "transposes",
    "memory.project": "products",
    "memory.read_slots": "products",
    "memory.read_dims": "products",
    "memory.move": "products",
    "codes_of": "maps",
    "spans.codes": "products and maps",
    "spans.codes_by_token": "products and maps",
    "rows.claim": "stores",
    "streams.claim_rows": "stores",
    "rows.store": "stores",
    "streams.store_rows": "stores",
}
"""What a statement of the loop does, by the function that it calls; every `apply_<map>` is a map."""

_TILES = "i_tile"


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
        if function is not None:
            kind = "maps" if function.startswith("apply_") else KINDS.get(function, "other")
            parts.append(_part(source, tree, statements[:count], f"{function} {words}".strip(), kind))
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
    if not isinstance(call, ast.Call):
        return None, ""
    function = ast.unparse(call.func)
    buffers = [text for text in map(ast.unparse, call.args) if not text.startswith("tile") and text != "codes_of"]
    return function, "" if function == "gates.load" else buffers[0]


def _part(source: Source, tree: ast.Module, kept: list[ast.stmt], label: str, kind: str) -> Part:
    cut = copy.deepcopy(tree)
    _loop(cut).body = copy.deepcopy(kept) or [ast.Pass()]
    text = ast.unparse(ast.fix_missing_locations(cut)) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = source.path.with_name(f"{source.kernel}_part_{digest[:16]}.py")
    path.write_text(text)
    return Part(label, kind, replace(source, text=text, path=path, digest=digest))
